"""Rows of a matrix, with a backward that knows they are distinct.

The general backward of indexing sorts the indices and adds up equal ones; here each row's gradient has its place.
"""

from typing import Any

import torch
from torch import Tensor


def take_distinct_rows(values_MD: Tensor, rows_N: Tensor) -> Tensor:
    """Return [N, D], the rows `rows_N` of `values_MD`; no row may come twice."""
    out: Tensor = _Take.apply(values_MD, rows_N)
    return out


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_MD: Tensor, rows_N: Tensor) -> Tensor:
        ctx.save_for_backward(rows_N)
        ctx.num_rows = len(values_MD)
        return values_MD.index_select(0, rows_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows_N,) = ctx.saved_tensors
        (gradient_ND,) = gradients
        whole_MD = gradient_ND.new_zeros(ctx.num_rows, gradient_ND.shape[1])
        return whole_MD.index_copy_(0, rows_N, gradient_ND), None
