"""How a step is computed changes nothing of it: compiled, computed again, in another kernel, it is the same step."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from headrace.pipeline import Batch
from headrace.train.config import load_run
from headrace.train.execution import Execution, choose_execution
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.head_rows import padded, padded_with_others, predicting_rows
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.runs.metrics import read_metrics

# Dynamo looks at attributes of tensors that are no leaves, and is warned of it by torch.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

CPU = torch.device("cpu")
SMALL = AimConfig(kind="aim", model="tiny", patch=4, width=32, depth=3, heads=2, head_width=12, head_depth=2)


def small_aim(execution: Execution) -> Aim:
    objective = build_objective(SMALL, image_size=16, seed=7)
    assert isinstance(objective, Aim)
    objective.run_as(execution)
    return objective


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Stages are traced and differentiated as when they are compiled, and run without a compiler of C++."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend=counter, **how))
    return counter


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_compiled_blocks_give_the_same_step_and_compile_once_for_all_prefixes(
    graphs: CompileCounterWithBackend, make_batch: Callable[..., Batch], recompute: Any
) -> None:
    plain, compiled = small_aim(Execution()), small_aim(Execution(compiled=True, recompute=recompute))
    lengths = set()
    for first in range(0, 24, 4):
        batch = make_batch(4, first=first)
        losses = []
        for objective in (plain, compiled):
            objective.zero_grad()
            loss, _ = objective(batch)
            loss.backward()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
        # One graph for the trunk's three blocks, one for the head's two, whatever the prefixes are.
        assert graphs.frame_count == 2
        lengths.add(len(compiled._head_rows(predicting_rows(compiled.prefixes(batch), batch.valid, 16), 4)[0]))
    assert len(lengths) > 2
    with torch.no_grad():
        assert float(compiled(batch)[0]) == pytest.approx(losses[0], rel=1e-6)


@torch.no_grad()
def test_a_block_mask_of_other_prefixes_needs_no_new_graph(
    graphs: CompileCounterWithBackend, make_batch: Callable[..., Batch]
) -> None:
    plain, flex = small_aim(Execution()), small_aim(Execution(compiled=True, flex=True))
    for first in range(0, 16, 4):
        batch = make_batch(4, first=first)
        assert float(flex(batch)[0]) == pytest.approx(float(plain(batch)[0]), rel=1e-5)
        assert graphs.frame_count == 2


def test_names_of_weights_are_the_same_when_compiled(graphs: CompileCounterWithBackend) -> None:
    assert list(small_aim(Execution(compiled=True)).state_dict()) == list(small_aim(Execution()).state_dict())
    assert not graphs.frame_count


def test_the_head_has_few_lengths_of_distinct_rows() -> None:
    rng, images, patches = np.random.default_rng(0), 64, 256
    lengths = set()
    for _ in range(300):
        count = int((patches - rng.integers(1, patches, images)).sum())
        rows = np.sort(rng.choice(images * patches, count, replace=False))
        got, kept = padded_with_others(rows, images * patches)
        assert kept == count
        assert got[:count].tolist() == rows.tolist()
        assert len(np.unique(got)) == len(got) == len(padded(rows, images * patches)[0])
        lengths.add(len(got))
    assert len(lengths) <= 9  # of 32
    few, kept = padded_with_others(np.array([], np.int64), 16)
    assert (len(few), kept) == (0, 0)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, Execution()),
        ({"bf16": True}, Execution()),
        ({"compile": "blocks"}, Execution(compiled=True)),
        ({"recompute": "full"}, Execution(recompute="full")),
        ({"residual": "bf16", "bf16": True}, Execution(residual=torch.bfloat16)),
    ],
)
def test_on_a_cpu_auto_is_what_it_always_was(options: dict[str, Any], chosen: Execution) -> None:
    assert choose_execution(CPU, **options) == chosen


def test_on_cuda_auto_is_the_fast_way(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cuda, found = torch.device("cuda", 0), [object()]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: found[0])
    fast = Execution(compiled=True, flex=True, residual=torch.bfloat16)
    assert choose_execution(cuda, bf16=True) == fast
    assert str(fast) == "compile blocks, attention flex, checkpointing none, residual stream bfloat16"
    assert choose_execution(cuda, bf16=False) == Execution(compiled=True, flex=True)
    assert choose_execution(cuda, bf16=True, compile="off", attention="sdpa", residual="fp32") == Execution()
    found[0] = None  # type: ignore[call-overload]
    assert choose_execution(cuda) == Execution()
    assert "triton is not installed" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention=flex", "attention is flex, whose backward needs a CUDA device, not cpu"),
        ("residual=bf16", "residual is bf16, but the forward pass runs in fp32"),
        ("compile=all", "compile: input should be 'auto', 'off' or 'blocks'"),
        ("activation_checkpointing=some", "activation_checkpointing: input should be"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(
    run_file: Callable[..., Path], override: str, message: str
) -> None:
    path = run_file()
    with pytest.raises(ValueError, match=message):
        train(load_run(path, [override]))
    assert not (path.parent / "run" / "metrics.jsonl").exists()


def test_narrow_heads_fall_back_to_dense_masks(caplog: pytest.LogCaptureFixture) -> None:
    config = AimConfig(kind="aim", model="tiny", patch=4, width=16, depth=1, heads=2, head_width=12, head_depth=1)
    objective = build_objective(config, image_size=16, seed=0)
    with caplog.at_level(logging.WARNING):
        objective.run_as(Execution(flex=True))
    assert not objective.execution.flex
    assert "heads of 8 channels" in caplog.text


def losses(folder: str) -> list[Any]:
    return [(line["event"], line["loss"]) for line in read_metrics(Path(folder) / "metrics.jsonl")]


def test_a_run_goes_on_when_it_is_computed_otherwise(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """Recomputing changes no bit, so half a run so and half a run otherwise is the run."""
    path = run_file(steps=6)
    whole = load_run(path)
    train(whole)
    for recompute in ("selective", "full"):
        again = load_run(path, [f"out={tmp_path / recompute}", f"activation_checkpointing={recompute}"])
        shutil.copytree(whole.out, again.out)
        shutil.rmtree(Path(again.out) / "checkpoints" / "00000006")
        (Path(again.out) / "model.safetensors").unlink()
        assert train(again).finished
        assert losses(again.out) == losses(whole.out)


@pytest.mark.full
def test_a_run_of_compiled_blocks_is_the_run(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """With the compiler itself: one to two minutes on two cores."""
    torch._dynamo.reset()
    path = run_file(steps=4)
    plain = load_run(path)
    compiled = load_run(path, [f"out={tmp_path / 'compiled'}", "compile=blocks"])
    train(plain)
    train(compiled)
    for (event, loss), (other, value) in zip(losses(plain.out), losses(compiled.out), strict=True):
        assert event == other
        assert loss == pytest.approx(value, rel=1e-4)


@pytest.mark.cuda
def test_the_fast_step_is_the_plain_step_on_cuda(make_batch: Callable[..., Batch]) -> None:
    """Loss and gradients in bf16 against fp32, fast and plain: the fast way is no farther off than twice the plain."""
    torch._dynamo.reset()
    config = AimConfig(kind="aim", model="tiny", patch=2, width=128, depth=2, heads=2, head_width=64, head_depth=2)
    batch = make_batch(16, side=32)
    gradients = []
    for bf16, execution in (
        (False, Execution()),
        (True, Execution()),
        (True, Execution(compiled=True, flex=True, residual=torch.bfloat16)),
        (True, Execution(compiled=True, flex=True, residual=torch.bfloat16, recompute="selective")),
        (True, Execution(compiled=True, flex=True, recompute="full")),
    ):
        objective = build_objective(config, image_size=32, seed=1).cuda()
        objective.run_as(execution)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss, _ = objective(batch)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    exact, plain, *fast = gradients
    bound = max(0.02, 2 * float((plain - exact).norm() / exact.norm()))
    assert all(float((one - exact).norm() / exact.norm()) < bound for one in fast)


@pytest.mark.cuda
def test_a_step_waits_for_the_device_once(make_batch: Callable[..., Batch]) -> None:
    """Where its loss is read; CUDA raises an error for any other wait."""
    torch._dynamo.reset()
    config = AimConfig(kind="aim", model="tiny", patch=2, width=64, depth=2, heads=2, head_width=64, head_depth=2)
    objective = build_objective(config, image_size=32, seed=1).cuda()
    objective.run_as(choose_execution(torch.device("cuda"), bf16=True))
    optimizer = AdamWConfig().build(objective)
    batches = [make_batch(16, side=32, first=first) for first in range(0, 64, 16)]
    batches = [dataclasses.replace(batch, images=torch.from_numpy(batch.images).cuda()) for batch in batches]
    for number, batch in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss, _ = objective(batch)
            (loss / objective.num_terms(batch)).backward()
            norm = nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            values = torch.stack([loss.detach(), norm])
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert np.isfinite(values.tolist()).all()


@pytest.mark.cuda
def test_a_run_on_cuda_is_the_run_of_the_cpu(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """Up to the rounding of bf16; and it goes on from its checkpoint."""
    torch._dynamo.reset()
    path = run_file(steps=6)
    same = ["objective.width=32", "mixture.decoder=turbo"]  # another decoder would give other pixels
    cpu = load_run(path, same)
    cuda = load_run(path, [*same, f"out={tmp_path / 'cuda'}", "device=cuda"])
    train(cpu)
    train(cuda)
    on_cuda = losses(cuda.out)
    assert [loss for _, loss in on_cuda] == pytest.approx([loss for _, loss in losses(cpu.out)], rel=0.02)
    shutil.rmtree(Path(cuda.out) / "checkpoints" / "00000006")
    (Path(cuda.out) / "model.safetensors").unlink()
    assert train(cuda).finished
    assert [loss for _, loss in losses(cuda.out)] == pytest.approx([loss for _, loss in on_cuda], rel=1e-3)
