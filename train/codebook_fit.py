"""Fitting a codebook of patches: k-means in small batches over a stream, in bounded memory.

The same mixture, config and machine give the same bytes: batches and chosen patches are functions of the seeds, and
sums are made on the CPU in one order. Source of the updates: Sculley, "Web-scale k-means clustering" (WWW 2010), with
codes that nothing is nearest to put where patches fit worst.
"""

# B batch, C codes, L patches, N patches of a step, P values of a patch

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headrace.atomic import atomic_file
from headrace.config import build_config
from headrace.files import sha256_of
from headrace.overrides import apply_overrides
from headrace.pipeline import Mixture, open_stream
from headrace.shards.permutation import make_key
from headrace.strict_yaml import read_mapping
from headrace.train.objectives.codebook import MAX_CODES, TENSOR, nearest_codes
from headrace.train.objectives.patch_choice import chosen_patches
from headrace.train.objectives.targets import patches
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise
from headrace.train.runs.tensors import save_tensors

# Patches of a step for each code, and the least of them: a code then moves by a mean, not by a single patch.
PATCHES_PER_CODE = 4
MIN_PATCHES = 4096
# Share of the steps in which codes without patches are put elsewhere, and older patches count half as much as those of
# the next step; then all count the same. On CIFAR-10's patches the error is 1 to 2 % over Lloyd's; without it, 4 %.
MOVING_SHARE = 0.75
KEPT = 0.5
IMAGES_PER_BATCH = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How a codebook is fitted."""

    size: int
    """Codes."""
    patch: int
    """Side of a patch in pixels; divides the mixture's image_size."""
    images: int
    """Pictures of the mixture that are looked at."""
    patches_per_image: int = 32
    """Patches that are taken of each."""
    seed: int = 0
    """Decides which."""

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_CODES:
            raise ValueError(f"size must be 2..{MAX_CODES}, got {self.size}")
        for name in ("patch", "images", "patches_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def num_patches(self, image_size: int) -> int:
        """Patches of one picture. Raises ValueError if they do not fit into it."""
        if image_size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the mixture's image_size {image_size}")
        return (image_size // self.patch) ** 2

    def taken(self, image_size: int) -> int:
        """Patches that are looked at in all."""
        return self.images * min(self.patches_per_image, self.num_patches(image_size))

    @property
    def step(self) -> int:
        """Patches of one step."""
        return max(MIN_PATCHES, PATCHES_PER_CODE * self.size)


@dataclass(slots=True)
class Fit:
    """A codebook, and what became of it so far."""

    codebook_CP: Tensor
    count_C: Tensor = field(init=False)
    """Patches that each code has seen; older ones count less."""
    steps: int = 0
    error: float = 0.0
    """Mean squared distance of a patch to its code in the latest step, before it, by value."""
    used: float = 0.0
    """Share of the codes that were nearest to a patch of the latest step."""

    def __post_init__(self) -> None:
        self.count_C = torch.zeros(len(self.codebook_CP), dtype=torch.float64)

    def see(self, patches_NP: Tensor, *, moving: bool) -> None:
        """Move each code towards the mean of the patches that it is nearest to."""
        code_N, distance_N = nearest_codes(patches_NP, self.codebook_CP)
        size, values = self.codebook_CP.shape
        new_C = torch.bincount(code_N, minlength=size).double()
        sum_CP = torch.zeros(size, values, dtype=torch.float64).index_add_(0, code_N, patches_NP.double())
        self.count_C = (KEPT if moving else 1.0) * self.count_C + new_C
        seen_C1 = self.count_C.clamp(min=1)[:, None]
        self.codebook_CP += ((sum_CP - new_C[:, None] * self.codebook_CP) / seen_C1).float()
        self.steps += 1
        self.error, self.used = float(distance_N.mean()) / values, float((new_C > 0).double().mean())
        if moving:
            idle = torch.nonzero(self.count_C == 0)[:, 0]
            worst = torch.argsort(distance_N, descending=True, stable=True)[: len(idle)]
            self.codebook_CP[idle[: len(worst)]] = patches_NP[worst]


def fit_codebook(mixture: Mixture, config: FitConfig, *, on_patches: Callable[[int], None] = lambda _: None) -> Fit:
    """Return a codebook of the patches of a mixture; `on_patches` is told how many more were looked at.

    Raises ValueError if the mixture has several views, or fewer different patches than codes.
    """
    check_fit(mixture, config)
    steps = -(-config.taken(mixture.image_size) // config.step)
    fit: Fit | None = None
    for patches_NP in _steps(_patches(mixture, config), config.step):
        if fit is None:
            fit = Fit(_first_codes(patches_NP, config))
        fit.see(patches_NP, moving=fit.steps + 1 < MOVING_SHARE * steps)
        on_patches(len(patches_NP))
        log.info("codebook: step %d of %d, error %.4f, %.1f %% used", fit.steps, steps, fit.error, 100 * fit.used)
    if fit is None:
        raise ValueError("the mixture gave no picture")
    return fit


def check_fit(mixture: Mixture, config: FitConfig) -> None:
    """Raise ValueError for a mixture that this codebook cannot be fitted on."""
    if mixture.views:
        raise ValueError("the mixture has several views, and a codebook is fitted on one: leave `views` out")
    taken = config.taken(mixture.image_size)
    if taken < config.size:
        raise ValueError(f"{taken:,} patches are too few for {config.size:,} codes; look at more images")


def load_mixture(path: str, overrides: Sequence[str] = ()) -> Mixture:
    """Read a mixture file, or the mixture of a run file. Raises ValueError naming the file."""
    data = read_mapping(Path(path))
    part = data.get("mixture", data)
    if isinstance(part, str):
        part = read_mapping(Path(path).parent / part)
    try:
        return build_config(Mixture, apply_overrides(part, overrides, Mixture))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_codebook(path: Path, fit: Fit, config: FitConfig) -> str:
    """Write the file of a codebook whole, and return its sha256."""
    # One key: safetensors writes several in any order, and the file would not be the same again.
    said = {"fit": json.dumps(asdict(config))}
    with atomic_file(str(path)) as temporary:
        save_tensors(temporary, {TENSOR: fit.codebook_CP.contiguous()}, said)
    return sha256_of(str(path))


def _patches(mixture: Mixture, config: FitConfig) -> Iterator[Tensor]:
    """Yield the chosen patches of one batch after the other, [N, P]."""
    normalise, left = Normalise(IMAGENET_MEAN, IMAGENET_STD), config.images
    key, num_patches = make_key(config.seed, "codebook"), config.num_patches(mixture.image_size)
    number = min(config.patches_per_image, num_patches)
    images = mixture.lanes * -(-IMAGES_PER_BATCH // mixture.lanes)
    with open_stream(mixture, global_batch=images) as stream:
        while left > 0 and (batch := next(stream, None)) is not None:
            rows = np.flatnonzero(batch.valid)[:left]
            left -= len(rows)
            chosen_BL = chosen_patches(batch.position[rows], num_patches, number, key=key)
            yield patches(normalise(batch.images[rows]), config.patch)[torch.from_numpy(chosen_BL)]


def _steps(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the rows of all parts in order, `size` at a time; the last time as many as are left."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= size:
            rows = torch.cat(held)
            yield rows[:size]
            held = [rows[size:]]
    rest = torch.cat(held) if held else torch.zeros(0)
    if len(rest):
        yield rest


def _first_codes(patches_NP: Tensor, config: FitConfig) -> Tensor:
    """Return different patches of the first step, drawn at random. Raises ValueError if there are too few."""
    rows = np.ascontiguousarray(patches_NP.numpy())
    _, first = np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0], return_index=True)
    if len(first) < config.size:
        raise ValueError(
            f"the first {len(rows):,} patches are {len(first):,} different ones, too few for {config.size:,} codes"
        )
    words = np.random.Philox(key=make_key(config.seed, "first codes")).random_raw(len(first))
    return torch.from_numpy(rows[np.sort(first)[np.argsort(words, kind="stable")[: config.size]]])
