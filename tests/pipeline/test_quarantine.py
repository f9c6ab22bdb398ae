"""The file of damaged samples is checked when a stream is opened, and not made before it is needed."""

import dataclasses
from pathlib import Path

import pytest

from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.quarantine import DamageCount, DamagedSample, DamageReport, Quarantine, log_new_reasons


@pytest.mark.parametrize("where", ["folder", "file/damaged.jsonl", "file/new/damaged.jsonl"])
def test_a_quarantine_that_cannot_be_written_is_refused_at_once(mixture: Mixture, tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    changed = dataclasses.replace(mixture, quarantine=str(tmp_path / where))
    with pytest.raises(ValueError, match=f"quarantine .*{where} cannot be written"):
        open_stream(changed, global_batch=8)


def test_a_remote_quarantine_is_refused(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="quarantine must be a local file, got s3://bucket/damaged"):
        dataclasses.replace(mixture, quarantine="s3://bucket/damaged")


def test_opening_makes_no_file(mixture: Mixture, tmp_path: Path) -> None:
    changed = dataclasses.replace(mixture, quarantine=str(tmp_path / "new" / "damaged.jsonl"))
    with open_stream(changed, global_batch=8) as stream:
        next(stream)
    assert list(tmp_path.iterdir()) == []


def damaged_sample(key: str, replaced_by: str = "") -> DamagedSample:
    return DamagedSample(
        position=0, source="s", shard="0.tar", key=key, offset=7, reason="crc", message="no", replaced_by=replaced_by
    )


def report_of(*items: list[DamagedSample]) -> DamageReport:
    """A batch in which each item lies in a chunk of its own."""
    return DamageReport(items, [((0, 0, number), 1) for number in range(len(items))])


def test_a_damaged_replacement_is_no_second_damaged_position() -> None:
    """Ten damaged neighbours: the first position passes over nine damaged replacements, the next over eight, ..."""
    quarantine = Quarantine("", max_fraction=1.0, max_consecutive=11)
    neighbours = [[damaged_sample(f"{key}") for key in range(first, 10)] for first in range(10)]
    count = quarantine.count(DamageCount(), report_of(*neighbours, []))
    assert count.reasons == {"crc": 10}
    assert count.tally.damaged == 10
    with pytest.raises(ValueError, match="11 in a row, max_bad_consecutive is 11"):
        quarantine.count(DamageCount(), report_of(*neighbours, [damaged_sample("10")]))


def test_a_count_that_was_refused_or_repeated_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "damaged.jsonl"
    quarantine = Quarantine(str(path), max_fraction=1.0, max_consecutive=3)
    before = quarantine.count(DamageCount(), report_of([damaged_sample("a")], []))
    for _ in range(2):
        with pytest.raises(ValueError, match="too many damaged samples"):
            quarantine.count(before, report_of(*[[damaged_sample("b")]] * 3))
    assert (before.reasons, before.in_a_row) == ({"crc": 1}, 0)
    for step in (4, 4, 5):
        quarantine.write(step, report_of([damaged_sample("b")]))
    assert len(path.read_text().splitlines()) == 2


def test_what_data_says_reaches_the_message_on_one_line() -> None:
    quarantine = Quarantine("", max_fraction=1.0, max_consecutive=1)
    with pytest.raises(ValueError, match="too many") as caught:
        quarantine.count(DamageCount(), report_of([damaged_sample("a\x1b[2J\u202eb\n")]))
    assert str(caught.value).isprintable()


def test_the_first_sample_of_each_reason_is_said(caplog: pytest.LogCaptureFixture) -> None:
    quarantine = Quarantine("", max_fraction=1.0, max_consecutive=9)
    count = DamageCount()
    for key in "abc":
        report = report_of([damaged_sample(key, replaced_by="z")])
        after = quarantine.count(count, report)
        log_new_reasons(count, after, report)
        count = after
    (line,) = caplog.messages
    assert line == "damaged sample (crc; others like it are counted): 0.tar: sample a at byte 7: no; replaced by z"


def test_a_batch_without_damage_is_counted_as_any_other() -> None:
    quarantine = Quarantine("", max_fraction=0.5, max_consecutive=50)
    before = quarantine.count(DamageCount(), report_of([damaged_sample("0")], []))
    slow = quarantine.count(before, DamageReport([[]] * 5, [((0, 0, n), 4) for n in range(2)] + [((1, 0, 0), 8)] * 3))
    fast = quarantine.count_whole(before, [(2, 4), (3, 8)])
    assert fast == dataclasses.replace(slow, tally=fast.tally)
    assert fast.tally == dataclasses.replace(slow.tally, chunks_seen=pytest.approx(slow.tally.chunks_seen))
    strict = Quarantine("", max_fraction=0.0, max_consecutive=50)
    one_bad = strict.count(DamageCount(), report_of([damaged_sample("0")], []))
    with pytest.raises(ValueError, match="too many damaged samples"):
        strict.count_whole(one_bad, [(100, 1)])  # judged only now: enough were seen
