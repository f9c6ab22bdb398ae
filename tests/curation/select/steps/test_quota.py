"""At most so many rows of each host, or of each cluster, the best first; nothing is free of its quota."""

from pathlib import Path

import pyarrow as pa
import pytest
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.select.cluster import ClusterConfig
from headrace.curation.select.steps import Quota

HOST = "regexp_extract(url, '^https?://([^/:]+)', 1)"


def test_the_best_rows_of_each_host_are_kept_and_rows_without_one_are_a_host(tmp_path: Path) -> None:
    urls = [f"http://host-{number % 3}/{number}" for number in range(12)] + [None, None, None]
    rows = [make_row(number, url=url, clip_score=number / 100) for number, url in enumerate(urls)]
    job = write_job(tmp_path, [rows[:7], rows[7:]])
    step = run(job, [Quota(by=HOST, most=2, order=("clip_score desc",))]).steps[-1]
    assert (step.rows_out, step.dropped, step.threshold) == (8, {"over-quota": 7}, 2.0)
    assert step.details == {"most": 2, "values": 4, "largest": 4}
    kept = {row["input_row"] for row in ledger(job) if row["kept"]}
    assert kept == {6, 7, 8, 9, 10, 11, 13, 14}
    assert sorted(row["value"] for row in ledger(job) if not row["kept"]) == [3, 3, 3, 3, 4, 4, 4]
    assert run(job, [Quota(by=HOST, share=0.2)]).kept == 12
    assert run(job, [Quota(by=HOST, share=0.001)]).kept == 4


def test_each_cluster_has_its_quota(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    turns = {0: [1.0, 0.0], 1: [0.0, 1.0], 2: None}
    rows = [make_row(number, vector=turns[number % 3]) for number in range(12)]
    job = write_job(tmp_path, [rows], carried=[("vector", pa.list_(pa.float32()))])
    step = run(job, [Quota(clusters=ClusterConfig(embedding="vector", number=2), most=3)]).steps[-1]
    assert (step.rows_out, step.details["clusters"], step.details["without_embedding"]) == (9, 2, 4)
    kept = [row["input_row"] % 3 for row in ledger(job) if row["kept"]]
    assert sorted(kept) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 3}, "either `by`"),
        ({"by": "url", "clusters": ClusterConfig(), "most": 3}, "either `by`"),
        ({"by": "url"}, "either `most`"),
        ({"by": "url", "most": 3, "share": 0.5}, "either `most`"),
        ({"by": "url", "most": 0}, "most must be at least 1"),
        ({"by": "url", "share": 0.0}, "share must be above 0"),
    ],
)
def test_a_quota_that_says_too_little_or_too_much_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quota(**settings)
