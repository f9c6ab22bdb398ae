"""What TensorBoard reads is what metrics.jsonl says, each step once."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.runs.event_file import PATTERN, EventFile, crc32c
from headrace.train.runs.metrics import read_metrics

Scalars = dict[str, list[tuple[int, float]]]

# The bytes that `tensorboard.summary.writer.record_writer.RecordWriter` of TensorBoard 2.21 writes for
# Event(wall_time=12.5, step=300, summary=Summary(value=[Summary.Value(tag="train/loss", simple_value=0.75)])).
THEIRS = bytes.fromhex(
    "2100000000000000017becf609000000000000294010ac022a130a110a0a747261696e2f6c6f7373150000403ff085e722"
)


def fields(data: bytes) -> dict[int, list[bytes | int]]:
    """Read one protocol buffer message: wire types 0, 1, 2 and 5."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            number, shift, at = number | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                return number

    while at < len(data):
        key = varint()
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if size == 0:
            found.setdefault(key >> 3, []).append(varint())
            continue
        size = varint() if size is None else size
        found.setdefault(key >> 3, []).append(data[at : at + size])
        at += size
    return found


def read_events(path: Path) -> list[dict[int, list[bytes | int]]]:
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        events.append(fields(data[at + 12 : at + 12 + size]))
        at += 16 + size
    assert at == len(data)
    return events


def read_scalars(path: Path) -> Scalars:
    head, start, *rest = read_events(path)
    assert head[3] == [b"brain.Event:2"]
    assert (start[2], start[7]) == ([0], [b"\x08\x01"])
    found: Scalars = {}
    for event in rest:
        for value in fields(event[5][0])[1]:
            tag, number = fields(value)[1][0].decode(), struct.unpack("<f", fields(value)[2][0])[0]
            found.setdefault(tag, []).append((event[2][0], number))
    return found


def only(folder: Path) -> Path:
    (path,) = folder.glob("events.out.tfevents.*")
    return path


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_the_checksum_is_that_of_rfc_3720(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_a_record_is_the_bytes_that_tensorboard_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.train.runs.event_file.time.time", lambda: 12.5)
    file = EventFile(tmp_path, [])
    before = only(tmp_path).stat().st_size
    file.write({"event": "train", "step": 300, "loss": 0.75})
    file.close()
    assert only(tmp_path).read_bytes()[before:] == THEIRS


def test_a_run_draws_what_its_metrics_say_and_each_step_once(run_file: Callable[..., Path]) -> None:
    first = load_run(run_file(steps=4, tensorboard=True, validation=None))
    train(first)
    out = Path(first.out)
    old = only(out)
    more = load_run(run_file(steps=4, tensorboard=True, validation=None, changes_at={4: {"steps": 6}}))
    train(more)
    path = only(out)
    assert path.name > old.name  # a TensorBoard that is open goes on to the file that sorts behind
    lines = [line for line in read_metrics(out / "metrics.jsonl") if line["event"] == "train"]
    scalars = read_scalars(path)
    for name in ("loss", "lr", "grad_norm", "images_per_second", "tflops", "data_wait_percent", "step_seconds"):
        want = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
        assert scalars[f"train/{name}"] == want
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
    times = [struct.unpack("<d", event[1][0])[0] for event in read_events(path)]
    assert times == sorted(times)
    assert times[2] == lines[0]["unix_seconds"]


def test_steps_behind_the_checkpoint_are_drawn_once(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=5, tensorboard=True))
    train(config)
    out = Path(config.out)
    for name in ("00000005",):
        for file in (out / "checkpoints" / name).iterdir():
            file.unlink()
        (out / "checkpoints" / name).rmdir()
    train(config)
    scalars = read_scalars(only(out))
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars["validation/loss"]] == [0, 4, 5]


def test_it_may_be_switched_on_later_and_is_off_by_default(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=3))
    train(config)
    out = Path(config.out)
    assert list(out.glob("*tfevents*")) == []
    train(load_run(run_file(steps=3, tensorboard=True)))
    assert len(read_scalars(only(out))["train/loss"]) == 3


def test_a_number_that_is_not_finite_is_drawn_as_such(tmp_path: Path) -> None:
    lines = [{"event": "train", "step": 1, "loss": None, "data_bound_by": None, "grad_norm": 1e300}]
    EventFile(tmp_path, lines).close()
    scalars = read_scalars(only(tmp_path))
    assert set(scalars) == {"train/loss", "train/grad_norm"}
    assert math.isnan(scalars["train/loss"][0][1])
    assert math.isinf(scalars["train/grad_norm"][0][1])


def test_event_files_of_others_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "events.out.tfevents.1764144000.host.1.0"
    theirs.write_bytes(b"theirs")
    for _ in range(2):
        EventFile(tmp_path, []).close()
    assert theirs.read_bytes() == b"theirs"
    assert len(list(tmp_path.glob(PATTERN))) == 1


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, no_more_than: Callable[[int], None]) -> None:
    file = EventFile(tmp_path, [])
    size = only(tmp_path).stat().st_size
    no_more_than(size + 10)
    with pytest.raises(OSError, match=r"tfevents.*: cannot be written: .*make room and run the same command again"):
        file.write({"event": "train", "step": 1, "loss": 0.5})
    assert only(tmp_path).stat().st_size == size
    file.close()


@given(st.lists(st.tuples(st.integers(0, 2**40), st.floats(width=32, allow_nan=False)), max_size=20))
def test_any_number_comes_back(tmp_path_factory: pytest.TempPathFactory, numbers: list[tuple[int, float]]) -> None:
    folder = tmp_path_factory.mktemp("events")
    lines = json.loads(json.dumps([{"event": "train", "step": step, "x": x} for step, x in numbers]))
    EventFile(folder, lines).close()
    got = read_scalars(only(folder)).get("train/x", [])
    limit = 3.4e38
    assert got == [(step, x if abs(x) < limit else math.copysign(math.inf, x)) for step, x in numbers]
