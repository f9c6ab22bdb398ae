"""The repeated parts of a model: each is compiled by itself, and keeps its activations or computes them again.

All stages of one class share one compiled graph, as their weights are inputs of it. What is computed stays the same;
`headrace.train.execution` decides how.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]


class Stage(nn.Module):
    """A block whose backward may compute its activations again.

    A subclass gives `compute`, and a `forward` of its own that returns `computed`: the compiler keeps graphs, and what
    it learns of shapes, by the code of `forward`.
    """

    recompute: Recompute = "none"
    """none = keep all; selective = keep products of matrices and attention; full = keep the input alone."""
    varying_rows: ClassVar[bool] = False
    """True if the first dimension of its input differs from step to step: one compiled graph serves every length."""
    compiles: ClassVar[bool] = True
    """False if what it does is no one graph."""

    def compute(self, x: Tensor, *inputs: Any) -> Tensor:
        """Return the output of this block."""
        raise NotImplementedError

    def computed(self, x: Tensor, *inputs: Any) -> Tensor:
        """Return what `compute` does, with what backward needs kept as `recompute` says."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self.compute(x, *inputs)
        # Inside the compiled function, so that the compiler sees what is kept and fuses what is computed again.
        options: dict[str, Any] = {"context_fn": _selective()} if self.recompute == "selective" else {}
        out: Tensor = checkpoint(self.compute, x, *inputs, use_reentrant=False, **options)
        return out


def mark_varying(x: Tensor) -> None:
    """Tell the compiler, before a stage is called for the first time, that the number of rows of `x` will differ."""
    from torch._dynamo import maybe_mark_dynamic  # 1.5 s of imports

    maybe_mark_dynamic(x, 0)


class ResidualStream(nn.Module):
    """Where the residual stream begins: what follows keeps the format that it is given here."""

    dtype: torch.dtype | None = None
    """None = as it comes, which is fp32 under autocast: norms and sums leave their results in it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.to(self.dtype)


def _selective() -> Callable[[], Any]:
    return partial(create_selective_checkpoint_contexts, _keep)


def _keep(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in _expensive()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _expensive() -> frozenset[Any]:
    aten, higher_order = torch.ops.aten, torch.ops.higher_order
    return frozenset(
        {
            aten.mm.default,
            aten.addmm.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
            higher_order.flex_attention,
        }
    )
