"""A small labelled, captioned dataset on disk, a run file over it, batches without a stream, and jobs of processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
import yaml

from headrace.pipeline import Batch
from headrace.shards.write import Sample, finish_dataset, write_shard
from tests.ports import free_port

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two cores are shared by several test processes; more threads only make small matrices slower."""
    torch.set_num_threads(1)


def draw(number: int, side: int) -> np.ndarray:
    """Return a gradient in one of three colours, the same for the same number."""
    rng = np.random.default_rng(number)
    ramp = np.add.outer(np.arange(side) * rng.uniform(-3, 3), np.arange(side) * rng.uniform(-3, 3))
    colour = np.array(list(COLOURS.values())[number % 3])
    return np.clip(ramp[..., None] + colour + rng.normal(0, 8, (side, side, 3)), 0, 255).astype(np.uint8)


def write_pictures(
    folder: Path,
    *,
    samples: int,
    side: int = 32,
    first: int = 0,
    change: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda _, columns: columns,
) -> str:
    """Write a dataset of two shards and return its URL; label and caption say the colour, unless changed."""
    rows = []
    for number in range(first, first + samples):
        jpeg = simplejpeg.encode_jpeg(draw(number, side), quality=95)
        columns = change(number, {"label": number % 3, "caption": f"a {list(COLOURS)[number % 3]} picture"})
        rows.append(Sample(f"{number:06d}", jpeg, "jpg", columns))
    write_shard(str(folder), "00000", rows[: samples // 2])
    write_shard(str(folder), "00001", rows[samples // 2 :])
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., str]:
    """The function `write_pictures`."""
    return write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 96 pictures."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), samples=96)


@pytest.fixture(scope="session")
def other_pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 45 other pictures."""
    return write_pictures(tmp_path_factory.mktemp("other"), samples=45, first=1000)


@pytest.fixture
def run_file(tmp_path: Path, pictures: str, other_pictures: str) -> Callable[..., Path]:
    """Return a function that writes a run file of a tiny AIM, with changes at its top level."""

    def write(name: str = "run", **changes: object) -> Path:
        data = {
            "out": str(tmp_path / name),
            "seed": 3,
            "steps": 12,
            "global_batch": 16,
            "mixture": {
                "seed": 5,
                "lanes": 4,
                "image_size": 16,
                "sources": [{"name": "pictures", "url": pictures, "shuffle_window": 32, "chunk_samples": 4}],
                "augment": {"scale": [0.4, 1.0]},
            },
            "objective": {
                "kind": "aim",
                "model": "tiny",
                "patch": 4,
                "width": 16,
                "depth": 2,
                "heads": 2,
                "head_width": 16,
                "head_depth": 1,
            },
            "validation": {"dataset": other_pictures, "every": 4},
            "checkpoint": {"every": 3, "keep": 10},
            "log_every": 1,
            "device": "cpu",
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**data, **changes}))
        return path

    return write


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Return a function that makes a batch of drawn pictures at consecutive positions."""

    def make(size: int, *, side: int = 16, first: int = 0, valid: list[bool] | None = None, **columns: Any) -> Batch:
        numbers = range(first, first + size)
        captions = [f"a {list(COLOURS)[number % 3]} picture {number}" for number in numbers]
        return Batch(
            images=np.stack([draw(number, side) for number in numbers]),
            columns={"caption": captions, "label": np.array([number % 3 for number in numbers]), **columns},
            position=np.arange(first, first + size, dtype=np.int64),
            source=np.zeros(size, np.int32),
            key=[f"{number:06d}" for number in numbers],
            valid=np.array([True] * size if valid is None else valid),
            waited_seconds=0.0,
        )

    return make


class Nursery:
    """Starts processes that have everything imported."""

    def __init__(self) -> None:
        self.environment = {
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        command = [sys.executable, str(Path(__file__).with_name("nursery_program.py"))]
        self._process = subprocess.Popen(
            command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: object) -> int | None:
        """Return the answer: a pid, an exit code, or None for a process that has not ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=100)


class Child:
    """A process of the nursery."""

    def __init__(
        self, nursery: Nursery, program: str, arguments: list[str], *, environment: dict[str, str], stderr: Path
    ) -> None:
        self.returncode: int | None = None
        self._nursery, self._stderr = nursery, stderr
        pid = nursery.ask(program=program, arguments=arguments, environment=environment, stderr=str(stderr))
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask(wait=self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def says(self, seconds: float) -> str:
        """Return what it said on stderr, once it has ended."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < end, self._stderr.read_text()
            time.sleep(0.02)
        return self._stderr.read_text()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where the processes of a module's jobs come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def job_of(nursery: Nursery, tmp_path: Path) -> Callable[..., list[Child]]:
    """Return a function that starts `ranks` processes of one job; stderr of each goes to a file."""

    def start(program: str, arguments: list[str], *, ranks: int = 1, **environment: str) -> list[Child]:
        port = str(free_port())
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), **environment}
        return [
            Child(
                nursery,
                program,
                arguments,
                environment={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=tmp_path / f"stderr-{port}-{rank}.txt",
            )
            for rank in range(ranks)
        ]

    return start
