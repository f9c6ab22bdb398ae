"""What a run minimises: the base of every objective, and what its config must offer.

An objective returns the *sum* of its loss terms and says beforehand how many there are. The loop divides by their
number over all ranks and micro-batches: a mean per micro-batch, averaged over ranks, is biased as soon as the counts
differ, and with random prefixes they always do.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.pipeline import Batch, MapFunction, Mixture
from headrace.train.execution import PLAIN, Execution
from headrace.train.models.encoder import Encoder
from headrace.train.parallel.ranks import ALONE, Ranks
from headrace.train.pixels import Normalise

Columns = Mapping[str, NDArray[np.generic] | list[Any]]
"""Columns of the index as a batch has them: numbers as arrays (missing: -1 or NaN), everything else as lists."""


class RowError(ValueError):
    """What the index says of one sample cannot be trained on."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row
        """Number of the sample among those that were looked at; whoever knows its name puts it in front."""


class Objective(nn.Module):
    """The base: a module with its trunk and heads. A subclass gives `train_flops_per_image`, `num_terms`, `forward`."""

    columns: tuple[str, ...] = ()
    """Columns of the index that `forward` reads beside the images."""
    missing: str = ""
    """Name of the metric that counts samples whose columns hold nothing to train on; empty = it needs none."""
    reports: tuple[str, ...] = ()
    """Names of what `forward` reports and validation is to average over the terms."""
    splits: bool = True
    """True if the loss of a batch is the sum over its parts, so that micro-batches and ranks may share it."""
    gathers: bool = False
    """True if `forward` gathers what it needs from other ranks: several processes may share a batch all the same."""
    averages: bool = True
    """True if an average of its weights (`ema`) is a model as well."""
    shows_whole: bool = False
    """True if validation shows each picture whole, in the middle of its square, where others cut its middle out."""
    least_samples: int = 1
    """Fewest different pictures that the loss makes sense with."""
    caches: bool = False
    """True if `prepare` finds what the parts of a batch need of each other: micro-batches may share it all the same."""
    scalars: tuple[str, ...] = ()
    """Parameters of one number: [1] here, as a model that is spread wants, and [] in released files."""
    reads: Mapping[str, Any] = MappingProxyType({})
    """The run's mixture as plain data: how pictures are read, for those who export; empty = not known."""
    released_prefix: str = ""
    """What the names of parameters have in front that exported files leave out."""
    ranks: Ranks = ALONE
    """Who computes the same step; the run sets it before the first one."""
    execution: Execution = PLAIN
    """How forward and backward are computed; `run_as` sets it."""
    by_place: Tensor | None = None
    """While validating: sums and numbers of the losses at each place, float64 [2, num_places]; forward adds to it."""
    normalise: Normalise
    """From the stream's uint8 images to what the trunk takes."""

    @property
    def trunk(self) -> Encoder | None:
        """The encoder that probes read; None = there is none that they can."""
        return None

    @property
    def num_places(self) -> int:
        """Places of a sample whose losses validation tells apart; 0 = they are not."""
        return 0

    @property
    def train_flops_per_image(self) -> float:
        """Floating-point operations of forward and backward for one image."""
        raise NotImplementedError

    def needed_flops(self, batch: Batch) -> float:
        """Return the operations that the loss of `batch` needs: fewer where forward leaves out what nobody reads."""
        return self.train_flops_per_image * len(batch.position)

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which samples have what the loss needs of `columns`. Raises RowError for what can never be right.

        Asked only of an objective with a name for `missing`.
        """
        raise NotImplementedError

    def counted(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which rows of `batch` have a place in the loss."""
        return batch.valid & self.usable(batch.columns) if self.missing else batch.valid

    def num_missing(self, batch: Batch) -> int:
        """Return how many rows of `batch` are left out because their columns hold nothing to train on."""
        return int((batch.valid & ~self.usable(batch.columns)).sum()) if self.missing else 0

    def num_terms(self, batch: Batch) -> int:
        """Return how many terms the loss of `batch` sums; known on the host without touching the device."""
        raise NotImplementedError

    def sample_map(self, mixture: Mixture) -> MapFunction | None:  # noqa: ARG002  the base makes nothing
        """Return what the stream of `mixture` makes of each sample beside its pixels, as `open_stream` takes it."""
        return None

    def blank_columns(self, size: int) -> dict[str, Any]:  # noqa: ARG002  the base has none
        """Return what `sample_map` would give for so many blank pictures: what a step takes is counted on them."""
        return {}

    def before_cut(self, batch: Batch) -> Batch:
        """Return this rank's share of a training step with what its parts need of each other.

        Called once a step, before the share is cut into micro-batches.
        """
        return batch

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum of the loss terms, and scalars to log: means over the terms, or values of the model."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Raise ValueError if a file that the config names is not what it says."""

    def expect_lanes(self, lanes: int, *, global_batch: int) -> None:
        """Raise ValueError if the lanes of a run give this objective too few pictures a step each."""

    def expect_views(self, sides: Sequence[int], *, global_batch: int) -> None:
        """Take note of the sides in pixels of a picture's views. Raises ValueError if the loss cannot be of these."""

    def fix_prefix(self, prefix: int | None) -> None:
        """Let each sample have a prefix of so many patches from now on; None = as in training.

        Raises ValueError for an objective without prefixes.
        """
        if prefix is not None:
            raise ValueError("this objective has no prefixes to fix; leave validation.prefix out")

    def through_trunk(
        self, images_BHH3: NDArray[np.uint8] | Tensor, read: Callable[[Encoder, Tensor], Tensor]
    ) -> Tensor:
        """Return what `read` makes of the trunk and normalised images.

        A spread model has its weights together in here, as in `forward`; all ranks call it.
        """
        assert self.trunk is not None, "the caller knows that there is one"
        return read(self.trunk, self.normalise(images_BHH3))

    def run_as(self, execution: Execution) -> None:
        """Compute from now on as `execution` says; called once, before the first forward."""
        self.execution = execution
        execution.apply(self)

    def follow_weights(self, given: Collection[str] = ()) -> None:
        """Bring what follows from the weights in line with those of step 0, which were read from elsewhere.

        `given` are the released names of what was read: that stays as it is, where it can.
        """

    def before_step(self, step: int, steps: int) -> None:
        """Prepare step `step` (0-based) of `steps`, before its first forward; a step done again prepares the same."""

    def prepare(self, parts: Sequence[Batch]) -> None:
        """Find what the losses of a batch's parts need of each other, before the first forward; called on all ranks."""

    def before_update(self) -> None:
        """Change the gradients of a step, all of which are there, before they are judged and clipped."""
        if self.trunk is not None:
            self.trunk.before_update()

    def after_step(self) -> None:
        """Bring parameters back to where they must be, after the optimizer moved them."""

    @property
    def exported_config(self) -> "ObjectiveConfig | None":
        """The objective that an exported file names; None = the run's."""
        return None

    def exported_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return what of the weights, under released names, an exported file holds."""
        return tensors

    def begin_pass(self) -> None:
        """Keep of each forward from now on what `pass_values` needs; a validation begins."""

    def pass_values(self) -> Mapping[str, float]:
        """Return what is a value of all samples of a pass and no mean over terms, and forget them; on all ranks."""
        return {}

    def export_beside(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write what other programs read beside `model.safetensors`; `tensors` are the weights under released names."""


class ObjectiveConfig(Protocol):
    """What the frozen dataclass of an objective has in common with the others."""

    @property
    def kind(self) -> str:
        """The tag in a run file: a `Literal` field with one value, the name in the table."""
        ...

    def build(self, *, image_size: int, seed: int) -> Objective:
        """Return the objective with its initial weights, drawn from torch's generator, which is seeded by then."""
        ...


def released_names(objective: Objective, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` of the objective under the names of the released models."""
    names = {name: name.removeprefix(objective.released_prefix) for name in tensors}
    assert len(set(names.values())) == len(names), "two parameters would have one released name"
    return {names[name]: _released(objective, name, tensor) for name, tensor in tensors.items()}


def names_in_trunk(objective: Objective) -> dict[str, str]:
    """Return the trunk's own name for each released name of an objective that is of its trunk."""
    if objective.trunk is None:
        return {}
    inside = {id(tensor): name for name, tensor in objective.trunk.state_dict(keep_vars=True).items()}
    states = released_names(objective, objective.state_dict(keep_vars=True))
    return {name: inside[id(tensor)] for name, tensor in states.items() if id(tensor) in inside}


def _released(objective: Objective, name: str, tensor: Tensor) -> Tensor:
    """Return a view: what is copied into it changes the parameter."""
    return tensor.view(()) if name in objective.scalars and tensor.numel() == 1 else tensor
