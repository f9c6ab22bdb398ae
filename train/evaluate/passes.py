"""Finite passes over one dataset: for validation, probes and features.

Each sample comes once, upright, centre-cropped, not flipped. Positions of such a pass are places in the dataset, not
global positions of the training stream.
"""

import dataclasses
from typing import Literal, TypeAlias, get_args

from headrace.pipeline import Augment, Labels, Mixture, Source
from headrace.pipeline.augment.config import Interpolation
from headrace.shards.dataset import open_dataset

PLAIN = Augment(crop="center", flip=False)

Crop: TypeAlias = Literal["center", "squash"]
"""What is seen of a picture: the middle of it, or of what is left when its ratio is lost, as big_vision's few shots."""
CROPS: tuple[Crop, ...] = get_args(Crop)
WHOLE = Augment(crop="pad", flip=False)


def plain_mixture(
    url: str,
    image_size: int,
    *,
    crop: Crop = "center",
    center_fraction: float = 1.0,
    interpolation: Interpolation = "bilinear",
) -> Mixture:
    """Return the dataset at `url` alone, without augmentation, for one process."""
    augment = Augment(crop=crop, flip=False, center_fraction=center_fraction, interpolation=interpolation)
    return Mixture(image_size=image_size, lanes=1, sources=(Source(name="data", url=url),), augment=augment)


def same_reading(
    mixture: Mixture,
    url: str,
    *,
    center_fraction: float = 1.0,
    interpolation: Interpolation = "bilinear",
    labels: Labels | None = None,
) -> Mixture:
    """Return the dataset at `url` alone, read with the lanes and limits of `mixture`.

    Without augmentation, unless the mixture has several views: a loss that compares views needs them as in training.
    They are functions of the position, so the number is comparable all the same.
    """
    sources = (Source(name="data", url=url, labels=labels),)
    if mixture.views:
        return dataclasses.replace(mixture, sources=sources, quarantine="")
    augment = dataclasses.replace(PLAIN, center_fraction=center_fraction, interpolation=interpolation)
    return dataclasses.replace(mixture, sources=sources, augment=augment, quarantine="")


def whole_pictures(url: str, image_size: int, *, interpolation: Interpolation = "bilinear") -> Mixture:
    """Return the dataset at `url` alone, each picture whole in the middle of its square, its ratio kept."""
    return showing_whole(plain_mixture(url, image_size, interpolation=interpolation))


def showing_whole(mixture: Mixture) -> Mixture:
    """Return the mixture with each picture whole in its square; how it is resized stays."""
    augment = dataclasses.replace(WHOLE, interpolation=mixture.augment.interpolation)
    return dataclasses.replace(mixture, augment=augment, views=())


def sampled(
    mixture: Mixture,
    url: str,
    *,
    samples: int,
    crop: Crop = "center",
    center_fraction: float = 1.0,
    labels: Labels | None = None,
) -> Mixture:
    """Return about `samples` of the dataset at `url` (0 = all), read with the limits of `mixture`, not augmented.

    They are spread evenly, so a dataset that lies class by class keeps its balance.
    """
    total = open_dataset(url).num_samples
    fraction = min(1.0, samples / total) if samples and total else 1.0
    return dataclasses.replace(
        mixture,
        sources=(Source(name="data", url=url, labels=labels, fraction=fraction),),
        segments=(),
        views=(),
        augment=dataclasses.replace(PLAIN, crop=crop, center_fraction=center_fraction),
        quarantine="",
    )
