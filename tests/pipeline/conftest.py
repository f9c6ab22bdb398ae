"""Small datasets, and the one check that every iterator passes."""

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.pipeline import Augment, Batch, Mixture, Source, Stream
from headrace.shards.write import Sample, finish_dataset, write_shard


def encode(number: int, *, image_format: str = "jpeg", size: tuple[int, int] = (40, 32)) -> bytes:
    """Return a picture of smooth noise."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(sink, image_format.upper())
    return sink.getvalue()


def _write_dataset(folder: Path, num_samples: int, *, per_shard: int = 7) -> str:
    """Write a dataset whose keys are `NNNNN` and whose labels are the sample's number; every third has a caption."""
    for first in range(0, num_samples, per_shard):
        samples = [
            Sample(
                f"{number:05d}",
                encode(number),
                "jpg",
                {"label": number, "caption": f"number {number}"} if number % 3 == 0 else {"label": number},
            )
            for number in range(first, min(first + per_shard, num_samples))
        ]
        write_shard(str(folder), f"{first // per_shard:05d}", samples)
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets, of 45 and of 19 samples."""
    folder = tmp_path_factory.mktemp("datasets")
    return _write_dataset(folder / "large", 45), _write_dataset(folder / "small", 19)


class Passing:
    """A clock of which only `pass_by` makes time pass, and not what else the machine does."""

    def __init__(self) -> None:
        self.now, self._lock = 1000.0, threading.Lock()

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Take so much time; whoever else is at work has the chance to come and wait."""
        time.sleep(0.01)
        with self._lock:
            self.now += seconds


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    """The clock of all statistics. What is measured in one thread must be the only that passes meanwhile."""
    clock = Passing()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(scope="session")
def mixture(datasets: tuple[str, str]) -> Mixture:
    """Both datasets at 0.75 and 0.25, over 4 lanes."""
    return Mixture(
        seed=5,
        lanes=4,
        image_size=16,
        sources=(
            Source(name="large", url=datasets[0], weight=0.75, chunk_samples=3, shuffle_window=24),
            Source(name="small", url=datasets[1], weight=0.25, chunk_samples=2, shuffle_window=8),
        ),
        augment=Augment(scale=(0.3, 1.0)),
        read_timeout_seconds=30.0,  # a busy machine may stall for seconds; tests of time-outs say their own
        decode_threads=2,
        io_threads=2,
        index_cache="none",  # tests of servers count what is asked for; test_indexes.py has caches
    )


def _fingerprint(batch: Batch) -> tuple[object, ...]:
    """Return everything of a batch but the waiting."""
    columns = {name: list(column) for name, column in batch.columns.items()}
    return (
        batch.images.tobytes(),
        repr(columns),
        batch.position.tolist(),
        batch.source.tolist(),
        batch.key,
        batch.valid.tolist(),
    )


def _check_resumes(open_it: Callable[[], Stream], *, steps: int) -> None:
    """From the state after every step, the rest comes out as it did without a stop."""
    states, whole = [], []
    with open_it() as stream:
        for _ in range(steps):
            states.append(stream.state_dict())
            whole.append(_fingerprint(next(stream)))
    for step, state in enumerate(states):
        with open_it() as stream:
            stream.load_state_dict(state)
            assert [_fingerprint(next(stream)) for _ in range(steps - step)] == whole[step:]


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Batch], tuple[object, ...]]:
    """`fingerprint(batch)`: everything of a batch but the waiting."""
    return _fingerprint


@pytest.fixture(scope="session")
def check_resumes() -> Callable[..., None]:
    """`check_resumes(open_it, steps=)`: the one check that every iterator passes."""
    return _check_resumes


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., str]:
    """`write_dataset(folder, num_samples, per_shard=)`."""
    return _write_dataset
