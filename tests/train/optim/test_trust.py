"""LARS and LAMB against slow loops in float64 and against timm's; who is decayed, scaled, and left alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.optim import OptimizerConfig
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.optim.ema import WeightAverage
from headrace.train.optim.lamb import LambConfig
from headrace.train.optim.lars import LarsConfig
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.steady.layer_norms import layers_of
from tests.train.parallel.test_strategy import TRAIN, assert_same_run, processes, told

CONFIGS: dict[str, LarsConfig | LambConfig] = {
    "lars": LarsConfig(lr=2.0, weight_decay=0.05),
    "lars, all": LarsConfig(lr=2.0, weight_decay=0.05, decays="all"),
    "lamb": LambConfig(lr=0.02, weight_decay=0.1),
    "lamb, clipped": LambConfig(lr=0.02, weight_decay=0.1, max_trust=1.0),
    "lamb, all": LambConfig(lr=0.02, weight_decay=0.1, decays="all"),
}
STEPS = 20


def model() -> nn.Module:
    """Matrices, a kernel, biases, a norm; one matrix begins at 0, and has no length to compare with."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.Linear(24, 6, bias=False), nn.Conv2d(3, 4, 2))
    nn.init.zeros_(module.get_parameter("2.weight"))
    return module


def gradients(module: nn.Module, steps: int = STEPS) -> Iterator[list[Tensor]]:
    for step in range(steps):
        drawn = torch.Generator().manual_seed(step)
        yield [torch.randn(p.shape, generator=drawn) * (0.1 + step % 3) for p in module.parameters()]


def moved(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[Tensor]:
    for of_step in gradients(module, steps):
        for parameter, gradient in zip(module.parameters(), of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


def ratio(weight: Tensor, update: Tensor) -> float:
    """Return the trust ratio by loops over numbers."""
    lengths = [sum(float(x) ** 2 for x in tensor.flatten()) ** 0.5 for tensor in (weight, update)]
    return lengths[0] / lengths[1] if all(lengths) else 1.0


def slow_lars(weight: Tensor, of_steps: list[Tensor], config: LarsConfig) -> Tensor:
    """MoCo v3's code, for one parameter: arXiv:1708.03888, algorithm 1."""
    adapted, momentum = weight.ndim > 1 or config.decays == "all", torch.zeros_like(weight)
    for gradient in of_steps:
        update = gradient
        if adapted:
            update = update + config.weight_decay * weight
            scale = ratio(weight, update)
            update = update * (scale if scale == 1.0 else config.trust_coefficient * scale)
        momentum = config.momentum * momentum + update
        weight = weight - config.lr * momentum
    return weight


def slow_lamb(weight: Tensor, of_steps: list[Tensor], config: LambConfig) -> Tensor:
    """arXiv:1904.00962, algorithm 2, for one parameter."""
    adapted, (beta1, beta2) = weight.ndim > 1 or config.decays == "all", config.betas
    first = second = torch.zeros_like(weight)
    for step, gradient in enumerate(of_steps, start=1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        update = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + config.eps)
        if adapted:
            update = update + config.weight_decay * weight
            update = update * min(ratio(weight, update), config.max_trust or 1e9)
        weight = weight - config.lr * update
    return weight


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_move_as_a_slow_loop_in_float64_moves_them(name: str) -> None:
    config, module = CONFIGS[name], model()
    begun = [parameter.detach().double() for parameter in module.parameters()]
    of_steps = [list(map(Tensor.double, of_step)) for of_step in gradients(module)]
    now = moved(module, config.build(module))
    for number, (weight, got) in enumerate(zip(begun, now, strict=True)):
        own = [of_step[number] for of_step in of_steps]
        slow = slow_lars(weight, own, config) if isinstance(config, LarsConfig) else slow_lamb(weight, own, config)
        assert (slow - weight).abs().max() > 1e-3
        torch.testing.assert_close(got.double(), slow, atol=2e-6, rtol=2e-6)


@pytest.mark.full
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_move_as_timm_moves_them(name: str) -> None:
    """timm scales what it decays, and clips a gradient of length over 1 unless told otherwise.

    Its LARS divides by the length of the gradient plus that of the decay, MoCo v3's by that of their sum: with a decay
    as small as MoCo v3's they are the same.
    """
    from timm.optim.lamb import Lamb
    from timm.optim.lars import Lars

    config, module, other = CONFIGS[name], model(), model()
    if isinstance(config, LarsConfig):
        config = replace(config, weight_decay=1.5e-6)
    groups = [
        {"params": [p for p in other.parameters() if (p.ndim > 1 or config.decays == "all") == decayed]}
        | {"weight_decay": config.weight_decay if decayed else 0.0}
        for decayed in (True, False)
    ]
    if isinstance(config, LarsConfig):
        theirs = Lars(groups, lr=config.lr, momentum=config.momentum, trust_coeff=config.trust_coefficient, eps=0)
    else:
        clipped = config.max_trust is not None
        theirs = Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, max_grad_norm=None, trust_clip=clipped)
    for got, expected in zip(moved(module, config.build(module)), moved(other, theirs), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_on_a_device_weights_move_as_on_the_cpu(name: str) -> None:
    config, module = CONFIGS[name], model()
    expected, module = moved(module, config.build(module)), model().cuda()
    optimizer = config.build(module)
    for of_step in gradients(module):
        for parameter, gradient in zip(module.parameters(), of_step, strict=True):
            parameter.grad = gradient.cuda()
        optimizer.step()
    for parameter, other in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach().cpu(), other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("config", [AdamWConfig(), LarsConfig(), LambConfig()])
@pytest.mark.parametrize("decays", ["matrices", "all"])
def test_frozen_parameters_are_nowhere_and_decay_may_be_for_all(config: OptimizerConfig, decays: str) -> None:
    module = model()
    module.get_submodule("0").requires_grad_(False)
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer = type(config)(decays=decays).build(module)  # type: ignore[call-arg]
    decayed, kept = ({named[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    matrices, others = {"2.weight", "3.weight"}, {"1.weight", "1.bias", "3.bias"}
    assert (decayed, kept) == ((matrices, others) if decays == "matrices" else (matrices | others, set()))
    assert optimizer.param_groups[0]["weight_decay"] > 0 == optimizer.param_groups[1]["weight_decay"]
    assert not WeightAverage(module, first_step=0).tensors.keys() & {"0.weight", "0.bias"}
    assert [layer.name for layer in layers_of(module)] == ["1", "2", "3"]


def test_a_model_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="every parameter is frozen"):
        LarsConfig().build(nn.Linear(2, 2).requires_grad_(False))


def test_the_rate_grows_with_the_batch_and_dry_run_says_so(run_file: Callable[..., Path]) -> None:
    scaled = {"kind": "lars", "lr": 0.3, "lr_per_images": 256}
    config = load_run(
        run_file(optimizer=scaled, schedule={"warmup_fraction": 0.0}, changes_at={2: {"optimizer.lr": 0.6}})
    )
    assert (config.peak_lr, config.rate(0)) == (0.3 * 16 / 256, 0.3 * 16 / 256)
    assert any(
        line.endswith("optimizer.lr 0.3 per 256 images x 16 images a step = 0.01875") for line in plan_run(config)
    )
    assert any(line.startswith("at step 2: the learning rate jumps, 0.0174") for line in plan_run(config))
    plain = load_run(run_file(optimizer={"kind": "lars", "lr": 0.3}))
    assert plain.peak_lr == 0.3
    assert not any("per" in line for line in plan_run(plain) if line.startswith("learning rate"))


# On each of two processes lie some rows of every parameter; lengths are those of all rows.
SPREAD = """
import sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from headrace.train.parallel.layout import piece_of, whole
from headrace.train.parallel.ranks import join_ranks
sys.path.insert(0, sys.argv[1])
from tests.train.optim.test_trust import CONFIGS, gradients, model, moved

with join_ranks("cpu"):
    mesh = init_device_mesh("cpu", (2,))
    for name, config in CONFIGS.items():
        expected, module = moved(alone := model(), config.build(alone), 4), model()
        fully_shard(module, mesh=mesh)
        optimizer = config.build(module)
        for of_step in gradients(module, 4):
            for parameter, gradient in zip(module.parameters(), of_step, strict=True):
                rows = piece_of(parameter)
                parameter.grad = torch.zeros_like(parameter)
                piece_of(parameter.grad).local.copy_(gradient[rows.first : rows.first + rows.local.shape[0]])
            optimizer.step()
        for parameter, other in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(whole(parameter), other, atol=2e-6, rtol=2e-6, msg=lambda text: name + text)
"""


def test_of_a_spread_model_lengths_are_those_of_whole_parameters() -> None:
    processes(2, SPREAD, str(Path(__file__).parents[3]))


@pytest.mark.full
@pytest.mark.parametrize("optimizer", [{"kind": "lars", "lr": 5.0, "weight_decay": 0.01}, {"kind": "lamb", "lr": 0.02}])
def test_two_processes_are_one_and_a_resumed_run_is_bitwise_the_same(
    run_file: Callable[..., Path], tmp_path: Path, optimizer: dict[str, object]
) -> None:
    short = {"steps": 4, "validation": None, "checkpoint": {"every": 2}, "images_per_micro_batch": 3}
    path = run_file(optimizer=optimizer, schedule={"warmup_fraction": 0.0}, ema={"decay": 0.9}, **short)
    runs = [(how, tmp_path / how) for how in ("ddp", "fsdp")]
    processes(2, TRAIN, *(told(path, out, f"parallel.strategy={how}") for how, out in runs))
    alone, again = train(load_run(path)).out, tmp_path / "again"
    for _, out in runs:
        assert_same_run(out, alone)
    train(load_run(path, [f"out={again}", f"continue_from={alone / 'checkpoints' / '00000002'}"]))
    losses = [[line.get("loss") for line in read_metrics(out / "metrics.jsonl")] for out in (alone, again)]
    assert losses[0] == losses[1]
    for file in ("model.safetensors", "ema/model.safetensors"):
        one, other = load_file(alone / file), load_file(again / file)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
