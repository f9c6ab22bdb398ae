"""Small datasets with URLs, and runs over them that leave behind what a trainer leaves."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from headrace.config import config_to_dict
from headrace.pipeline import Augment, Mixture, Source, open_stream
from headrace.pipeline.seen import FILE, StepRecord
from headrace.shards.dataset import open_dataset
from headrace.shards.write import Sample, finish_dataset, write_shard

GLOBAL_BATCH = 12

Row = tuple[int, int, str, str]
"""Step, position, source and key of what a batch held."""


def encode(number: int) -> bytes:
    """Return a small picture."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC).save(sink, "JPEG")
    return sink.getvalue()


def url_of(name: str, key: str) -> str:
    """Return the URL of a sample."""
    return f"https://host{int(key) % 3}.example/{name}/{key}.jpg"


def _write(folder: Path, name: str, num_samples: int, *, per_shard: int = 9) -> str:
    for first in range(0, num_samples, per_shard):
        shard = f"{first // per_shard:05d}"
        samples = []
        for number in range(first, min(first + per_shard, num_samples)):
            key = f"{shard}{number - first:06d}"
            columns = {"url": url_of(name, key), "caption": f"<b>{name} {number}</b>", "label": number}
            samples.append(Sample(key, encode(number), "jpg", columns))
        write_shard(str(folder / name), shard, samples)
    finish_dataset(str(folder / name), recipe_digest="test")
    return str(folder / name)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three datasets, of 47, 31 and 26 samples, by name."""
    folder = tmp_path_factory.mktemp("datasets")
    return {name: _write(folder, name, size) for name, size in (("large", 47), ("mid", 31), ("small", 26))}


@pytest.fixture
def mixture(datasets: dict[str, str]) -> Mixture:
    """Two of them, over 4 lanes."""
    return Mixture(
        seed=3,
        lanes=4,
        image_size=16,
        sources=(
            Source(name="large", url=datasets["large"], weight=0.75, chunk_samples=3, shuffle_window=24),
            Source(name="small", url=datasets["small"], weight=0.25, chunk_samples=2, shuffle_window=8),
        ),
        augment=Augment(scale=(0.3, 1.0)),
        decode_threads=2,
        io_threads=2,
        index_cache="none",
        max_bad_fraction=1.0,
    )


def _damage(url: str, numbers: Sequence[int]) -> None:
    """Spoil the pictures of some samples of a dataset."""
    dataset = open_dataset(url)
    starts = np.concatenate([[0], np.cumsum(dataset.shards.num_samples)])
    for number in numbers:
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        row = dataset.index(shard).slice(number - int(starts[shard]), 1).to_pylist()[0]
        path = Path(dataset.tar_url(shard))
        data = bytearray(path.read_bytes())
        data[row["offset"] + row["size"] // 2] ^= 0xFF
        path.write_bytes(data)


def _flush(records: Sequence[StepRecord]) -> None:
    sent: list[Sequence[float]] = []

    def send(values: Sequence[float]) -> Sequence[float]:
        sent.append(values)
        return values

    for record in records[1:]:
        record.flush(send)
    records[0].flush(lambda values: [sum(column) for column in zip(values, *sent, strict=True)])


def _run(mixture: Mixture, out: Path, *, first: int, last: int, world_size: int = 1) -> list[Row]:
    """Do the steps behind `first` up to `last` as the trainer does, and return what their batches held."""
    out.mkdir(parents=True, exist_ok=True)
    data = {"out": str(out), "global_batch": GLOBAL_BATCH, "mixture": config_to_dict(mixture)}
    (out / "run.yaml").write_text(yaml.safe_dump(data))
    names = [source.name for source in mixture.sources]
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        ranks = range(world_size)
        records = [StepRecord(None if rank else out / FILE, global_batch=GLOBAL_BATCH, step=first) for rank in ranks]
        stack.callback(records[0].close)
        streams = [
            stack.enter_context(open_stream(mixture, global_batch=GLOBAL_BATCH, rank=rank, world_size=world_size))
            for rank in ranks
        ]
        for stream in streams:
            stream._begin_at(first)
        for step in range(first + 1, last + 1):
            for record, stream in zip(records, streams, strict=True):
                batch = next(stream)
                record.add(batch)
                columns = (batch.position.tolist(), batch.source.tolist(), batch.key)
                rows += [(step, place, names[source], key) for place, source, key in zip(*columns, strict=True)]
        if last > first:
            _flush(records)
        _save(out, last, streams[0].state_dict(), data)
    return sorted(rows)


def _save(out: Path, step: int, state: dict[str, object], config: dict[str, object]) -> None:
    folder = out / "checkpoints" / f"{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "stream": state, "config": config}))
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "train", "step": step}) + "\n")


@pytest.fixture(scope="session")
def run() -> Callable[..., list[Row]]:
    """`run(mixture, out, first=, last=, world_size=)`: the rows of all batches."""
    return _run


@pytest.fixture(scope="session")
def damage() -> Callable[[str, Sequence[int]], None]:
    """`damage(dataset, numbers)`."""
    return _damage


@pytest.fixture
def traced_run(mixture: Mixture, tmp_path: Path) -> Path:
    """A run of eight steps."""
    _run(dataclasses.replace(mixture), tmp_path / "run", first=0, last=8)
    return tmp_path / "run"
