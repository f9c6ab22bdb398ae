"""The record of a run proves what its steps saw, and names the first step that saw something else."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline import Mixture, Segment, open_stream
from headrace.pipeline.order.plan import EndlessPlan
from headrace.pipeline.seen import FILE, Proof, StepRecord, last_trained_step, prove, read_record, read_replaced
from headrace.shards.dataset import open_dataset


@pytest.fixture
def changing(mixture: Mixture) -> Mixture:
    segments = (Segment(start=32, weights={"large": 0.25}, lanes=2), Segment(start=64, lanes=8))
    return dataclasses.replace(mixture, segments=segments)


def flush(records: list[StepRecord]) -> None:
    """Write the record of rank 0 with the numbers of the others in it."""
    sent: list[Sequence[float]] = []

    def send(values: Sequence[float]) -> Sequence[float]:
        sent.append(values)
        return values

    for record in records[1:]:
        record.flush(send)
    records[0].flush(lambda values: [sum(column) for column in zip(values, *sent, strict=True)])


def run(mixture: Mixture, out: Path, *, first: int, last: int, world_size: int = 1, every: int = 3) -> None:
    """Do the steps behind `first` up to `last` as so many ranks, whose numbers are summed as a process group would."""
    with open_stream(mixture, global_batch=8) as stream:
        stream._begin_at(first)
        state = stream.state_dict()
    records = [StepRecord(out / FILE if rank == 0 else None, global_batch=8, step=first) for rank in range(world_size)]
    streams = [open_stream(mixture, global_batch=8, rank=rank, world_size=world_size) for rank in range(world_size)]
    for stream in streams:
        stream.load_state_dict(state)
    for step in range(first + 1, last + 1):
        for record, stream in zip(records, streams, strict=True):
            record.add(next(stream))
        if step % every == 0 or step == last:
            flush(records)
    for stream in streams:
        stream.close()
    records[0].close()


def proof(mixture: Mixture, out: Path) -> Proof:
    with open_stream(mixture, global_batch=8) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        replaced = read_replaced(mixture.quarantine)
        return prove(stream.plan, stream.sources, read_record(out / FILE), replaced=replaced)


def test_a_run_over_restarts_world_sizes_and_segments_is_proven(changing: Mixture, tmp_path: Path) -> None:
    run(changing, tmp_path, first=0, last=3, world_size=4)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"first_step": 4, "step": 5, "glob')  # a killed process wrote so far
    run(changing, tmp_path, first=3, last=8, world_size=2)
    run(changing, tmp_path, first=6, last=12)  # from an older checkpoint: steps 7 and 8 are done again
    found = proof(changing, tmp_path)
    assert found.holds
    assert (found.num_steps, found.num_samples, found.num_replaced) == (12, 96, 0)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"seed": 6}, 1),
        ({"segments": (Segment(start=32, weights={"large": 0.25}, lanes=2), Segment(start=64, lanes=4))}, 9),
        ({"segments": (Segment(start=40, weights={"large": 0.25}, lanes=2), Segment(start=64, lanes=8))}, 5),
    ],
)
def test_the_first_step_that_differs_is_named(
    changing: Mixture, tmp_path: Path, change: dict[str, Any], differs: int
) -> None:
    run(changing, tmp_path, first=0, last=12)
    found = proof(dataclasses.replace(changing, **change), tmp_path)
    assert found.differs == differs
    assert not found.holds
    assert found.num_samples == 8 * (differs - 1)


def test_steps_that_are_missing_or_twice_are_named(changing: Mixture, tmp_path: Path) -> None:
    run(changing, tmp_path, first=0, last=12)
    lines = (tmp_path / FILE).read_text().splitlines()
    (tmp_path / FILE).write_text("\n".join([lines[0], lines[2], lines[3], lines[3]]) + "\n")
    found = proof(changing, tmp_path)
    assert found.not_recorded == (4, 5, 6)
    assert found.recorded_twice == (10, 11, 12)
    assert found.differs is None
    assert not found.holds


def test_a_record_that_lost_its_end_proves_nothing_of_it(changing: Mixture, tmp_path: Path) -> None:
    run(changing, tmp_path, first=0, last=9)
    with open_stream(changing, global_batch=8) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        lines = read_record(tmp_path / FILE)
        assert prove(stream.plan, stream.sources, lines, replaced={}, last_step=9).holds
        found = prove(stream.plan, stream.sources, lines, replaced={}, last_step=11)
    assert found.not_recorded == (10, 11)
    assert not found.holds


def test_replaced_samples_are_proven_by_the_quarantine_file(changing: Mixture, tmp_path: Path) -> None:
    url = str(tmp_path / "damaged")
    shutil.copytree(changing.sources[0].url, url)
    dataset = open_dataset(url)
    for shard in range(len(dataset.shards)):
        path = Path(dataset.tar_url(shard))
        data = bytearray(path.read_bytes())
        row = dataset.index(shard).slice(0, 1).to_pylist()[0]
        data[row["offset"] + row["size"] // 2] ^= 0xFF
        path.write_bytes(data)
    source = dataclasses.replace(changing.sources[0], url=url)
    damaged = dataclasses.replace(
        changing,
        sources=(source, changing.sources[1]),
        max_bad_fraction=0.9,
        quarantine=str(tmp_path / "quarantine.jsonl"),
    )
    run(damaged, tmp_path, first=0, last=6, world_size=2)
    run(damaged, tmp_path, first=3, last=12)
    found = proof(damaged, tmp_path)
    assert found.holds
    assert found.num_replaced > 0
    blind = proof(dataclasses.replace(damaged, quarantine=""), tmp_path)
    assert blind.differs is None
    assert blind.not_proven
    assert not blind.holds
    # A fault that came once, and not when the step was done again, left its line too.
    step = blind.not_proven[0]
    whole = set(range(8 * step - 8, 8 * step)) - set(read_replaced(damaged.quarantine))
    with Path(damaged.quarantine).open("a") as file:
        file.write(json.dumps({"position": min(whole), "replaced_by": "another"}) + "\n")
    found = proof(damaged, tmp_path)
    assert (found.differs, found.not_proven) == (None, (step,))


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    good = {"first_step": 1, "step": 2, "global_batch": 8, "digests": ["1-2", "3-4"]}
    texts = ["[]", "{}", "7", json.dumps({**good, "step": 3}), json.dumps({**good, "step": "2"})]
    texts += [json.dumps({**good, "replaced": wrong}) for wrong in ([0], 1, None)] + [json.dumps(good)]
    (tmp_path / FILE).write_bytes(b"\xff\n" + "\n".join(texts).encode())
    assert read_record(tmp_path / FILE) == [good]
    assert read_record(tmp_path / "none.jsonl") == []


def test_the_last_trained_step_is_that_of_the_metrics(tmp_path: Path) -> None:
    lines = [{"event": "train", "step": 7}, {"event": "validation", "step": 9}, {"event": "train", "step": None}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "tra')
    assert last_trained_step(tmp_path / "metrics.jsonl") == 7
    assert last_trained_step(tmp_path / "none.jsonl") == 0
