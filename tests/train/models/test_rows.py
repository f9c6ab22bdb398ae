"""Rows that are taken have the gradients of indexing."""

import torch

from headrace.train.models.rows import take_distinct_rows


def test_distinct_rows_have_the_values_and_gradients_of_indexing() -> None:
    torch.manual_seed(0)
    values = torch.randn(10, 4, dtype=torch.float64)
    rows = torch.tensor([7, 2, 9, 0])
    results = []
    for take in (take_distinct_rows, torch.Tensor.__getitem__):
        leaf = values.clone().requires_grad_()
        out = take(leaf, rows)
        (gradient,) = torch.autograd.grad((out * torch.arange(16).view(4, 4)).sum(), leaf)
        results.append((out.detach(), gradient))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert torch.autograd.gradcheck(lambda x: take_distinct_rows(x, rows), (values.requires_grad_(),))
