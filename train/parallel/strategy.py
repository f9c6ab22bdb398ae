"""How several processes share one model: each holds all of it (DDP), or a part (FSDP2).

The sum of a step is the same up to rounding, and a checkpoint of one is continued by the other. A spread model is built
without memory for its weights; those of step 0 are drawn by rank 0 alone, as one process draws them, and each process
gets its rows.
"""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parallel import DistributedDataParallel

from headrace.train.parallel.layout import ALL_OF_IT, Layout, piece_of, replicated
from headrace.train.parallel.ranks import Ranks

Strategy = Literal["alone", "ddp", "fsdp"]

# Where weights, gradients and what the optimizer keeps fill more of a GPU than this share, `auto` spreads them.
AUTO_SHARE = 0.5

FORWARD_METHODS = ("through_trunk",)
"""Methods of an objective, beside `forward`, for which a spread model gathers its weights."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How several processes share the model. Free to change when a run is continued."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp = each holds all; fsdp = each holds a part; auto = fsdp where ddp would take over half of a GPU's memory."""
    replicas: int = 1
    """With fsdp: how often the whole model is held (HSDP); divides the processes. 0 = once on each machine."""

    def __post_init__(self) -> None:
        if self.replicas < 0:
            raise ValueError(f"replicas must be at least 0, got {self.replicas}")
        if self.replicas != 1 and self.strategy == "ddp":
            raise ValueError(f"replicas is {self.replicas}, which only strategy fsdp has")

    def choose(self, ranks: Ranks, *, held_bytes: Callable[[], int]) -> Strategy:
        """Return what is meant for these processes; `held_bytes` says what each would hold of the whole model."""
        if ranks.size == 1:
            return "alone"
        if self.strategy == "auto" and ranks.device.type == "cuda":
            memory = torch.cuda.get_device_properties(ranks.device).total_memory
            return "fsdp" if held_bytes() > AUTO_SHARE * memory else "ddp"
        return "fsdp" if self.strategy == "fsdp" else "ddp"

    def num_replicas(self, ranks: Ranks) -> int:
        """Return how often the model is held. Raises ValueError if the processes do not go into so many groups."""
        machines = max(1, ranks.size // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        number = self.replicas or machines
        if ranks.size % number:
            raise ValueError(f"parallel.replicas is {number}, which does not divide the {ranks.size} processes")
        return number


def wrapped(objective: nn.Module, ranks: Ranks) -> nn.Module:
    """Return what forward is called on where each process holds everything."""
    if ranks.size == 1:
        return objective
    # Buffers are constants here, or statistics and a queue of the whole batch, the same on all ranks: they need no
    # exchange at every step. torch 2.15 renamed the argument that says so.
    names = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(objective, **options)


def reducing(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Return the context in which DDP sums gradients over ranks only in the `last` micro-batch.

    A spread model sums in each: the gradient of the whole model would have to be held until the last.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Let modules that are made in this context have parameters without memory. Buffers are as ever."""

    def on_meta(_module: nn.Module, _name: str, parameter: nn.Parameter) -> Any:
        if parameter.is_meta:
            return parameter  # shared with another module
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook: Callable[..., Any] = on_meta
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def spread(objective: nn.Module, ranks: Ranks, *, replicas: int, bf16: bool) -> Layout:
    """Spread a model made `without_weights` over the processes, block by block; its weights are then still undefined.

    On a GPU weights are gathered in bf16 where the forward pass runs in it; gradients are summed in fp32. Raises
    ValueError for a parameter that cannot be spread.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    scalars = [name for name, parameter in objective.named_parameters() if not parameter.ndim]
    if scalars:
        raise ValueError(f"strategy fsdp spreads rows, and the parameter {scalars[0]} has none; use strategy ddp")
    shards = ranks.size // replicas
    shape, names = ((replicas, shards), ("replicate", "shard")) if replicas > 1 else ((shards,), ("shard",))
    mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
    # Inputs are autocast's business. On a CPU it leaves norms alone, which there want weights in the format of inputs.
    gathered = torch.bfloat16 if bf16 and ranks.device.type == "cuda" else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    for block in blocks_of(objective):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)
    for name in FORWARD_METHODS:
        if hasattr(objective, name):
            register_fsdp_forward_method(objective, name)
    objective.to_empty(device=ranks.device)
    for name, buffer in objective.named_buffers():
        buffer.copy_(buffers[name])
    log.info("weights are spread over %d processes, %d times", shards, replicas)
    if replicas == 1:
        return Layout(shard=ranks.rank, num_shards=shards, replicas=(ranks.rank,))
    replica, shard = divmod(ranks.rank, shards)
    same = tuple(range(shard, ranks.size, shards))
    group = mesh.get_group("replicate")
    return Layout(shard=shard, num_shards=shards, replica=replica, replicas=same, group=group)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a model: the members of its outermost lists of modules."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += blocks_of(child)
    return found


def hand_out(objective: nn.Module, weights: Mapping[str, Tensor] | None, ranks: Ranks) -> None:
    """Fill a spread model with the `weights` that rank 0 has, one tensor at a time; called on all ranks."""
    with torch.no_grad():
        for name, tensor in objective.state_dict().items():
            piece = piece_of(tensor)
            whole = torch.empty(piece.shape, dtype=piece.local.dtype, device=ranks.device)
            if weights is not None:
                whole.copy_(weights[name])
            distributed.broadcast(whole, src=0)
            rows = whole[piece.first : piece.first + piece.local.shape[0]] if piece.is_part else whole
            piece.local.copy_(rows)


def is_spread(module: nn.Module) -> bool:
    """True if this process holds a part of the model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def drop_gathered(module: nn.Module) -> None:
    """Let a spread model drop what its last forward pass gathered, as its backward would."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.reshard()


def layout_of(strategy: Strategy, ranks: Ranks) -> Layout:
    """Return the layout of a model that is not spread."""
    return ALL_OF_IT if strategy == "alone" else replicated(ranks)
