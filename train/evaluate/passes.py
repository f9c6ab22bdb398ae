"""Finite passes over one dataset: for validation, probes and features.

Each sample comes once, upright, centre-cropped, not flipped. Positions of such a pass are places in the dataset, not
global positions of the training stream.
"""

import dataclasses

from headrace.pipeline import Augment, Labels, Mixture, Source
from headrace.pipeline.augment.config import Interpolation
from headrace.shards.dataset import open_dataset

PLAIN = Augment(crop="center", flip=False)


def plain_mixture(
    url: str, image_size: int, *, center_fraction: float = 1.0, interpolation: Interpolation = "bilinear"
) -> Mixture:
    """Return the dataset at `url` alone, without augmentation, for one process."""
    augment = dataclasses.replace(PLAIN, center_fraction=center_fraction, interpolation=interpolation)
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


def sampled(
    mixture: Mixture, url: str, *, samples: int, center_fraction: float = 1.0, labels: Labels | None = None
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
        augment=dataclasses.replace(PLAIN, center_fraction=center_fraction),
        quarantine="",
    )
