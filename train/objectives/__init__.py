"""What a run can minimise: each objective is one module that turns a batch into a sum of loss terms.

An objective returns the *sum* of its terms and says beforehand how many there are; the loop divides by their number
over all ranks and micro-batches. The one thing a reader would get wrong: a mean per micro-batch, averaged over ranks,
is biased as soon as the counts differ, and with random prefixes they always do.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from headrace.pipeline import Batch


class Objective(Protocol):
    """The methods that the loop calls on an objective; each of them is a torch module as well."""

    columns: ClassVar[tuple[str, ...]]
    """Columns of the batch that it reads beside the images."""
    splits: ClassVar[bool]
    """True if the loss of a batch is the sum over its parts, so that micro-batches and ranks may share it."""

    @property
    def train_flops_per_image(self) -> float:
        """Floating-point operations of forward and backward for one image."""
        ...

    def num_terms(self, batch: Batch) -> int:
        """Return how many terms the loss of `batch` sums; known on the host without touching the device."""
        ...

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum of the loss terms, and scalars to log that are not losses."""
        ...

    def after_step(self) -> None:
        """Bring parameters back to where they must be, after each optimizer step."""
        ...
