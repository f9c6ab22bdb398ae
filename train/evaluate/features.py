"""Frozen features of a whole dataset, in memory.

Rows stand in the order of the pass, damaged samples left out, so features of two trunks over one dataset stand row by
row beside each other. Features are taken before the trunk's last norm, with attention everywhere, although training
masked it.
"""

# B batch, L patches, D width, N samples

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline import Stream, open_stream
from headrace.shards.dataset import open_dataset
from headrace.train.evaluate.passes import plain_mixture
from headrace.train.models.encoder import Encoder, EncoderShape
from headrace.train.parallel.precision import autocast
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise

IMAGES_PER_BATCH = 256
MAX_CLASSES = 100_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """Which features of how many samples."""

    layers: tuple[int, ...]
    """Blocks (0-based) whose outputs are averaged."""
    samples: int = 0
    """The first of the dataset; 0 = all."""
    memory_bytes: int = 8 << 30
    """Most that they may take."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of the pixels, as the trunk was trained."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Of the pixels, as the trunk was trained."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """One dataset seen by one trunk."""

    tokens_NLD: Tensor
    """float16, on the CPU: mean of the chosen blocks' outputs."""
    label_N: Tensor
    """int64."""


def dataset_features(encoder: Encoder, url: str, *, config: FeaturesConfig) -> Features:
    """Run a labelled dataset through the trunk.

    Damaged samples are left out with a warning. Raises ValueError for a sample without label, and where the features
    would not fit into `memory_bytes`.
    """
    shape = check_features(encoder.shape, url, config)
    wanted = shape[0]
    tokens_NLD, label_N = torch.empty(shape, dtype=torch.float16), torch.full((wanted,), -1)
    device = next(encoder.parameters()).device
    normalise = Normalise(config.mean, config.std).to(device)
    encoder.eval()
    with _open(url, encoder.shape, config) as stream, torch.no_grad(), autocast("auto", device):
        for batch in stream:
            chosen = batch.valid & (batch.position < wanted)
            if chosen.any():
                place = torch.from_numpy(batch.position[chosen])
                tokens_NLD[place] = mean_of_blocks(encoder, normalise(batch.images[chosen]), config.layers).half().cpu()
                label_N[place] = read_labels(batch.columns["label"], chosen, url)
            if int(batch.position.min()) >= wanted:
                break
    whole_N = label_N >= 0
    if not bool(whole_N.all()):
        # Their rows were never written: memory that was not set must not be taken for features.
        log.warning("%s: %d damaged samples of %d are left out", url, int((~whole_N).sum()), wanted)
        tokens_NLD, label_N = tokens_NLD[whole_N], label_N[whole_N]
    if not len(label_N):
        raise ValueError(f"{url}: every one of its {wanted} samples is damaged")
    if not bool(torch.isfinite(tokens_NLD).all()):
        raise ValueError(f"{url}: features are not finite in float16; the checkpoint has diverged")
    return Features(tokens_NLD=tokens_NLD, label_N=label_N)


def check_features(trunk: EncoderShape, url: str, config: FeaturesConfig) -> tuple[int, int, int]:
    """Return [N, L, D] of a dataset's features, from its manifest and one index.

    Raises ValueError if it is not there, has no column of labels, or its features would not fit into `memory_bytes`.
    """
    _open(url, trunk, config).close()
    total = open_dataset(url).num_samples
    wanted = min(config.samples, total) if config.samples else total
    need = 2 * wanted * trunk.num_patches * trunk.width
    if need > config.memory_bytes:
        raise ValueError(
            f"{url}: features of {wanted} samples take {need} bytes, over memory_bytes {config.memory_bytes}; use fewer"
        )
    return wanted, trunk.num_patches, trunk.width


def _open(url: str, trunk: EncoderShape, config: FeaturesConfig) -> Stream:
    mixture = plain_mixture(url, trunk.image_size, center_fraction=config.center_fraction)
    return open_stream(mixture, global_batch=IMAGES_PER_BATCH, columns=("label",), once=True)


def mean_of_blocks(encoder: Encoder, images_B3HH: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Return [B, L, D], the mean of the outputs of the blocks `layers` (0-based)."""
    total: Tensor | None = None
    for number, x_BLD in enumerate(encoder.block_outputs(images_B3HH)):
        if number in layers:
            total = x_BLD if total is None else total + x_BLD
    assert total is not None, "layers are checked by parse_layers"
    return total / len(layers)


def parse_layers(text: str, depth: int) -> tuple[int, ...]:
    """Return block numbers for `lastN` (all where there are fewer), `all`, or a list such as `3,4,5`."""
    if text == "all":
        return tuple(range(depth))
    if text.startswith("last") and text[4:].isdecimal() and int(text[4:]) > 0:
        return tuple(range(max(0, depth - int(text[4:])), depth))
    parts = text.split(",")
    if all(part.isdecimal() and int(part) < depth for part in parts) and len(set(parts)) == len(parts):
        return tuple(sorted(int(part) for part in parts))
    raise ValueError(f"layers {text!r}: expected last6, all, or different numbers of 0..{depth - 1} such as 3,4,5")


def read_labels(column: NDArray[np.generic] | list[object], chosen: NDArray[np.bool_], url: str) -> Tensor:
    """Return the labels of the chosen rows as classes. Raises ValueError for what is none."""
    if not isinstance(column, np.ndarray) or column.dtype.kind not in "ib":
        raise ValueError(f"{url}: the column label does not hold whole numbers; a probe needs classes 0, 1, 2, ...")
    labels = column[chosen].astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"{url}: a sample has no label; a probe needs one for each")
    if labels.max() >= MAX_CLASSES:
        raise ValueError(f"{url}: label {labels.max()} is no class: they are 0..{MAX_CLASSES - 1} at most")
    return torch.from_numpy(labels)
