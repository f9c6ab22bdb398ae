"""Masks of classes: one picture of whole numbers beside each image, as ADE20K, Cityscapes and VOC have them."""

# H W of a picture, S side of the square

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline import Mixture, Sample, SampleError
from headrace.pipeline.augment.views import view_windows
from headrace.shards.images.header import check_complete, read_header, sniff_format
from headrace.shards.images.pillow import PILLOW_ERRORS, open_image
from headrace.train.objectives.dense.placement import cut_mask, nearest

OtherSizes = Literal["refuse", "nearest"]
"""refuse = a mask of another size than its picture is an error; nearest = it is resized, each pixel to the nearest."""

IGNORED = -1
"""What a pixel without a class has here, whatever the file says."""
MASK_COLUMN = "mask"
PIXELS = "mask_pixels"
"""Column of a batch: int16 [B, S, S]."""
MAX_CLASSES = 1 << 15
MASK_FORMATS = ("png", "tiff", "bmp", "gif")
MAX_MASK_PIXELS = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRules:
    """What the numbers in a mask mean."""

    num_classes: int
    """Classes are 0 .. num_classes - 1."""
    ignore_label: int = 255
    """The number of a pixel without a class, as the file has it."""
    reduce_zero_label: bool = False
    """0 in the file means no class, and 1 is class 0: ADE20K's challenge masks."""
    other_sizes: OtherSizes = "refuse"
    """What becomes of a mask that has not the size of its picture."""

    def fitted(self, mask_HW: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.generic]:
        """Return a mask in the size of its picture, (height, width). Raises ValueError if it has another and may not.

        `nearest` gives each pixel the number in which its middle falls.
        """
        if mask_HW.shape == size:
            return mask_HW
        if self.other_sizes == "nearest":
            rows, columns = (nearest(length, of) for length, of in zip(size, mask_HW.shape, strict=True))
            return mask_HW[rows[:, None], columns]
        height, width = size
        raise ValueError(
            f"the mask has {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels, its picture {width} x {height}; they must "
            "be the same, or --mask-sizes nearest resizes masks"
        )

    def classes_of(self, mask_HW: NDArray[np.generic]) -> NDArray[np.int16]:
        """Return the class of each pixel, IGNORED for none. Raises ValueError naming the first number that is none."""
        numbers_HW = mask_HW.astype(np.int64)
        without_HW = numbers_HW == self.ignore_label
        if self.reduce_zero_label:
            without_HW |= numbers_HW == 0
            numbers_HW = numbers_HW - 1
        wrong = ~without_HW & ((numbers_HW < 0) | (numbers_HW >= self.num_classes))
        if wrong.any():
            row, column = (int(place) for place in np.argwhere(wrong)[0])
            raise ValueError(
                f"label {int(mask_HW[row, column])} at row {row}, column {column} ({int(wrong.sum()):,} such pixels); "
                f"{self.says}"
            )
        return np.where(without_HW, IGNORED, numbers_HW).astype(np.int16)

    @property
    def says(self) -> str:
        """What is expected, in a few words."""
        first = int(self.reduce_zero_label)
        return (
            f"expected {first}..{self.num_classes - 1 + first}, {self.ignore_label} for no class"
            f"{', 0 for none too' if self.reduce_zero_label else ''}"
        )


def read_mask(data: bytes) -> NDArray[np.generic]:
    """Return the numbers of a mask, [H, W]: of a palette its places, not its colours. Raises ValueError.

    Formats that lose numbers (JPEG) and pictures of several channels are refused.
    """
    image_format = sniff_format(data)
    if image_format not in MASK_FORMATS:
        raise ValueError(f"a mask of the format {image_format or 'unknown'}; expected {', '.join(MASK_FORMATS)}")
    check_complete(data, read_header(data))  # Pillow takes a PNG without its end for whole
    try:
        with open_image(image_format, data) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, over {MAX_MASK_PIXELS:,}")
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise ValueError(
                    f"a mask of mode {image.mode}, whose pixels are colours; expected one number a pixel (L, P, I;16)"
                )
            image.load()
            numbers_HW: NDArray[np.generic] = np.asarray(image)
            return numbers_HW
    except PILLOW_ERRORS as error:
        text = str(error) or type(error).__name__
        raise ValueError(
            text if text.startswith(("a mask", f"{image_format}:")) else f"{image_format}: {text}"
        ) from error


@dataclass(frozen=True, slots=True)
class WholeMask:
    """The classes of a picture's own pixels: of any size, so no array of a batch."""

    classes_HW: NDArray[np.int16]


class PlaceMasks:
    """Map function of a stream: the classes of the square's pixels, from the bytes in a column of the index."""

    def __init__(self, mixture: Mixture, rules: MaskRules, column: str) -> None:
        self._choose = view_windows(mixture)[0]
        self._side = mixture.image_size
        self._rules, self._column = rules, column

    def __call__(self, sample: Sample, _rng: np.random.Generator) -> Mapping[str, Any]:
        """Return PIXELS. Raises SampleError for a mask that is none, or not of its picture."""
        data = sample.columns[self._column]
        if data is None:
            return {PIXELS: np.full((self._side, self._side), IGNORED, np.int16)}
        classes_HW = classes_in(data, self._rules, sample)
        window = self._choose(sample.position, *classes_HW.shape)
        return {PIXELS: cut_mask(classes_HW, window, side=self._side, fill=IGNORED)}


def classes_in(data: bytes, rules: MaskRules, sample: Sample) -> NDArray[np.int16]:
    """Return the classes of a sample's mask, of its picture's size. Raises SampleError, which the stream counts."""
    try:
        numbers_HW = read_mask(data)
        return rules.classes_of(
            rules.fitted(numbers_HW, sample.upright_size) if any(sample.upright_size) else numbers_HW
        )
    except ValueError as error:
        raise SampleError("mask", f"sample {sample.key!r} of source {sample.source!r}: {error}") from error
