"""BatchNorm whose statistics are those of the whole batch, however many processes share it.

In one process, and at evaluation, it is torch's own. Over several, torch has a synchronised one for GPUs alone; that of
CPUs is here. Names, running statistics and their rules are torch's, so state dicts are those of `nn.BatchNorm1d`.
"""

# B rows of one process (pictures times pixels), W ranks, C channels

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.parallel.gathering import ranks_beside, sum_over_ranks
from headrace.train.parallel.ranks import ALONE, Ranks


class BatchNorm(nn.BatchNorm1d):
    """Normalise each channel, dimension 1, over rows (and pixels) of all processes.

    Processes may have different numbers of rows, also none: each row weighs the same. It is no `nn.SyncBatchNorm` by
    name, as DDP refuses every one of those on a CPU.
    """

    process_group: Any = None
    """All processes; torch's synchronised forward asks for it."""
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    ranks: Ranks = ALONE
    """Who shares the batch; `synchronise` says so."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised, in its own format; statistics are taken in fp32."""
        if not self.training or self.ranks.size == 1:
            return self._of_one_process(x)
        weight, _ = self._affine()
        if x.is_cuda and weight is (self.weight if self.affine else None):
            out: Tensor = nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
            return out
        return self._of_all_processes(x)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take pictures as well as rows."""
        nn.SyncBatchNorm._check_input_dim(self, input)  # type: ignore[arg-type]

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias as they are kept: a spread model gathers them in bf16, which torch refuses here."""
        if not self.affine:
            return None, None
        assert self.running_mean is not None, "statistics are always kept"
        return self.weight.to(self.running_mean.dtype), self.bias.to(self.running_mean.dtype)

    def _of_one_process(self, x: Tensor) -> Tensor:
        self._count()
        mean, var = self.running_mean, self.running_var
        assert mean is not None, "statistics are always kept"
        assert var is not None, "statistics are always kept"
        if self.training and not self.track_running_stats:  # backward keeps as many tensors as the first time
            mean, var = torch.empty_like(mean), torch.empty_like(var)
        weight, bias = self._affine()
        return functional.batch_norm(x, mean, var, weight, bias, self.training, self.momentum or 0.0, self.eps)

    def _of_all_processes(self, x: Tensor) -> Tensor:
        self._count()
        mean_C, var_C, count = batch_statistics(x.detach(), self.ranks)
        if self.track_running_stats:
            assert self.running_mean is not None, "statistics are always kept"
            assert self.running_var is not None, "statistics are always kept"
            share = self.momentum or 0.0
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
            self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), share)
        weight, bias = self._affine()
        x_hat: Tensor = _Normalised.apply(x, mean_C, (var_C + self.eps).rsqrt(), count, self.ranks)
        if weight is not None and bias is not None:
            x_hat = x_hat * _over(weight, x) + _over(bias, x)
        return x_hat.to(x.dtype)

    def _count(self) -> None:
        if self.training and self.track_running_stats:
            assert self.num_batches_tracked is not None, "statistics are always kept"
            self.num_batches_tracked.add_(1)


def synchronise(module: nn.Module, ranks: Ranks) -> None:
    """Let every BatchNorm inside `module` take its statistics over these processes; called once, on all of them."""
    for child in module.modules():
        if isinstance(child, BatchNorm):
            child.ranks = ranks


@contextlib.contextmanager
def without_counting(module: nn.Module) -> Iterator[None]:
    """Let the running statistics inside `module` be as they are while a batch that they know is computed again."""
    norms = [child for child in module.modules() if isinstance(child, BatchNorm) and child.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def batch_statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, float]:
    """Return mean and biased variance of each channel over the rows of all ranks, and how many rows there are.

    Raises ValueError for one row, which has no variance. Source: Chan et al. 1979, the parallel form of the variance:
    a sum of squares minus a square of sums would lose the digits of a channel whose mean is large.
    """
    rows = x.transpose(0, 1).flatten(1).to(_accurate(x))
    own_count, own_mean_C = rows.shape[1], rows.new_zeros(len(rows))
    own_squares_C = own_mean_C
    if own_count:
        own_mean_C = rows.mean(dim=1)
        own_squares_C = (rows - own_mean_C[:, None]).square().sum(dim=1)
    own = torch.cat([own_mean_C, own_squares_C, own_mean_C.new_tensor([own_count])])
    every = ranks_beside(own, ranks, "the statistics of BatchNorm")
    mean_WC, squares_WC, count_W = every[:, : len(rows)], every[:, len(rows) : -1], every[:, -1:]
    count = float(count_W.sum())
    if count < 2:
        raise ValueError(
            f"BatchNorm needs at least 2 rows over all processes, got {count:g}: global_batch is too small"
        )
    mean_C = (mean_WC * count_W).sum(dim=0) / count
    squares_C = (squares_WC + count_W * (mean_WC - mean_C).square()).sum(dim=0)
    return mean_C, squares_C / count, count


class _Normalised(torch.autograd.Function):
    """(x - mean) / deviation, with the gradient that also goes through both, over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean_C: Tensor, inverse_C: Tensor, count: float, ranks: Ranks) -> Tensor:
        x_hat = (x.to(mean_C.dtype) - _over(mean_C, x)) * _over(inverse_C, x)
        ctx.save_for_backward(x_hat, inverse_C)
        ctx.count, ctx.ranks, ctx.dtype = count, ranks, x.dtype
        return x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,), (x_hat, inverse_C) = gradients, ctx.saved_tensors
        others = [number for number in range(grad.ndim) if number != 1]
        own = torch.cat([grad.sum(dim=others), (grad * x_hat).sum(dim=others)])
        # What a row gives to the mean and the deviation reaches every row of every rank.
        mean, along = (sum_over_ranks(own, ctx.ranks, "the gradient of BatchNorm") / ctx.count).chunk(2)
        out = (grad - _over(mean, grad) - x_hat * _over(along, grad)) * _over(inverse_C, grad)
        return out.to(ctx.dtype), None, None, None, None


def _over(values_C: Tensor, x: Tensor) -> Tensor:
    return values_C.view(1, -1, *[1] * (x.ndim - 2))


def _accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
