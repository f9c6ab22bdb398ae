"""The scripts in examples/loops: 20 steps under the real frameworks, killed and continued, with every planned sample.

Each script is run as it is, once without a stop and once killed in the middle and run again. The log of batches and
steps must be the plan, and the last weights must be the same bits.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from headrace.config import config_to_dict
from headrace.pipeline import Mixture, Source

pytestmark = pytest.mark.full

LOOPS = Path(__file__).parents[2] / "examples" / "loops"
WATCHED = Path(__file__).parent / "watched_program.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
GLOBAL_BATCH, STEPS, KILL_AT = 16, 20, 13


def saved(path: str, part: str) -> Callable[[Path], dict[str, Tensor]]:
    return lambda out: dict(torch.load(out / path, weights_only=False)[part])


def tensors(path: str) -> Callable[[Path], dict[str, Tensor]]:
    return lambda out: safetensors.torch.load_file(out / path)


EXAMPLES = [
    pytest.param("train_ddp.py", TORCHRUN, saved("last.pt", "model"), id="ddp"),
    pytest.param("train_lightning.py", (), saved("last.ckpt", "state_dict"), id="lightning"),
    pytest.param("train_lightning.py", TORCHRUN, saved("last.ckpt", "state_dict"), id="lightning of two processes"),
    pytest.param("train_accelerate.py", TORCHRUN, tensors("step-000020/model.safetensors"), id="accelerate"),
    pytest.param("train_hf_trainer.py", (), tensors("checkpoint-20/model.safetensors"), id="trainer"),
    pytest.param("train_hf_trainer.py", TORCHRUN, tensors("checkpoint-20/model.safetensors"), id="trainer of two"),
    pytest.param("train_open_clip.py", (), saved("last.pt", "model"), id="open_clip"),
]


@pytest.fixture
def mixture_file(dataset: str, tmp_path: Path) -> Path:
    """One view of the pairs over 4 lanes, as a file."""
    mixture = Mixture(
        seed=5,
        lanes=4,
        image_size=16,
        sources=(Source(name="noise", url=dataset, chunk_samples=4, shuffle_window=32),),
        decode_threads=1,
        io_threads=1,
        read_timeout_seconds=60.0,
    )
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    return path


def run(launcher: tuple[str, ...], log: Path, kill_at: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script under a launcher; two processes compute in one thread each."""
    command = [sys.executable, *launcher, str(WATCHED), str(log), str(kill_at), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def read_log(log: Path) -> list[list[Any]]:
    """Return for each rank what it did: positions of a batch, or "step"."""
    ranks = sorted(log.parent.glob(log.name + ".*"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in ranks]


def check_plan(ranks: list[list[Any]], steps: range) -> None:
    """Each batch is followed by one step, and all ranks together have the positions of those steps, each once."""
    assert ranks
    batches = []
    for done in ranks:
        assert done[1::2] == ["step"] * len(steps)
        batches.append(done[0::2])
    for step, parts in zip(steps, zip(*batches, strict=True), strict=True):
        got = sorted(position for part in parts for position in part)
        assert got == list(range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH))


@pytest.mark.parametrize(("script", "launcher", "weights"), EXAMPLES)
def test_a_killed_run_continues_with_the_samples_and_weights_of_one_without_a_stop(
    script: str,
    launcher: tuple[str, ...],
    weights: Callable[[Path], dict[str, Tensor]],
    mixture_file: Path,
    tmp_path: Path,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run(launcher, tmp_path / "whole-log", 0, LOOPS / script, mixture_file, whole)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = read_log(tmp_path / "whole-log")
    assert len(ranks) == (2 if launcher else 1)
    check_plan(ranks, range(STEPS))

    killed = run(launcher, tmp_path / "killed-log", KILL_AT, LOOPS / script, mixture_file, parts)
    assert killed.returncode != 0
    check_plan([rank[: 2 * (KILL_AT - 1)] for rank in read_log(tmp_path / "killed-log")], range(KILL_AT - 1))

    continued = run(launcher, tmp_path / "continued-log", 0, LOOPS / script, mixture_file, parts)
    assert continued.returncode == 0, continued.stderr[-4000:]
    check_plan(read_log(tmp_path / "continued-log"), range(10, STEPS))  # from the checkpoint of step 10

    wanted, got = weights(whole), weights(parts)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def stateful(kind: str) -> str:
    """Return a program that stops a loader in an epoch, continues it in another one, and begins the next epoch."""
    make = {
        "torchdata": "StatefulDataLoader(list(range(12)), batch_size=2, collate_fn=lambda items: {'position': items})",
        "headrace": "StreamLoader(sys.argv[1], batch_size=16, steps_per_epoch=6)",
    }[kind]
    return f"""
import json, sys
from headrace.torch import StreamLoader
from torchdata.stateful_dataloader import StatefulDataLoader
first = {make}
begun = iter(first)
heads = [int(next(begun)["position"][0]) for _ in range(4)]
state = first.state_dict()
second = {make}
second.load_state_dict(state)
rest, following = len(list(second)), len(list(second))
print(len(first), rest, following)
if isinstance(first, StreamLoader):
    first.close(), second.close()
"""


@pytest.mark.parametrize("kind", ["torchdata", "headrace"])
def test_a_state_is_used_as_torchdatas(kind: str, mixture_file: Path) -> None:
    done = program(stateful(kind), mixture_file)
    assert done.stdout.split() == ["6", "2", "6"], done.stderr[-2000:]


def program(text: str, *arguments: object, launcher: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program given as text; under a launcher from a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", *launcher, *(() if launcher else ("-c", text)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


ENDLESS_LIGHTNING = """
import runpy, sys
import lightning
from headrace import torch as ours
genuine = ours.StreamLoader
def endless(*arguments, steps_per_epoch, **options):
    return genuine(*arguments, **options)
ours.StreamLoader = endless
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_lightning_is_refused_an_endless_loader_whose_checkpoints_would_skip_a_batch(
    mixture_file: Path, tmp_path: Path
) -> None:
    done = program(ENDLESS_LIGHTNING, LOOPS / "train_lightning.py", mixture_file, tmp_path)
    assert done.returncode == 1
    assert "ValueError: Lightning takes one batch more than it trains on" in done.stderr


WRAPPED_IN_ACCELERATE = """
import sys
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset
from headrace.torch import StreamLoader

class Wrapped(IterableDataset):
    def __iter__(self):
        return iter(loader)

accelerator = Accelerator(cpu=True)
loader = StreamLoader(sys.argv[1], batch_size=8, steps_per_epoch=2, form="tuple")
try:
    list(accelerator.prepare(DataLoader(Wrapped(), batch_size=None)))
except ValueError as error:
    print(error)
loader.close()
"""


def test_accelerate_is_refused_a_dataloader_around_a_rank(mixture_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrapped.py"
    path.write_text(WRAPPED_IN_ACCELERATE)
    done = program("", path, mixture_file, launcher=TORCHRUN)
    assert "gives each rank a part of this stream and drops what the other ranks read" in done.stdout, done.stderr


def test_a_trainer_that_would_skip_batches_is_told_what_to_set(mixture_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "skipping.py"
    text = (LOOPS / "train_hf_trainer.py").read_text()
    assert "ignore_data_skip=True" in text
    script.write_text(text.replace("ignore_data_skip=True", "ignore_data_skip=False"))
    run((), tmp_path / "log", 8, script, mixture_file, tmp_path / "out")
    done = run((), tmp_path / "log", 0, script, mixture_file, tmp_path / "out")
    assert done.returncode == 1
    assert "nothing needs to be skipped: load its state (with Hugging Face's Trainer set ignore_data_skip=True" in (
        done.stderr
    )
