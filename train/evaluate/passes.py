"""Finite passes over one dataset: for validation, probes and features.

Invariant: each sample once, upright, centre-cropped, not flipped. The one thing a reader would get wrong: positions of
such a pass are places in the dataset, not global positions of the training stream.
"""

import dataclasses

from headrace.pipeline import Augment, Mixture, Source

PLAIN = Augment(crop="center", flip=False)


def plain_mixture(url: str, image_size: int) -> Mixture:
    """Return the dataset at `url` alone, without augmentation, for one process."""
    return Mixture(image_size=image_size, lanes=1, sources=(Source(name="data", url=url),), augment=PLAIN)


def same_reading(mixture: Mixture, url: str) -> Mixture:
    """Return the dataset at `url` alone, without augmentation, read with the lanes and limits of `mixture`."""
    return dataclasses.replace(mixture, sources=(Source(name="data", url=url),), augment=PLAIN, views=(), quarantine="")
