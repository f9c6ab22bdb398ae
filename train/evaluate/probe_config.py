"""How a trunk is probed: what the user chose, and the protocols of papers by name."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from headrace.pipeline import Augment
from headrace.pipeline.augment.config import INTERPOLATIONS, Interpolation
from headrace.text import known_words
from headrace.train.evaluate.ground_truth import GroundTruthConfig
from headrace.train.evaluate.passes import CROPS, Crop

AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    # MAE's linear probe: RandomResizedCrop and flip.
    "crops": Augment(scale=(0.08, 1.0), interpolation="bicubic"),
    # MoCo v3's: the same, resized as torchvision does unless told otherwise.
    "bilinear_crops": Augment(scale=(0.08, 1.0), interpolation="bilinear"),
    # arXiv:2411.14402, table A2, without its RandAugment: numbers of before stay comparable.
    "aim": Augment(scale=(0.08, 1.0), interpolation="bicubic", colour_jitter=(0.3, 0.3, 0.3, 0.0)),
}
"""What a picture is augmented by while a probe is fitted; None = the picture as it is judged, the same every epoch."""

# MoCo v3, arXiv:2104.02057, section 5, and main_lincls.py: SGD on the class token behind the last norm, no decay, no
# clipping, no warm-up. Its rates are per 256 images.
_MOCO_V3: dict[str, Any] = {
    "head": "linear",
    "layers": "end",
    "norm": "none",
    "epochs": 90,
    "weight_decays": (0.0,),
    "optimizer": "sgd",
    "clip_grad_norm": 0.0,
    "min_lr": 0.0,
    "augment": "bilinear_crops",
    "center_fraction": 0.875,
}

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
    # The released code: rate 3 x batch / 256.
    "moco_v3": {**_MOCO_V3, "images_per_batch": 1024, "lrs": (12.0,)},
    # The paper: a larger batch, and the best of several rates, which it does not list: 0.1 to 10 x batch / 256.
    "moco_v3_paper": {**_MOCO_V3, "images_per_batch": 4096, "lrs": (1.6, 4.8, 16.0, 48.0, 160.0)},
    # MAE, arXiv:2111.06377, table 10, and main_linprobe.py: LARS, rate 0.1 x batch / 256, BatchNorm before the head.
    "mae": {
        **_MOCO_V3,
        "norm": "batch",
        "images_per_batch": 16384,
        "lrs": (6.4,),
        "optimizer": "lars",
        "warmup_epochs": 10.0,
        "augment": "crops",
        "interpolation": "bicubic",
    },
    # Scaling Vision Transformers, arXiv:2106.04560, and big_vision's configs/common_fewshot.py: a few shots of what the
    # head reads, pictures resized to 256 x 256 and cut to 224.
    "big_vision": {"head": "few-shot", "layers": "end", "crop": "squash", "center_fraction": 0.875},
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
    """Blocks whose outputs are averaged: lastN, all, or numbers such as 3,4,5. end = what the encoder itself makes of a
    picture, behind its last norm: the class token where it has one, else the mean."""
    norm: Literal["batch", "none"] = "batch"
    """What stands before the head: BatchNorm without affine, or nothing (MoCo v3); none is for the head linear."""
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
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW with betas 0.9, 0.999, or SGD or LARS with momentum 0.9."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from 0 in a line; a cosine follows."""
    min_lr: float = 1e-5
    """Where the cosine ends."""
    clip_grad_norm: float = 3.0
    """Per probe; 0 = gradients are not clipped."""
    augment: Literal["none", "crops", "bilinear_crops", "aim"] = "none"
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
    crop: Crop = "center"
    """center = the middle of a picture; squash = of one that was resized to a square, whatever its ratio."""
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
        if self.head == "attentive" and (self.layers == "end" or self.norm == "none"):
            raise ValueError(
                f"an attentive head reads tokens of blocks behind a BatchNorm, and layers is {self.layers}, norm "
                f"{self.norm}; take --head linear, or leave them out"
            )
        for what, name, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("augment", self.augment, AUGMENTS),
            ("norm", self.norm, ("batch", "none")),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("crop", self.crop, CROPS),
        ):
            if name not in known:
                raise ValueError(f"{what}: unknown {name!r}; {known_words(name, known)}")

    @property
    def truth(self) -> GroundTruthConfig:
        """How choices are judged."""
        return GroundTruthConfig(metric=self.metric, labels=self.ground_truth, classes=self.class_subset)

    @property
    def told(self) -> dict[str, Any]:
        """The config as plain data that names a fit or a result; what came later is left out where it is as before."""
        data = asdict(self)
        if self.crop == "center":
            del data["crop"]
        return data

    @property
    def settings(self) -> list[tuple[float, float]]:
        """(Learning rate, weight decay) of each probe that is fitted."""
        return [(lr, decay) for decay in self.weight_decays for lr in self.lrs]


OPTIMIZERS = ("adamw", "sgd", "lars")


def protocol(name: str) -> dict[str, Any]:
    """Return the fields of a published protocol; `moco-v3` is `moco_v3`. Raises ValueError for an unknown name."""
    name = name.replace("-", "_")
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: unknown {name!r}; {known_words(name, PROTOCOLS)}")
    return dict(PROTOCOLS[name])
