"""Prefix attention as FlexAttention takes it: which tiles of the attention matrix are empty, full or in between.

Made in closed form from the prefix lengths, on their device, without a [B, L, L] mask and without waiting: a tile is
empty if its first column lies behind both the prefix and its last row, and full if its last column lies within the
prefix or not behind its first row.
"""

# B batch, T tiles of a side

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

TILE = 128
"""Rows and columns of a tile; the kernels want powers of two, and 128 is their default."""


def prefix_block_mask(prefix_B: Tensor, length: int, *, tile: int = TILE) -> BlockMask:
    """Return the mask in which patch i looks at patch j where j is in its sample's prefix or not after i."""
    first_T = torch.arange(-(-length // tile), device=prefix_B.device) * tile
    last_T = first_T + tile - 1
    prefix_B11 = prefix_B[:, None, None]
    some_BTT = (first_T < prefix_B11) | (first_T <= last_T[:, None])
    full_BTT = (last_T < prefix_B11) | (last_T <= first_T[:, None])
    # A tile that juts out of the matrix has cells that nobody may look at: never full.
    full_BTT = full_BTT & (last_T < length) & (last_T < length)[:, None]
    num_partial, partial = _tables(some_BTT & ~full_BTT)
    num_full, full = _tables(full_BTT)

    def looks(sample: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column < prefix_B[sample]) | (column <= row)

    return BlockMask.from_kv_blocks(
        num_partial, partial, num_full, full, BLOCK_SIZE=tile, mask_mod=looks, seq_lengths=(length, length)
    )


def _tables(tiles_BTT: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of tiles how many are marked, and their columns in front of the others; one head for all."""
    order_BTT = torch.argsort(tiles_BTT.int(), dim=-1, descending=True, stable=True)
    return tiles_BTT.sum(dim=-1, dtype=torch.int32)[:, None], order_BTT.to(torch.int32)[:, None].contiguous()
