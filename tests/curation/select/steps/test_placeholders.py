"""A picture that stands under many URLs is dropped, all of it; one that the list repeats is not."""

import pyarrow as pa
import pytest
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.select.steps import ExactDuplicates, Placeholders


def test_bytes_of_many_urls_are_dropped_once_and_for_all_and_a_repeated_url_is_not_many(tmp_path):
    rows = [make_row(number, sha256="a" * 64) for number in range(5)]
    rows += [make_row(number, sha256="b" * 64, url="http://host/same") for number in range(5, 10)]
    rows += [make_row(number) for number in range(10, 13)]
    job = write_job(tmp_path, [rows[:4], rows[4:]])
    summary = run(job, [Placeholders(min_urls=5), ExactDuplicates()])
    assert (summary.kept, summary.steps[2].dropped) == (4, {"placeholder": 5})
    assert summary.steps[2].details == {"pictures": 1, "most_urls": 5}
    dropped = [row for row in ledger(job) if row["step"] == "placeholders"]
    assert {row["url"] for row in dropped} == {f"http://host/{number}" for number in range(5)}
    assert {(row["value"], row["threshold"], row["duplicate_of"]) for row in dropped} == {(5.0, 5.0, None)}
    assert run(job, [Placeholders(min_urls=6)]).kept == 13


def test_one_url_is_no_crowd():
    with pytest.raises(ValueError, match="min_urls must be at least 2"):
        Placeholders(min_urls=1)
    with pytest.raises(ValueError, match="min_hosts must be at least 1"):
        Placeholders(min_hosts=0)


def test_a_picture_of_one_host_is_spared_where_many_are_asked_for_and_no_older_digest_changes(tmp_path):
    rows = [make_row(number, sha256="a" * 64, url=f"http://shop.example:80/{number}") for number in range(5)]
    rows += [make_row(number, sha256="b" * 64, url=f"http://me@{number}.example/") for number in range(5, 10)]
    job = write_job(tmp_path, [rows])
    assert run(job, [Placeholders(min_urls=5, min_hosts=2)]).kept == 5
    assert {row["input_row"] for row in ledger(job) if row["kept"]} == {0, 1, 2, 3, 4}
    assert run(job, [Placeholders(min_urls=5)]).kept == 0
    assert set(Placeholders().decides_by()) == {"step", "name", "min_urls"}


def test_one_colour_and_known_placeholders_are_dropped_by_themselves(tmp_path):
    told = [(True, None), (False, "imgur"), (True, "imgur"), (False, None), (None, None)]
    rows = [make_row(number, single_colour=one, known_placeholder=known) for number, (one, known) in enumerate(told)]
    carried = [("single_colour", pa.bool_()), ("known_placeholder", pa.string())]
    job = write_job(tmp_path, [rows], carried=carried)
    summary = run(job, [Placeholders(single_colour=True, known=True)])
    assert summary.steps[-1].dropped == {"single-colour": 2, "known-placeholder": 1}
    assert run(job, [Placeholders(known=True)]).steps[-1].dropped == {"known-placeholder": 2}
    assert run(job, [Placeholders()]).kept == 5
