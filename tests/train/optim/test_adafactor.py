"""Adafactor against a loop by big_vision's rule, timm's and transformers'; what it keeps, and where that lies."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.models.trunks.big_vision import BigVisionConfig
from headrace.train.models.vit import SelfAttention
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.supervised import SupervisedConfig
from headrace.train.optim.adafactor import AdafactorConfig
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.optim.factors import longest_sides
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from tests.train.optim.test_trust import gradients
from tests.train.parallel.test_strategy import TRAIN, processes, told

STEPS = 50
CONFIGS = {
    dtype: AdafactorConfig(lr=0.002, weight_decay=0.1, momentum_dtype=dtype)  # type: ignore[arg-type]
    for dtype in ("float32", "bfloat16", "none")
}
# Where bf16 is rounded one way or the other, an update moves by one part in 256 of what is kept of it.
TOLERANCE = {"float32": 1.5e-6, "bfloat16": 3.5e-4, "none": 1.5e-6}


class Kernels(nn.Module):
    """Matrices high and wide, one too narrow to be factored, kernels of three and four dimensions, vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = ((48, 33), (32, 40), (40, 31), (3, 36, 32), (34, 2, 40), (36, 3, 4, 4), (40,), (1, 1, 40))
        self.all = nn.ParameterList(nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes)


def moved(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[Tensor]:
    for of_step in gradients(module, steps):
        for parameter, gradient in zip(module.parameters(), of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


def slow(weight: Tensor, of_steps: list[Tensor], config: AdafactorConfig) -> Tensor:
    """One parameter, in float64, as optax's `scale_by_factored_rms` and `ema` are put together by big_vision."""
    longest = sorted(range(weight.ndim), key=lambda side: weight.shape[side])[-2:]
    factored = weight.ndim > 1 and weight.shape[longest[0]] >= 32
    row = column = square = momentum = torch.zeros((), dtype=torch.float64)
    for step, gradient in enumerate(of_steps, start=1):
        kept = min(0.999, 1 - step**-0.8)
        squared = gradient**2 + 1e-30
        if factored:
            d1, d0 = longest
            row = kept * row + (1 - kept) * squared.mean(dim=d0, keepdim=True)
            column = kept * column + (1 - kept) * squared.mean(dim=d1, keepdim=True)
            update = gradient * (row / row.mean(dim=d1, keepdim=True)) ** -0.5 * column**-0.5
        else:
            square = kept * square + (1 - kept) * squared
            update = gradient * square**-0.5
        if config.momentum_dtype != "none":
            update = 0.9 * momentum + 0.1 * update
            momentum = update.bfloat16().double() if config.momentum_dtype == "bfloat16" else update
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        weight = weight - config.lr * (update + decay * weight)
    return weight


@pytest.mark.parametrize("dtype", CONFIGS)
def test_weights_move_as_a_slow_loop_in_float64_moves_them(dtype: str) -> None:
    config, module = CONFIGS[dtype], Kernels()
    begun = [parameter.detach().double() for parameter in module.parameters()]
    of_steps = [list(map(Tensor.double, of_step)) for of_step in gradients(module, STEPS)]
    now = moved(module, config.build(module))
    for number, (weight, got) in enumerate(zip(begun, now, strict=True)):
        expected = slow(weight, [of_step[number] for of_step in of_steps], config)
        assert (expected - weight).abs().max() > 1e-2
        assert (got.double() - expected).abs().max() < TOLERANCE[dtype], list(weight.shape)


@pytest.mark.parametrize("dtype", CONFIGS)
def test_weights_move_as_timm_moves_them(dtype: str) -> None:
    """timm rounds the update to bf16 before it takes it in, big_vision behind that."""
    from timm.optim.adafactor_bv import AdafactorBigVision

    config, module, other = CONFIGS[dtype], Kernels(), Kernels()
    groups = [
        {"params": [p for p in other.parameters() if (p.ndim > 1) == decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    kept = {"momentum": None} if dtype == "none" else {"momentum": 0.9, "momentum_dtype": dtype}
    theirs = AdafactorBigVision(groups, lr=0.002, min_dim_size_to_factor=32, eps=1e-30, **kept)
    for got, expected in zip(moved(module, config.build(module)), moved(other, theirs), strict=True):
        assert (got - expected).abs().max() < (3.5e-4 if dtype == "bfloat16" else 2.4e-7)


@pytest.mark.full
def test_weights_move_as_transformers_moves_them() -> None:
    """Where they are the same: every matrix factored, a rate that stays, no clipping, no scale of the parameter."""
    from transformers.optimization import Adafactor

    module, other = Kernels(), Kernels()
    config = replace(CONFIGS["float32"], min_factored=1, weight_decay=0.0)
    theirs = Adafactor(
        other.parameters(), lr=0.002, eps=(1e-30, 0), clip_threshold=1e9, beta1=0.9, scale_parameter=False,
        relative_step=False, warmup_init=False,
    )  # fmt: skip
    pairs = zip(moved(module, config.build(module)), moved(other, theirs), strict=True)
    same = [got for got, expected in pairs if got.ndim == 1 or (got.ndim == 2 and (got - expected).abs().max() < 2e-6)]
    assert len(same) == 4
    torch.testing.assert_close(module.all[6], other.all[6], atol=2e-6, rtol=0)


def test_what_stays_of_the_second_moment_has_a_limit() -> None:
    """1 - t^-0.8 is over 0.999 from step 5,624 on."""
    for step, share in ((1, 1.0), (32, 0.0625), (5624, 0.001), (10**6, 0.001)):
        module = nn.Linear(1, 1, bias=False)
        optimizer = AdafactorConfig().build(module)
        moved(module, optimizer, 1)
        state = optimizer.state[module.weight]
        state["step"], state["exp_avg_sq"][:] = step - 1, 0.0
        module.weight.grad = torch.ones(1, 1)
        optimizer.step()
        assert float(state["exp_avg_sq"]) == pytest.approx(share, rel=1e-3)


def test_it_keeps_a_quarter_of_what_adam_keeps_and_the_plan_says_so() -> None:
    """ViT-s with attention pooling, 6.0 million parameters; measured on the tensors of both optimizers."""
    config = SupervisedConfig(kind="supervised", num_classes=10, model="s", patch=16, vit=BigVisionConfig())
    objective = build_objective(config, image_size=64, seed=0)
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    kept = {}
    for name, optimizer in (("adafactor", AdafactorConfig()), ("adamw", AdamWConfig())):
        built = optimizer.build(objective)
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        built.step()
        tensors = [x for of in built.state.values() for kind, x in of.items() if kind != "step"]
        kept[name] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    assert kept["adafactor"] == AdafactorConfig().state_bytes(objective)
    assert kept["adamw"] == 8 * numbers
    assert 2.0 * numbers < kept["adafactor"] < 2.2 * numbers
    doubled = AdafactorConfig(momentum_dtype="float32").state_bytes(objective)
    assert (
        doubled - kept["adafactor"]
        == 2 * numbers
        == kept["adafactor"] - AdafactorConfig(momentum_dtype="none").state_bytes(objective)
    )


def test_heads_are_factored_each_by_itself_as_a_slow_loop_in_float64_does() -> None:
    """Against big_vision's kernels of width x heads x width of a head, each of q, k and v and the projection apart."""
    width, heads, wide = 80, 2, 40
    config = replace(CONFIGS["float32"], factor="heads")

    def kernels(weight: Tensor, name: str) -> Tensor:
        """[3, heads, wide, width] of q, k and v; [width, heads, wide] of the projection."""
        return weight.view(3, heads, wide, width) if name == "qkv.weight" else weight.view(width, heads, wide)

    torch.manual_seed(0)
    module = SelfAttention(width, heads, bias=True)
    begun = {name: parameter.detach().double() for name, parameter in module.named_parameters()}
    of_steps = [list(map(Tensor.double, of_step)) for of_step in gradients(module, STEPS)]
    optimizer = config.build(module)
    now = dict(zip(begun, moved(module, optimizer), strict=True))
    for number, (name, weight) in enumerate(begun.items()):
        steps = [of_step[number] for of_step in of_steps]
        if name == "qkv.weight":
            own = [
                torch.stack(
                    [slow(k, [kernels(g, name)[part, head] for g in steps], config) for head, k in enumerate(of_part)]
                )
                for part, of_part in enumerate(kernels(weight, name))
            ]
            expected = torch.stack(own)
        elif name == "proj.weight":
            expected = torch.stack(
                [
                    slow(kernels(weight, name)[:, h], [kernels(g, name)[:, h] for g in steps], config)
                    for h in range(heads)
                ],
                dim=1,
            )
        else:
            expected = slow(weight, steps, config)
        assert (now[name].double() - expected.view_as(weight)).abs().max() < 1.5e-6, name
    kept = sum(x.numel() * x.element_size() for of in optimizer.state.values() for k, x in of.items() if k != "step")
    assert kept == config.state_bytes(module)


def test_only_long_sides_are_factored() -> None:
    for shape, sides in (
        ((48, 33), (0, 1)),
        ((40, 31), None),
        ((36, 3, 14, 14), None),
        ((3, 36, 32), (1, 2)),
        ((99,), None),
    ):
        assert longest_sides(torch.Size(shape), 32) == sides


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"max_decay": -0.1}, r"max_decay must be in \[0, 1\)"),
        ({"min_factored": 0}, "min_factored at least 1"),
        ({"lr": 0.0}, "lr and eps must be above 0"),
        ({"momentum_dtype": "float16"}, "momentum_dtype"),
    ],
)
def test_what_cannot_be_is_refused(run_file: Callable[..., Path], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_run(run_file(optimizer={"kind": "adafactor", **given}))


@pytest.mark.parametrize("name", ["momentum_dtype", "min_factored"])
def test_what_decides_the_form_of_its_state_cannot_change_on_the_way(run_file: Callable[..., Path], name: str) -> None:
    value = {"momentum_dtype": "float32", "min_factored": 16}[name]
    with pytest.raises(ValueError, match=rf"optimizer\.{name} cannot change on the way"):
        load_run(run_file(optimizer={"kind": "adafactor"}, changes_at={4: {f"optimizer.{name}": value}}))


# On each of two processes lie some rows of every parameter; means over rows are those of all rows.
SPREAD = """
import sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from headrace.train.parallel.layout import piece_of, whole
from headrace.train.parallel.ranks import join_ranks
sys.path.insert(0, sys.argv[1])
from tests.train.optim.test_adafactor import CONFIGS, Kernels, gradients, moved

with join_ranks("cpu"):
    mesh = init_device_mesh("cpu", (2,))
    config = CONFIGS["float32"]
    expected, module = moved(alone := Kernels(), optimizer := config.build(alone), 4), Kernels()
    kept = [optimizer.state[parameter] for parameter in alone.parameters()]
    fully_shard(module, mesh=mesh)
    optimizer = config.build(module)
    for of_step in gradients(module, 4):
        for parameter, gradient in zip(module.parameters(), of_step, strict=True):
            rows = piece_of(parameter)
            parameter.grad = torch.zeros_like(parameter)
            piece_of(parameter.grad).local.copy_(gradient[rows.first : rows.first + rows.local.shape[0]])
        optimizer.step()
    for parameter, other, state in zip(module.parameters(), expected, kept, strict=True):
        torch.testing.assert_close(whole(parameter), other, atol=2e-6, rtol=2e-6)
        for kind, tensor in optimizer.state[parameter].items():
            if kind != "step":
                torch.testing.assert_close(whole(tensor), state[kind], atol=1e-6, rtol=1e-5)
"""


def test_of_a_spread_model_means_are_those_of_whole_parameters() -> None:
    processes(2, SPREAD, str(Path(__file__).parents[3]))


# Wide enough that matrices are factored.
OBJECTIVE = {
    "kind": "supervised",
    "num_classes": 3,
    "patch": 4,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "pixels": "centred",
}
OPTIMIZER = {"kind": "adafactor", "lr": 0.003, "decay_multipliers": {"head.*": 100}, "weight_decay": 0.03}


def without_keys(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the biases of keys: no output depends on them, and rounding is all that their gradient is."""
    return {
        name: torch.cat([tensor.chunk(3)[0], tensor.chunk(3)[2]])
        if name.endswith("qkv.bias")
        else tensor.chunk(2)[1]
        if name.endswith("kv.bias")
        else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.full
def test_four_processes_are_two_are_one_and_a_resumed_run_is_bitwise_the_same(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Attention pooling and sigmoid, spread and not; the spread checkpoint of two is continued by one."""
    short = {"steps": 4, "validation": None, "checkpoint": {"every": 2}, "images_per_micro_batch": 3}
    objective = OBJECTIVE | {"vit": {}, "loss": "sigmoid", "class_bias": -10.0}
    path = run_file(objective=objective, optimizer=OPTIMIZER, schedule={"warmup_fraction": 0.0}, **short)
    outs = {(number, how): tmp_path / f"{how}-{number}" for number, how in ((2, "ddp"), (2, "fsdp"), (4, "fsdp"))}
    for number in (2, 4):
        runs = [told(path, out, f"parallel.strategy={how}") for (count, how), out in outs.items() if count == number]
        processes(number, TRAIN, *runs)
    alone = train(load_run(path)).out
    for parent, out in ((alone, tmp_path / "resumed"), (outs[2, "fsdp"], tmp_path / "gathered")):
        train(load_run(path, [f"out={out}", f"continue_from={parent / 'checkpoints' / '00000002'}"]))
    losses, weights = (
        {out.name: read(out) for out in (alone, *outs.values(), tmp_path / "resumed", tmp_path / "gathered")}
        for read in (
            lambda out: [line.get("loss", 0.0) for line in read_metrics(out / "metrics.jsonl")],
            lambda out: without_keys(load_file(out / "model.safetensors")),
        )
    )
    for name, other in weights.items():
        exact = name == "resumed"
        assert losses[name] == pytest.approx(losses["run"], rel=0 if exact else 1e-5, abs=0)
        for key, tensor in weights["run"].items():
            torch.testing.assert_close(other[key], tensor, atol=0 if exact else 1e-5, rtol=0 if exact else 1e-4)


def test_a_killed_run_goes_on_to_the_last_bit_and_its_checkpoint_is_as_long_as_planned(
    run_file: Callable[..., Path],
) -> None:
    path = run_file(objective=OBJECTIVE | {"vit": {}}, optimizer=OPTIMIZER, steps=6, validation=None)
    config = load_run(path)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise KeyboardInterrupt  # as hard as a kill

    with pytest.raises(KeyboardInterrupt):
        train(config, on_metrics=stop)
    out = train(config).out
    whole = train(load_run(path, [f"out={out}-whole"])).out
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [run / "checkpoints" / "00000006" / name for run in (out, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()
    saved = load_file(files[0])
    assert saved["encoder.blocks.0.attn.qkv.weight/exp_avg"].dtype == torch.bfloat16
    assert saved["encoder.blocks.0.attn.qkv.weight/exp_avg_sq_row"].shape == (96,)
    assert saved["encoder.blocks.0.attn.qkv.weight/exp_avg_sq_col"].shape == (32,)
    moments = sum(x.numel() * x.element_size() for name, x in saved.items() if not name.endswith("/step"))
    (line,) = (line for line in plan_run(config) if line.startswith("memory"))
    assert f"moments {moments / 1e6:.2f} MB" in line
    assert json.loads((out / "checkpoints" / "00000006" / "state.json").read_text())["step"] == 6
