"""What a run file says of a monitor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.pipeline import Labels


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """How well classes are told from the trunk's frozen features, every so many steps of the run."""

    kind: Literal["knn", "linear", "few_shot"]
    """knn = weighted vote of the 20 nearest; linear = least squares on all samples; few_shot = on 10 of each class."""
    train: str
    """URL of a labelled dataset: the neighbours, or what is fitted on."""
    test: str
    """URL of a labelled dataset to judge on."""
    every: int
    """Steps between two looks; there is one before the first step and one after the last."""
    name: str = ""
    """Its lines in the metrics are `monitor/NAME`; empty = the kind."""
    samples: int = 10_000
    """Samples of each dataset, spread evenly over it; 0 = all. In memory each takes 4 bytes a channel of the trunk."""
    layers: str = "last6"
    """Blocks whose outputs are averaged: lastN, all, or numbers such as 3,4,5; end = what the encoder itself makes of a
    picture, behind its last norm."""
    pooling: Literal["mean", "max"] = "mean"
    """What becomes of the tokens of an image; mean = the class token of a trunk that is read by one."""
    labels: Labels | None = None
    """How the labels of both become classes, as of a source; null = they are those already."""
    crop: Literal["center", "squash"] = "center"
    """center = the middle of a picture; squash = of one that was resized to a square, whatever its ratio: the 10-shot
    numbers of big_vision, with center_fraction 0.875."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224)."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.samples < 0:
            raise ValueError("every must be at least 1, samples at least 0")
        if self.layers == "end" and self.pooling == "max":
            raise ValueError("layers end is one row an image, with nothing to pool: leave pooling out")
        if not 0 < self.center_fraction <= 1:
            raise ValueError(f"center_fraction must be within 0..1, got {self.center_fraction}")
        if not self.called.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name must be of letters, digits, - and _, got {self.name!r}")

    @property
    def called(self) -> str:
        """The name, or the kind where there is none."""
        return self.name or self.kind


def check_names(monitors: Sequence[MonitorConfig]) -> None:
    """Raise ValueError if the lines of two monitors would have one name."""
    names = [monitor.called for monitor in monitors]
    if len(set(names)) < len(names):
        raise ValueError(f"monitors: two have one name, give each its own `name`; they are {', '.join(names)}")
