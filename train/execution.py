"""How a step is computed, as opposed to what: compiled blocks, kernels of attention, what is kept for backward.

None of it changes a result but by rounding, so a run may go on with another execution. On a CPU `auto` is what every
version did: nothing compiled, dense masks, so that runs on CPUs agree bit for bit.
"""

import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from headrace.train.models.stage import Recompute, ResidualStream, Stage

Compile = Literal["auto", "off", "blocks"]
Attention = Literal["auto", "sdpa", "flex"]
Residual = Literal["auto", "fp32", "bf16"]

MAX_GRAPHS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How the steps of one process are computed."""

    compiled: bool = False
    """Each block is a compiled function."""
    flex: bool = False
    """Prefix attention through FlexAttention; else scaled_dot_product_attention with a dense boolean mask."""
    recompute: Recompute = "none"
    """What backward computes again."""
    residual: torch.dtype | None = None
    """What the residual stream is kept in under autocast; None = fp32."""

    def __str__(self) -> str:
        """Return one line for the log."""
        attention = "flex" if self.flex else "sdpa"
        residual = "fp32" if self.residual is None else str(self.residual).removeprefix("torch.")
        compiled = "blocks" if self.compiled else "off"
        return f"compile {compiled}, attention {attention}, checkpointing {self.recompute}, residual stream {residual}"

    def apply(self, objective: nn.Module) -> None:
        """Let every stage and residual stream inside `objective` work so."""
        if self.compiled:
            from torch._dynamo import config as dynamo  # 1.5 s of imports

            # Training and validation, a smaller last part, several runs in one process: each is a graph of its own.
            dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_GRAPHS)
        for module in objective.modules():
            if isinstance(module, ResidualStream):
                module.dtype = self.residual
            elif isinstance(module, Stage):
                module.recompute = self.recompute
                if self.compiled and module.compiles:
                    # Forward alone: hooks that gather the weights of a spread model are no part of the graph.
                    dynamic = None if module.varying_rows else False
                    module.forward = torch.compile(module.forward, fullgraph=True, dynamic=dynamic)


PLAIN = Execution()
"""Nothing compiled, everything kept."""


def choose_execution(
    device: torch.device,
    *,
    compile: Compile = "auto",
    attention: Attention = "auto",
    recompute: Recompute = "none",
    residual: Residual = "auto",
    bf16: bool = False,
) -> Execution:
    """Return what is meant on this device; `bf16` says whether the forward pass runs in it.

    Raises ValueError for what the device cannot do.
    """
    cuda = device.type == "cuda"
    if attention == "flex" and not cuda:
        raise ValueError(f"attention is flex, whose backward needs a CUDA device, not {device}; use attention=auto")
    if residual == "bf16" and not bf16:
        raise ValueError("residual is bf16, but the forward pass runs in fp32; use precision=bf16, or residual=auto")
    has_compiler = importlib.util.find_spec("triton") is not None
    compiled = compile == "blocks" or (compile == "auto" and cuda and has_compiler)
    if cuda and compile == "auto" and not has_compiler:
        log.warning("triton is not installed: nothing is compiled, and steps are slower; pip install triton")
    flex = attention == "flex" or (attention == "auto" and cuda and has_compiler)
    low = residual == "bf16" or (residual == "auto" and cuda and bf16)
    return Execution(compiled=compiled, flex=flex, recompute=recompute, residual=torch.bfloat16 if low else None)
