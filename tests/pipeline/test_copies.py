"""Copies of a stream in other processes: refused in one line, or each batch once; never doubled in silence."""

import copy
import dataclasses
import json
import logging
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from headrace.config import config_to_dict
from headrace.pipeline import Mixture, copies, open_stream

LOADER = """
import sys, torch
from headrace.pipeline import open_stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

class Ours(IterableDataset):
    def __init__(self, path, where):
        self.path, self.where = path, where
        self.stream = open_stream(path, global_batch=8, once=True) if where == "main" else None
    def __iter__(self):
        stream, info = self.stream, get_worker_info()
        if self.where == "worker":
            stream = open_stream(self.path, global_batch=8, once=True)
        elif self.where == "shard":
            stream = open_stream(self.path, global_batch=8, once=True, rank=info.id, world_size=info.num_workers)
        for batch in stream:
            yield batch.position[batch.valid].tolist()

for where, workers in (("main", 0), ("main", 1), ("main", 2), ("worker", 1), ("worker", 2), ("shard", 2)):
    how = "fork" if workers else None
    data = DataLoader(Ours(sys.argv[1], where), batch_size=None, num_workers=workers, multiprocessing_context=how)
    try:
        print(sorted(position for batch in data for position in batch) == list(range(64)))
    except ValueError as error:
        print(str(error).strip().splitlines()[-1])
"""


@pytest.fixture
def mixture_file(mixture: Mixture, tmp_path: Path) -> Path:
    """The mixture as a file for a program."""
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    return path


def run(program: str, *arguments: object) -> str:
    """Run a program; return what it printed."""
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_a_dataloader_gives_each_sample_once_or_says_why_not(mixture_file: Path) -> None:
    refused = "ValueError: the stream was opened "
    for said, expected in zip(
        run(LOADER, mixture_file).splitlines(),
        [
            "True",
            refused + "before worker 0 of 1 of a DataLoader was forked off",
            refused + "before worker 0 of 2 of a DataLoader was forked off",
            "True",
            refused + "as rank 0 of 1 in worker 0 of 2 of a DataLoader",
            "True",
        ],
        strict=True,
    ):
        assert said.startswith(expected)
        assert said == "True" or "num_workers=0" in said


FORKED = """
import os, sys
from headrace.pipeline import open_stream
stream = open_stream(sys.argv[1], global_batch=8)
if os.fork() == 0:
    try:
        next(stream)
    except ValueError as error:
        print(error, flush=True)
    stream.close()
    os._exit(0)
os.wait()
next(stream)
stream.close()
print(stream.position)
"""


def test_a_stream_that_was_opened_before_a_fork_is_refused_there(mixture_file: Path) -> None:
    said, position = run(FORKED, mixture_file).splitlines()
    assert said == "the stream was opened before this process was forked off; open it in this one"
    assert position == "8"


AFTER_CLOSE = """
import os, signal, sys, threading, time
import cv2, numpy as np
from headrace.pipeline import open_stream

def use_opencv():
    cv2.cvtColor(np.zeros((8, 8, 4), np.uint8), cv2.COLOR_RGBA2RGB)

hung = 0
for _ in range(12):
    with open_stream(sys.argv[1], global_batch=8) as stream:
        next(stream)
    child = os.fork()
    if not child:
        thread = threading.Thread(target=use_opencv)
        thread.start()
        thread.join()
        os._exit(0)
    deadline = time.monotonic() + 100
    while not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.002)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            hung += 1
            break
print(hung)
"""


def test_a_fork_right_after_close_does_not_hang(mixture: Mixture, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(dataclasses.replace(mixture, decode_threads=16))))
    assert run(AFTER_CLOSE, path) == "0"


def test_a_stream_is_not_pickled_or_copied(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a stream cannot be copied"):
                duplicate(stream)  # type: ignore[operator]


class _Group:
    """What is asked of torch.distributed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.size


def test_a_rank_that_is_not_the_process_groups_is_warned_of(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed", _Group(1, 4))  # type: ignore[arg-type]
    open_stream(mixture, global_batch=8, rank=1, world_size=4).close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    open_stream(mixture, global_batch=8).close()
    (said,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith("the stream is rank 0 of 1, this process is rank 1 of 4 of its group: ")


def test_a_rank_that_accelerate_would_deal_out_is_refused(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("accelerate.data_loader")
    exec(  # the two classes that deal batches out, as far as a frame shows them
        "class DataLoaderDispatcher:\n"
        "    def __init__(self, num_processes):\n"
        "        self.num_processes = num_processes\n"
        "    def first(self, stream):\n"
        "        return next(stream)\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "accelerate.data_loader", module)
    with open_stream(mixture, global_batch=8, rank=1, world_size=2) as stream:
        with pytest.raises(ValueError, match=r"accelerate .DataLoaderDispatcher. .* do not `prepare` its DataLoader"):
            module.DataLoaderDispatcher(2).first(stream)
        assert module.DataLoaderDispatcher(1).first(stream).position.size == 4
    # A stream that every rank opens whole is dealt out rightly.
    with open_stream(mixture, global_batch=8) as stream:
        assert module.DataLoaderDispatcher(2).first(stream).position.size == 8


def test_the_own_process_is_no_copy() -> None:
    copies.refuse_copy(os.getpid(), begun=True)
    copies.refuse_worker(0, 1)
    copies.refuse_dispatch(2)
