"""BatchNorm over several processes is BatchNorm over the whole batch."""

import pytest
import torch

from headrace.train.models.batch_norm import BatchNorm
from tests.train.objectives.test_clip_ranks import together

# Each process has other rows, one has none; all compare what they got with torch's norm of all rows, to rounding.
SHARED = """
import torch
from torch import distributed, nn
from headrace.train.models.batch_norm import BatchNorm, synchronise
from headrace.train.parallel.ranks import join_ranks

with join_ranks("cpu") as ranks:
    torch.manual_seed(0)
    for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        for affine, shape in ((True, (11, 6)), (False, (11, 6)), (True, (7, 6, 3, 2))):
            # Means far from 0: a variance from sums of squares would lose its digits here.
            x, cotangent = torch.randn(shape, dtype=dtype) + 100, torch.randn(shape, dtype=dtype)
            bounds = [0, 3, len(x)] if ranks.size == 2 else [0, 1, 1, 5, len(x)]
            own = slice(bounds[ranks.rank], bounds[ranks.rank + 1])
            shared = BatchNorm(6, affine=affine).to(dtype)
            torchs = (nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d)(6, affine=affine).to(dtype)
            synchronise(shared, ranks)
            if affine:
                for parameter in shared.parameters():
                    nn.init.normal_(parameter)
            torchs.load_state_dict(shared.state_dict())
            mine, whole = x[own].clone().requires_grad_(), x.clone().requires_grad_()
            for _ in range(2):
                out, expected = shared(mine), torchs(whole)
            (out * cotangent[own]).sum().backward()
            (expected * cotangent).sum().backward()
            close = dict(atol=rounding, rtol=rounding)
            torch.testing.assert_close(out, expected[own], **close)
            torch.testing.assert_close(mine.grad, whole.grad[own], **close)
            for one, other in zip(shared.parameters(), torchs.parameters(), strict=True):
                distributed.all_reduce(one.grad)
                torch.testing.assert_close(one.grad, other.grad, **close)
            for (name, one), other in zip(shared.state_dict().items(), torchs.state_dict().values(), strict=True):
                torch.testing.assert_close(one, other, msg=name, **close)
            torch.testing.assert_close(shared.eval()(x), torchs.eval()(x), **close)
            try:
                shared.train()(x[: int(ranks.rank == 0), :, :1, :1] if x.ndim == 4 else x[: int(ranks.rank == 0)])
                raise SystemExit("one row has no variance")
            except ValueError as error:
                assert "at least 2 rows over all processes, got 1" in str(error), error
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_statistics_and_gradients_are_those_of_the_whole_batch(processes: int) -> None:
    together(processes, SHARED)


def test_one_process_has_torchs_own() -> None:
    torch.manual_seed(0)
    x, ours, theirs = torch.randn(5, 4), BatchNorm(4), torch.nn.BatchNorm1d(4)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    theirs.load_state_dict(ours.state_dict(), strict=True)
