"""How a trunk is probed: what the user chose, and the protocols of papers by name."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from headrace.pipeline import Augment
from headrace.pipeline.augment.config import INTERPOLATIONS, Interpolation
from headrace.train.evaluate.ground_truth import GroundTruthConfig

AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    # MoCo v3's and MAE's linear probes: RandomResizedCrop and flip.
    "crops": Augment(scale=(0.08, 1.0), interpolation="bicubic"),
    # arXiv:2411.14402, table A2, without its RandAugment, which the stream does not have.
    "aim": Augment(scale=(0.08, 1.0), interpolation="bicubic", colour_jitter=(0.3, 0.3, 0.3, 0.0)),
}
"""What a picture is augmented by while a probe is fitted; None = the picture as it is judged, the same every epoch."""

PROTOCOLS: dict[str, dict[str, Any]] = {
    # A comparison of two trunks in minutes: fewer epochs, higher rates.
    "quick": {},
    # arXiv:2411.14402, table A2 (the first paper's own table 11 is not public): 7 rates x 2 decays.
    "aim": {
        "epochs": 100,
        "images_per_batch": 1024,
        "lrs": (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3),
        "weight_decays": (0.05, 0.1),
        "warmup_epochs": 5.0,
        "augment": "aim",
        "center_fraction": 0.875,
        "interpolation": "bicubic",
    },
    # MoCo v3, main_lincls.py: SGD, rate 3 x batch / 256, no decay, no clipping.
    "moco_v3": {
        "head": "linear",
        "epochs": 90,
        "images_per_batch": 1024,
        "lrs": (12.0,),
        "weight_decays": (0.0,),
        "optimizer": "sgd",
        "clip_grad_norm": 0.0,
        "min_lr": 0.0,
        "augment": "crops",
        "center_fraction": 0.875,
    },
}
"""What differs from the fields' defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How a trunk is probed: as AIM's authors do (arXiv:2411.14402, table A2), in fewer epochs, with higher rates."""

    train: str
    """URL of a labelled dataset to fit on."""
    test: str
    """URL of a labelled dataset to judge on."""
    head: str = "attentive"
    """What reads the features: a name of the table `PROBES`."""
    layers: str = "last6"
    """Blocks whose outputs are averaged: lastN, all, or numbers such as 3,4,5."""
    sweep_depth: bool = False
    """Fit a probe on each block alone too, in the same passes of the trunk."""
    epochs: int = 10
    """Passes over the training samples."""
    images_per_batch: int = 512
    """Images of one step, over all processes."""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates, all fitted in one pass; the one best on held-out training samples is reported."""
    weight_decays: tuple[float, ...] = (0.05,)
    """On matrices; each is fitted with each learning rate."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW with betas 0.9, 0.999, or SGD with momentum 0.9."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from 0 in a line; a cosine follows."""
    min_lr: float = 1e-5
    """Where the cosine ends."""
    clip_grad_norm: float = 3.0
    """Per probe; 0 = gradients are not clipped."""
    augment: Literal["none", "crops", "aim"] = "none"
    """A name of the table `AUGMENTS`: each epoch sees other crops, so the trunk runs in every epoch."""
    seed: int = 0
    """Decides the probes' first weights, the held-out tenth, the order of samples and their crops."""
    untrained: bool = False
    """Replace the trunk's weights by fresh ones from the run's seed: the comparison."""
    samples: int = 0
    """Training samples to use, the first of the dataset; 0 = all."""
    memory_bytes: int = 8 << 30
    """Most that the features of the training set may take in one process; where they take more, the trunk runs in
    every epoch, or a cache on disk is read."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224), as published."""
    interpolation: Interpolation = "bilinear"
    """How a picture is resized where it is judged, and where it is fitted without `augment`; AIM's is bicubic."""
    images_per_forward: int = 256
    """Images that go through the trunk at once, of one process."""

    metric: str = "top1"
    """top1 = share of the test samples that are right; mean_per_class = mean over classes of their share."""
    ground_truth: str = ""
    """A file with several right labels a test sample (ReaL), `.json`, `.npy` or `.parquet`; '' = the index's label."""
    class_subset: str = ""
    """A file with the class of the training set for each label of the test set, `.json` or a number a line
    (ImageNet-A, -R); a choice is made among those. '' = both have the same labels."""

    def __post_init__(self) -> None:
        assert self.truth.metric, "it checks itself"
        if min(self.epochs, self.images_per_batch, self.images_per_forward) < 1 or self.samples < 0:
            raise ValueError("epochs and images_per_batch must be at least 1, samples at least 0")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"learning rates must be above 0 and finite, at least one, got {self.lrs}")
        if not self.weight_decays or not all(0 <= decay < math.inf for decay in self.weight_decays):
            raise ValueError(f"weight decays must be at least 0 and finite, at least one, got {self.weight_decays}")
        if not 0 < self.center_fraction <= 1:
            raise ValueError(f"center_fraction must be within 0..1, got {self.center_fraction}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs must be at least 0 and under the {self.epochs} epochs")
        if not (0 <= self.min_lr < math.inf and 0 <= self.clip_grad_norm < math.inf):
            raise ValueError("min_lr and clip_grad_norm must be at least 0 and finite")
        for what, name, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("augment", self.augment, AUGMENTS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if name not in known:
                raise ValueError(f"{what}: unknown {name!r}; known: {', '.join(known)}")

    @property
    def truth(self) -> GroundTruthConfig:
        """How choices are judged."""
        return GroundTruthConfig(metric=self.metric, labels=self.ground_truth, classes=self.class_subset)

    @property
    def settings(self) -> list[tuple[float, float]]:
        """(Learning rate, weight decay) of each probe that is fitted."""
        return [(lr, decay) for decay in self.weight_decays for lr in self.lrs]


OPTIMIZERS = ("adamw", "sgd")


def protocol(name: str) -> dict[str, Any]:
    """Return the fields of a published protocol. Raises ValueError for an unknown name."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: unknown {name!r}; known: {', '.join(PROTOCOLS)}")
    return dict(PROTOCOLS[name])
