"""The block mask of prefix attention is the dense one, made without a square of cells."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.train.models.block_mask import prefix_block_mask
from headrace.train.models.vit import SelfAttention, prefix_attention

TABLES = tuple(
    f"{full}{side}_{what}" for full in ("", "full_") for side in ("kv", "q") for what in ("num_blocks", "indices")
)


@pytest.fixture
def eager_flex() -> Iterator[None]:
    """FlexAttention says that it is slow when it is not compiled; here it may be."""
    with pytest.warns(UserWarning, match="without torch.compile"):
        yield


@given(length=st.integers(2, 300), tile=st.sampled_from([16, 64, 128]), data=st.data())
def test_tiles_are_those_of_the_dense_mask(length: int, tile: int, data: st.DataObject) -> None:
    prefix_B = torch.tensor(data.draw(st.lists(st.integers(1, length), min_size=1, max_size=4)))
    mask = prefix_block_mask(prefix_B, length, tile=tile)
    slow = create_block_mask(mask.mask_mod, len(prefix_B), None, length, length, device="cpu", BLOCK_SIZE=tile)
    for name in TABLES:
        assert torch.equal(getattr(mask, name), getattr(slow, name)), name
    assert mask.seq_lengths == slow.seq_lengths
    sample, row, column = torch.meshgrid(
        torch.arange(len(prefix_B)), torch.arange(length), torch.arange(length), indexing="ij"
    )
    assert torch.equal(mask.mask_mod(sample, torch.tensor(0), row, column), prefix_attention(prefix_B, length))


@torch.no_grad()
@pytest.mark.usefixtures("eager_flex")
def test_flex_attention_is_masked_attention() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(32, 2)
    for length in (16, 144, 256):
        tokens, prefix_B = torch.randn(5, length, 32), torch.tensor([1, 2, length // 2, length - 2, length - 1])
        dense = attention(tokens, prefix_attention(prefix_B, length)[:, None])
        torch.testing.assert_close(attention(tokens, prefix_block_mask(prefix_B, length)), dense, atol=1e-6, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation made."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.cells = max(self.cells, tensor.numel())
        return out


def test_no_mask_of_all_cells_is_made() -> None:
    with Largest() as largest:
        prefix_block_mask(torch.arange(1, 65), 4096)
    assert 0 < largest.cells <= 64 * (4096 // 128) ** 2 * 2


@pytest.mark.cuda
def test_flex_attention_and_its_gradients_are_those_of_masked_attention_on_cuda() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(256, 2).cuda()
    prefix_B = torch.randint(1, 256, (8,), device="cuda")
    results = []
    for mask in (prefix_attention(prefix_B, 256)[:, None], prefix_block_mask(prefix_B, 256)):
        tokens = torch.randn(8, 256, 256, generator=torch.Generator().manual_seed(1)).cuda().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            out = attention(tokens, mask)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), tokens)
        results.append((out, gradient))
    for dense, flex in zip(*results, strict=True):
        assert float((dense - flex).norm() / dense.norm()) < 0.01
