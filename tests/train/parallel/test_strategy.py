"""A model that is spread over processes computes what one process computes, and its checkpoints are anyone's."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import headrace
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.model import chosen_strategy
from headrace.train.objectives.build import build_objective
from headrace.train.optim import OPTIMIZERS
from headrace.train.parallel.ranks import Ranks
from headrace.train.parallel.strategy import ParallelConfig, blocks_of, without_weights
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.runs.weights import read_weights
from tests.ports import free_port

AIM = Path(headrace.__file__).parent / "examples" / "aim-cifar10.yaml"
# Each argument is a run: the run file and its overrides. Each meets on a port of its own.
TRAIN = """
import json, os, sys
from headrace.train.config import load_run
from headrace.train.loop import train

for given in sys.argv[1:]:
    path, *overrides = json.loads(given)
    assert train(load_run(path, overrides)).finished
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
"""
# The weights of a spread model at step 0 are those that one process draws, to the last bit; three classes on two
# processes are two rows and one.
FIRST = """
import os, sys
import torch
from headrace.train.config import load_run
from headrace.train.model import first_weights, place_model
from headrace.train.objectives.build import build_objective
from headrace.train.parallel.layout import piece_of, whole
from headrace.train.parallel.ranks import join_ranks

for path in sys.argv[1:]:
    config = load_run(path, ["parallel.strategy=fsdp"])
    with join_ranks("cpu") as ranks:
        objective, layout = place_model(config, ranks)
        first_weights(config, objective, ranks)
        alone = build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)
        own = objective.state_dict()
        assert own.keys() == alone.state_dict().keys()
        for name, tensor in alone.state_dict().items():
            assert torch.equal(whole(own[name]), tensor), name
        for (name, tensor), (_, buffer) in zip(alone.named_buffers(), objective.named_buffers(), strict=True):
            assert torch.equal(buffer, tensor), name
        held = sum(piece_of(tensor).local.numel() for tensor in objective.parameters())
        assert held < 0.6 * sum(tensor.numel() for tensor in alone.parameters()), held
        assert (layout.shard, layout.num_shards) == (ranks.rank, 2)
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
"""
# Rank 1 cannot write its part: both ranks end with one line, and nothing of the checkpoint is left.
UNWRITTEN = """
import errno, os, sys
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.runs.saving import Save

write = Save.write_part

def failing(save, *given):
    if os.environ["RANK"] == "1":
        raise OSError(errno.EIO, "the disk is broken")
    write(save, *given)

Save.write_part = failing
try:
    train(load_run(sys.argv[1], sys.argv[2:]))
except OSError as error:
    assert "00000002 could not be written" in str(error) and "\\n" not in str(error), error
    assert ("the disk is broken" in str(error)) == (os.environ["RANK"] == "1"), error
    os._exit(0)
sys.exit("this rank went on")
"""
EMA = {"decay": 0.9}
SUPERVISED = {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 1, "heads": 2}


def processes(number: int, program: str, *arguments: str) -> None:
    """Run `program` so many times with the variables that torchrun would set."""
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", program, *arguments]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    running = [
        subprocess.Popen(command, env={**environment, **rank}, stderr=subprocess.PIPE, text=True) for rank in ranks
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0] * number, errors


def told(path: Path, out: Path, *overrides: str) -> str:
    return json.dumps([str(path), f"out={out}", *overrides])


def without_newest(out: Path, name: str) -> Path:
    """A copy of a run that stands at step 3 again."""
    copy = out.parent / name
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "checkpoints" / "00000006")
    (copy / "model.safetensors").unlink()
    shutil.rmtree(copy / "ema")
    return copy


def assert_same_run(out: Path, reference: Path) -> None:
    for one, other in zip(read_metrics(out / "metrics.jsonl"), read_metrics(reference / "metrics.jsonl"), strict=True):
        assert (one["event"], one["step"]) == (other["event"], other["step"])
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)
        places, others = ([mean for mean in line.get("losses", []) if mean is not None] for line in (one, other))
        assert places == pytest.approx(others, rel=1e-5)
        assert one.get("batch_digest") == other.get("batch_digest")
        assert one.get("grad_norm", 0) == pytest.approx(other.get("grad_norm", 0), rel=1e-4)
        assert one.get("ema_loss", 0) == pytest.approx(other.get("ema_loss", 0), rel=1e-5)
    for file in ("model.safetensors", "ema/model.safetensors"):
        weights, expected = load_file(out / file), load_file(reference / file)
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4)


def test_two_processes_fine_tune_as_one_in_full_and_through_adapters(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    """DDP and FSDP2, micro-batches of 3 of each rank's 8, mixup, CutMix, drop path, layer decay, frozen weights."""
    tuned = {"kind": "finetune", "of": SUPERVISED | {"depth": 2}, "num_classes": 3}
    full = tuned | {"label_smoothing": 0.1, "drop_path": 0.4, "mix": {"mixup": 0.8, "cutmix": 1.0}}
    thin = tuned | {"head": "attentive", "mix": {"mixup": 0.8}, "lora": {"rank": 4}}
    paths = [
        run_file("full", objective=full, ema=EMA, steps=3, images_per_micro_batch=3, optimizer={"layer_decay": 0.7}),
        run_file("thin", objective=thin, ema=EMA, steps=3, images_per_micro_batch=3, optimizer={"lr": 0.01}),
    ]
    runs = [(path, how, tmp_path / f"{path.stem}-{how}") for path in paths for how in ("ddp", "fsdp")]
    processes(2, TRAIN, *(told(path, out, f"parallel.strategy={how}") for path, how, out in runs))
    for path in paths:
        alone = train(load_run(path, ["images_per_micro_batch=16"])).out
        for _, _, out in (run for run in runs if run[0] == path):
            assert_same_run(out, alone)


def test_two_processes_with_a_spread_model_are_one(run_file: Callable[..., Path], tmp_path: Path) -> None:
    path = run_file(steps=3, images_per_micro_batch=3, ema=EMA, validation={"dataset": other_set(run_file), "every": 3})
    beside = "checkpoint.asynchronous=true"
    processes(2, TRAIN, told(path, tmp_path / "fsdp", "parallel.strategy=fsdp", beside))
    assert [path.name for path in (tmp_path / "fsdp" / "checkpoints").iterdir()] == ["00000003"]
    assert train(load_run(path, [f"out={tmp_path / 'alone'}"])).finished
    assert_same_run(tmp_path / "fsdp", tmp_path / "alone")


OPTIONS: dict[str, dict[str, object]] = {
    "linear": {"kind": "aim", "head": "none", "attention": "causal", "order": "spiral", "targets": "pixels"},
    "attending": {"kind": "aim", "head": "transformer", "order": "random", "norm_eps": 1e-5},
    "masked": {"kind": "masked", "mask_ratio": 0.5},
}


def option_runs(run_file: Callable[..., Path]) -> dict[str, Path]:
    size = {"model": "tiny", "patch": 4, "width": 16, "depth": 2, "heads": 2, "head_width": 16, "head_depth": 1}
    validation = {"dataset": other_set(run_file), "every": 6, "samples": 20, "by_place": True}
    every = {"steps": 6, "checkpoint": {"every": 3}, "validation": validation, "ema": EMA}
    return {name: run_file(name, objective=size | options, **every) for name, options in OPTIONS.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_patches_accumulate_and_continue(run_file: Callable[..., Path], tmp_path: Path, name: str) -> None:
    path, alone, parts = option_runs(run_file)[name], tmp_path / "alone", tmp_path / "parts"
    assert [line for line in plan_run(load_run(path)) if line.startswith("activations: ") and "an image in" in line]
    assert train(load_run(path, [f"out={alone}"])).finished
    assert train(load_run(path, [f"out={parts}", "images_per_micro_batch=6"])).finished
    assert_same_run(parts, alone)
    again = without_newest(alone, "again")
    assert train(load_run(path, [f"out={again}"])).finished
    assert [line.get("loss") for line in read_metrics(again / "metrics.jsonl")] == [
        line.get("loss") for line in read_metrics(alone / "metrics.jsonl")
    ]
    weights = load_file(again / "model.safetensors")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in load_file(alone / "model.safetensors").items())


@pytest.mark.full
def test_options_of_patches_are_the_same_run_on_two_processes(run_file: Callable[..., Path], tmp_path: Path) -> None:
    paths, spread = option_runs(run_file), "parallel.strategy=fsdp"
    ddp = [told(path, tmp_path / f"{name}-ddp") for name, path in paths.items()]
    processes(2, TRAIN, *ddp, *(told(path, tmp_path / f"{name}-fsdp", spread) for name, path in paths.items()))
    for name, path in paths.items():
        assert train(load_run(path, [f"out={tmp_path / name}"])).finished
        assert_same_run(tmp_path / f"{name}-ddp", tmp_path / name)
        assert_same_run(tmp_path / f"{name}-fsdp", tmp_path / name)


def other_set(run_file: Callable[..., Path]) -> str:
    validation = load_run(run_file("named")).validation
    assert validation is not None
    return validation.dataset


@pytest.mark.full
def test_fsdp_is_ddp_is_one_process_and_either_continues_the_other(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = run_file(steps=6, images_per_micro_batch=3, ema=EMA)
    alone, ddp, fsdp = tmp_path / "alone", tmp_path / "ddp", tmp_path / "fsdp"
    spread = "parallel.strategy=fsdp"
    processes(2, TRAIN, told(path, ddp), told(path, fsdp, spread))
    assert train(load_run(path, [f"out={alone}"])).finished
    assert_same_run(ddp, alone)
    assert_same_run(fsdp, alone)

    ddp_then_fsdp, fsdp_then_ddp = without_newest(ddp, "df"), without_newest(fsdp, "fd")
    fsdp_again, fsdp_then_one = without_newest(fsdp, "ff"), without_newest(fsdp, "f1")
    processes(2, TRAIN, told(path, ddp_then_fsdp, spread), told(path, fsdp_then_ddp), told(path, fsdp_again, spread))
    assert train(load_run(path, [f"out={fsdp_then_one}"])).finished
    for out in (ddp_then_fsdp, fsdp_then_ddp, fsdp_then_one):
        assert_same_run(out, alone)
    losses = [[line["loss"] for line in read_metrics(out / "metrics.jsonl")] for out in (fsdp_again, fsdp, alone)]
    assert losses[0] == losses[1]

    low = tmp_path / "low"
    processes(2, TRAIN, told(path, low, spread, "precision=bf16", "activation_checkpointing=selective"))
    assert [line["loss"] for line in read_metrics(low / "metrics.jsonl")] == pytest.approx(losses[2], rel=1e-2)

    # Whoever reads a run reads one whose weights lie in parts.
    parts = sorted(name.name for name in (fsdp / "checkpoints" / "00000006").iterdir())
    assert parts[:4] == [f"{kind}-0000{n}-of-00002.safetensors" for kind in ("ema", "model") for n in (1, 2)]
    tensors = read_weights(fsdp / "checkpoints" / "00000006").tensors
    for name, tensor in load_file(fsdp / "model.safetensors").items():
        assert torch.equal(tensors[name], tensor)
    averages = read_weights(fsdp / "checkpoints" / "00000006" / "ema").tensors
    for name, tensor in load_file(fsdp / "ema" / "model.safetensors").items():
        assert torch.equal(averages[name], tensor)


@pytest.mark.full
def test_four_processes_two_replicas_and_other_world_sizes(run_file: Callable[..., Path], tmp_path: Path) -> None:
    path = run_file(steps=6, ema=EMA)
    alone, four, hybrid = tmp_path / "alone", tmp_path / "four", tmp_path / "hybrid"
    spread, twice = "parallel.strategy=fsdp", "parallel.replicas=2"
    assert train(load_run(path, [f"out={alone}"])).finished
    processes(4, TRAIN, told(path, four, spread), told(path, hybrid, spread, twice))
    assert_same_run(four, alone)
    assert_same_run(hybrid, alone)
    assert len(list((four / "checkpoints" / "00000006").glob("model-*"))) == 4
    assert len(list((hybrid / "checkpoints" / "00000006").glob("model-*"))) == 2

    two, one = without_newest(four, "two"), without_newest(hybrid, "one")
    processes(2, TRAIN, told(path, two, spread))
    assert train(load_run(path, [f"out={one}"])).finished
    more, ddp = without_newest(alone, "more"), without_newest(two, "ddp")
    processes(4, TRAIN, told(path, more, spread, twice), told(path, ddp))
    for out in (two, one, more, ddp):
        assert_same_run(out, alone)


@pytest.mark.full
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_part_that_one_process_cannot_write_ends_all(
    run_file: Callable[..., Path], tmp_path: Path, asynchronous: str
) -> None:
    path = run_file(checkpoint={"every": 2})
    processes(2, UNWRITTEN, str(path), "parallel.strategy=fsdp", f"checkpoint.asynchronous={asynchronous}")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_the_first_weights_of_a_spread_model_are_those_of_one_process(run_file: Callable[..., Path]) -> None:
    supervised = run_file("supervised", objective=SUPERVISED)
    processes(2, FIRST, str(run_file()), str(supervised))


def test_modules_made_without_weights_have_their_buffers(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file())
    with without_weights():
        objective = built(config)
    assert all(parameter.is_meta for parameter in objective.parameters())
    for (name, buffer), (_, expected) in zip(objective.named_buffers(), built(config).named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert not nn.Linear(2, 2).weight.is_meta
    assert [type(block).__name__ for block in blocks_of(objective)] == ["Block", "Block", "HeadBlock"]


def built(config: RunConfig) -> nn.Module:
    return build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)


def test_shared_weights_stay_shared_without_memory() -> None:
    with without_weights():
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second.weight = first.weight
    assert second.weight is first.weight


def test_auto_spreads_what_would_fill_half_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    cuda, cpu = (Ranks(rank=0, size=8, device=torch.device(kind)) for kind in ("cuda", "cpu"))
    auto = ParallelConfig()
    assert auto.choose(cuda, held_bytes=lambda: 16 * 1_617_478_220) == "ddp"
    assert auto.choose(cuda, held_bytes=lambda: 16 * 3_130_230_348) == "fsdp"
    assert auto.choose(cpu, held_bytes=lambda: 16 * 6_857_706_060) == "ddp"
    one = Ranks(rank=0, size=1, device=torch.device("cpu"))
    assert ParallelConfig(strategy="fsdp").choose(one, held_bytes=lambda: 1) == "alone"


@pytest.mark.parametrize("kind", ["adamw", "lars", "adafactor"])
def test_auto_counts_what_the_optimizer_keeps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as its own state holds behind a step, beside weights and gradients; half of a GPU more is spread."""
    config = replace(load_run(AIM), optimizer=OPTIMIZERS[kind]())
    objective = built(config)
    optimizer = config.optimizer.build(objective)
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    kept = sum(value.numel() * value.element_size() for value in tensors if value.numel() > 1)
    numbers = sum(parameter.numel() for parameter in objective.parameters())
    held = 8 * numbers + kept
    cuda = Ranks(rank=0, size=2, device=torch.device("cuda"))
    for memory, strategy in ((2 * held + 8192, "ddp"), (2 * held - 8192, "fsdp")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, m=memory: SimpleNamespace(total_memory=m))
        assert chosen_strategy(config, cuda) == strategy


def test_replicas_must_divide_and_need_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(rank=0, size=16, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="which does not divide the 16 processes"):
        ParallelConfig(strategy="fsdp", replicas=3).num_replicas(ranks)
    with pytest.raises(ValueError, match="only strategy fsdp has"):
        ParallelConfig(strategy="ddp", replicas=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert ParallelConfig(replicas=0).num_replicas(ranks) == 2
