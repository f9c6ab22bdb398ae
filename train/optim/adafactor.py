"""Adafactor as "Scaling Vision Transformers" has it: the second moment by rows and columns, momentum in bf16.

Of a matrix the mean squares of its rows and of its columns are kept, whose product stands for the square of each
number: R + C numbers in place of R x C. Nothing is scaled by the length of a parameter, no update is clipped, and the
momentum is not freed of its bias: the warm-up covers that. Sources: arXiv:1804.04235, section 3; arXiv:2106.04560,
section 3.4; big_vision's `scale_by_adafactor`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from headrace.train.optim.decay import DecayFollows, check_decay, give_decay
from headrace.train.optim.factors import Form, head_forms, plain_form
from headrace.train.optim.groups import Decays, parameter_groups
from headrace.train.optim.trust import shard_group
from headrace.train.parallel.layout import piece_of

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "none": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdafactorConfig:
    """Adafactor with momentum. The defaults are those of the study for ViT-g and G."""

    lr: float = 8e-4
    """Highest learning rate, reached at the end of the warm-up."""
    lr_per_images: int = 0
    """lr is that of a step of so many images, and grows with the global batch. 0 = lr is the rate whatever it is."""
    momentum: float = 0.9
    """What stays of the last update."""
    momentum_dtype: Literal["bfloat16", "float32", "none"] = "bfloat16"
    """What the momentum is kept in; none = there is no momentum. The study lost nothing by bfloat16, and much by a
    second moment in bfloat16, which is fp32 here."""
    decay_exponent: float = 0.8
    """The second moment forgets by 1 - t^-this at step t (from 1), so that step 1 has nothing of the start."""
    max_decay: float = 0.999
    """Most that stays of the second moment."""
    min_factored: int = 32
    """A tensor is kept by rows and columns where its two longest sides are both at least so long."""
    factor: Literal["matrices", "heads"] = "matrices"
    """matrices = a matrix as it lies, q, k and v of all heads in one, as timm; heads = each head of an attention by
    itself, as big_vision. Not with a model that is spread."""
    eps: float = 1e-30
    """Added to the square of a gradient."""
    weight_decay: float = 0.03
    """Decoupled."""
    decays: Decays = "matrices"
    """Which parameters are decayed: matrices = no biases, norms, positions and queries; all = every one."""
    decay_multipliers: dict[str, float] = field(default_factory=dict)
    """What weight_decay is multiplied by, by pattern of a parameter's name in the exported file: {"head.*": 100}."""
    decay_follows: DecayFollows = "rate"
    """A step takes from a weight: rate = weight_decay x the learning rate of it; schedule = weight_decay x the part of
    the highest rate that the schedule has reached, as big_vision, so that lr may change and the decay stays."""
    kind: Literal["adafactor"] = "adafactor"
    """The tag of this optimizer."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 < self.eps < math.inf:
            raise ValueError("lr and eps must be above 0 and finite")
        for name in ("momentum", "max_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.decay_exponent < math.inf or self.min_factored < 1 or self.lr_per_images < 0:
            raise ValueError("decay_exponent must be above 0, min_factored at least 1, lr_per_images at least 0")
        check_decay(self)

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        return ("factor",) if self.factor == "matrices" else ()

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters of `module`. Raises ValueError for heads that are cut."""
        forms = self._forms(module)
        if any(piece_of(parameter).is_part for parameter in forms):
            raise ValueError(
                "optimizer.factor is heads, and this model is spread by rows, which cuts heads; set "
                "parallel.strategy=ddp, or optimizer.factor=matrices"
            )
        groups = parameter_groups(
            module,
            lr=self.lr,
            weight_decay=self.weight_decay,
            decays=self.decays,
            decay_multipliers=self.decay_multipliers,
        )
        optimizer = Adafactor(groups, self, forms)
        self.set_groups(optimizer, lr=self.lr)
        return optimizer

    def set_groups(self, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Give the groups of an optimizer that `build` made these numbers, and `lr` as learning rate."""
        for group in optimizer.param_groups:
            group.update(_numbers(self), lr=lr)
        give_decay(self, optimizer)

    def state_bytes(self, module: nn.Module) -> int:
        """Return the bytes that the moments of the trainable parameters of `module` take."""
        dtype, forms = DTYPES[self.momentum_dtype], self._forms(module)
        item = 0 if dtype is None else dtype.itemsize
        return sum(
            item * parameter.numel() + 4 * (forms.get(parameter) or plain_form(parameter.shape, self.min_factored)).kept
            for parameter in module.parameters()
            if parameter.requires_grad
        )

    def _forms(self, module: nn.Module) -> Mapping[Tensor, Form]:
        return head_forms(module, self.min_factored) if self.factor == "heads" else {}


def _numbers(config: AdafactorConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("momentum", "decay_exponent", "max_decay", "eps")}


class Adafactor(torch.optim.Optimizer):
    """The optimizer.

    A parameter has `step`, `exp_avg` (its momentum), and `exp_avg_sq`, or in place of that `exp_avg_sq_row` and
    `exp_avg_sq_col`: means over the later and over the earlier of its two longest dimensions. Of a model that is spread
    over processes by rows, what keeps the rows lies as they do, and means over rows are the same on all.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], config: AdafactorConfig, forms: Mapping[Tensor, Form]) -> None:
        self.least, self.forms = config.min_factored, forms
        self.momentum_dtype = DTYPES[config.momentum_dtype]
        super().__init__(groups, _numbers(config))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights; all processes of a spread model do it together."""
        assert closure is None, "the gradients are there"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self._begin(parameter)
                self.state[parameter]["step"] += 1
            if parameters:
                self._take_squares(parameters, group)
            for parameter in parameters:
                self._move(parameter, group)

    def _take_squares(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Take the squares of the gradients into the second moments; of a spread model with one sum between processes.

        One parameter after the other: the squares of all side by side would take 4 bytes a weight.
        """
        spread, sums = shard_group(parameters), {}
        for parameter in parameters:
            assert parameter.grad is not None
            state, share = self.state[parameter], _share(self.state[parameter]["step"], group)
            square = piece_of(parameter.grad).local.square().add_(group["eps"])
            if "exp_avg_sq" in state:
                piece_of(state["exp_avg_sq"]).local.lerp_(square, share)
                continue
            first, last = self._sides(parameter)
            square = self._formed(square, parameter)
            piece_of(state["exp_avg_sq_row"]).local.lerp_(square.mean(dim=last), share)
            sums[parameter] = square.sum(dim=first)
        if spread is not None:
            over_rows = [total for parameter, total in sums.items() if self._sides(parameter)[0] == 0]
            _sum_over(over_rows, spread)
        for parameter, total in sums.items():
            state, share = self.state[parameter], _share(self.state[parameter]["step"], group)
            mean = total.div_(self._form(parameter).shape[self._sides(parameter)[0]])
            piece_of(state["exp_avg_sq_col"]).local.lerp_(mean, share)

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state, weight, gradient = self.state[parameter], piece_of(parameter).local, piece_of(parameter.grad).local
        if "exp_avg_sq" in state:
            update = gradient * piece_of(state["exp_avg_sq"]).local.rsqrt()
        else:
            by_row, by_column = self._factors(parameter)
            update = (self._formed(gradient, parameter) * by_row).mul_(by_column).view_as(gradient)
        if "exp_avg" in state:
            average = piece_of(state["exp_avg"]).local
            # In fp32, and rounded where it is kept: what moves the weights is not.
            update = average.to(update.dtype).lerp(update, 1 - group["momentum"])
            average.copy_(update)
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"])

    def _factors(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
        """Return what a gradient is multiplied by for its row and for its column, as many dimensions as it has."""
        state, (first, last) = self.state[parameter], self._sides(parameter)
        by_row, by_column = (piece_of(state[f"exp_avg_sq_{name}"]).local for name in ("row", "col"))
        # The mean of all is taken over columns, which every process has: over rows it would be one more sum between
        # them. Without `first`, the dimension `last` stands one place earlier.
        overall = by_column.mean(dim=last - 1, keepdim=True).unsqueeze(first)
        return (by_row.unsqueeze(last) / overall).rsqrt(), by_column.rsqrt().unsqueeze(first)

    def _form(self, parameter: Tensor) -> Form:
        return self.forms.get(parameter) or plain_form(parameter.shape, self.least)

    def _formed(self, local: Tensor, parameter: Tensor) -> Tensor:
        """Return what this process holds of a parameter's size in the form that is factored."""
        form = self.forms.get(parameter)
        return local if form is None else local.reshape(form.shape)

    def _sides(self, parameter: Tensor) -> tuple[int, int]:
        sides = self._form(parameter).sides
        assert sides is not None, "others keep all squares"
        return sides

    def _begin(self, parameter: nn.Parameter) -> None:
        state, (shape, sides) = self.state[parameter], self._form(parameter)
        state["step"] = 0
        if self.momentum_dtype is not None:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.momentum_dtype)
        if sides is None:
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            return
        first, last = sides
        for name, side in (("row", last), ("col", first)):
            left = [length for place, length in enumerate(shape) if place != side]
            state[f"exp_avg_sq_{name}"] = (
                parameter.new_zeros(left) if parameter in self.forms else _zeros_without(parameter, side)
            )


def _share(step: int, group: dict[str, Any]) -> float:
    """Return what part of the second moment the squares of step `step` (from 1) are."""
    kept: float = min(group["max_decay"], 1.0 - step ** -group["decay_exponent"])
    return 1.0 - kept


def _sum_over(tensors: list[Tensor], group: Any) -> None:
    """Sum each tensor over the processes of `group`, all in one exchange."""
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat, group=group)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, total in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.copy_(total.view_as(tensor))


def _zeros_without(parameter: Tensor, side: int) -> Tensor:
    """Return zeros of the parameter's shape less one dimension; spread by rows as it is, where its rows are left."""
    from torch.distributed.tensor import DTensor

    local = piece_of(parameter).local
    shape = [length for place, length in enumerate(local.shape) if place != side]
    zeros = torch.zeros(shape, dtype=local.dtype, device=local.device)
    if not isinstance(parameter, DTensor) or side == 0:
        return zeros
    whole = torch.empty([length for place, length in enumerate(parameter.shape) if place != side], device="meta")
    spread: Tensor = DTensor.from_local(
        zeros, parameter.device_mesh, parameter.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return spread
