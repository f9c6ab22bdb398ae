"""Rows of all ranks on every rank, with a backward that gives each rank the sum of what all do with its rows.

Without that sum the gradient of a loss over gathered rows is wrong: exactly 1 / world_size of the true one where every
rank computes the whole loss, and without its cross terms where each computes its own rows.
"""

# B rows of one rank, W ranks, D width

from typing import Any

import torch
from torch import Tensor, distributed

from headrace.train.parallel.ranks import Ranks


def gather_rows(x_BD: Tensor, ranks: Ranks, where: str) -> Tensor:
    """Return [W * B, D], the rows of rank 0 first; every rank has as many. Raises RankError if one does not come."""
    if ranks.size == 1:
        return x_BD
    out: Tensor = _Gather.apply(x_BD, ranks, where)
    return out


def ranks_beside(x: Tensor, ranks: Ranks, where: str) -> Tensor:
    """Return [W, ...], what each rank has, without a gradient. Raises RankError if one does not come."""
    own = x.detach().contiguous()
    if ranks.size == 1:
        return own[None]
    out = own.new_empty(ranks.size, *own.shape)
    _wait(distributed.all_gather_into_tensor(out.view(-1), own.view(-1), async_op=True), own, ranks, where)
    return out


def sum_over_ranks(x: Tensor, ranks: Ranks, where: str) -> Tensor:
    """Return the sum of what each rank has, without a gradient. Raises RankError if one does not come."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if ranks.size > 1:
        _wait(distributed.all_reduce(total, async_op=True), total, ranks, where)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, ranks: Ranks, where: str) -> Tensor:
        ctx.ranks, ctx.where = ranks, where
        own = x_BD.contiguous()
        out = own.new_empty(ranks.size * len(own), *own.shape[1:])
        _wait(distributed.all_gather_into_tensor(out, own, async_op=True), own, ranks, where)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ranks: Ranks = ctx.ranks
        whole = gradients[0].contiguous()
        rows = len(whole) // ranks.size
        if whole.is_cuda:
            own = whole.new_empty(rows, *whole.shape[1:])
            distributed.reduce_scatter_tensor(own, whole)
            return own, None, None
        whole = sum_over_ranks(whole, ranks, f"the gradient of {ctx.where}")
        return whole[ranks.rank * rows : (ranks.rank + 1) * rows].clone(), None, None


def _wait(work: Any, tensor: Tensor, ranks: Ranks, where: str) -> None:
    """Wait where the host does the sum; on a GPU it is queued behind what is computed."""
    if tensor.is_cuda:
        work.wait()
    else:
        ranks.finish(work, where)
