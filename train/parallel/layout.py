"""Which rows of every tensor a process holds, and which other processes hold the same.

A tensor that is spread lies by rows (dimension 0) over the processes of a shard mesh, as `torch.chunk` cuts them; every
replica of that mesh holds the same again.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, distributed

from headrace.train.parallel.ranks import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The place of one process among those that share a model."""

    shard: int = 0
    num_shards: int = 1
    replica: int = 0
    replicas: tuple[int, ...] = (0,)
    """Ranks of the processes that hold what this one holds, itself among them."""
    group: Any = None
    """The process group of `replicas`; None where there is one alone."""


ALL_OF_IT = Layout()
"""A process that holds everything, and alone does."""


def replicated(ranks: Ranks) -> Layout:
    """Return the layout in which every process holds everything."""
    group = distributed.group.WORLD if ranks.size > 1 else None
    return Layout(replica=ranks.rank, replicas=tuple(range(ranks.size)), group=group)


class Piece(NamedTuple):
    """What a process holds of one tensor."""

    local: Tensor
    """Its rows; changes of it change the tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first: int = 0
    """Number of the first row that is here."""
    is_part: bool = False
    """True if the rows lie on several processes."""


def piece_of(tensor: Tensor) -> Piece:
    """Return what this process holds of `tensor`. Raises ValueError if it is spread otherwise than by rows."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach(), tuple(tensor.shape))
    *others, last = tensor.placements
    if not all(placement.is_replicate() for placement in others) or not (
        last.is_replicate() or (isinstance(last, Shard) and last.dim == 0)
    ):
        raise ValueError(f"a tensor of shape {list(tensor.shape)} is spread as {tensor.placements}, expected by rows")
    local, shape = tensor.to_local().detach(), tuple(tensor.shape)
    if last.is_replicate():
        return Piece(local, shape)
    mesh = tensor.device_mesh
    place = mesh.get_coordinate()
    assert place is not None, "this process belongs to the mesh"
    rows = -(-shape[0] // mesh.size(mesh.ndim - 1))
    first = min(shape[0], rows * place[-1])
    assert local.shape[0] == min(rows, shape[0] - first), "rows lie as torch.chunk cuts them"
    return Piece(local, shape, first, is_part=True)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be spread; called on all ranks."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full
