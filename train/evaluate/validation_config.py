"""What a run's validation is."""

from dataclasses import dataclass

from headrace.pipeline import Labels
from headrace.pipeline.augment.config import Interpolation
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.objective import ObjectiveConfig
from headrace.train.objectives.patch_config import PatchConfig

# Patches of the prefix that a word of `prefix` stands for; with one patch attention is causal.
PREFIXES: dict[str, int | None] = {"random": None, "causal": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """The loss on images that are not trained on, with prefixes that never change."""

    dataset: str
    """URL of a dataset; read once in full or up to `samples`, centre-cropped, not augmented."""
    every: int
    """Steps between two validations; there is one before the first step and one after the last."""
    labels: Labels | None = None
    """How its labels become those of the mixture, as of a source; null = they are those already."""
    samples: int = 0
    """Samples that are read, the first of the pass; 0 = all."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224)."""
    interpolation: Interpolation = "bilinear"
    """How the crop is resized; AIM's evaluation has bicubic."""
    prefix: str | int = "random"
    """Of aim: random = a function of the place in the pass; causal = none; or so many patches in every picture."""
    by_place: bool = False
    """Of aim and masked: a line `loss_by_place` in metrics.jsonl beside each validation, with the mean loss of the
    patches at each place."""
    of_average: bool = True
    """Where the run has an `ema`, its loss besides, as `ema_loss`: a validation then takes twice as long."""

    @property
    def fixed_prefix(self) -> int | None:
        """Patches of the prefix of every picture; None = as in training."""
        return PREFIXES[self.prefix] if isinstance(self.prefix, str) else self.prefix

    def __post_init__(self) -> None:
        if self.every < 1 or self.samples < 0:
            raise ValueError("every must be at least 1, samples at least 0")
        if isinstance(self.prefix, str) and self.prefix not in PREFIXES:
            raise ValueError(f"prefix must be {', '.join(PREFIXES)} or a number of patches, got {self.prefix[:80]!r}")
        if not 0 < self.center_fraction <= 1:
            raise ValueError(f"center_fraction must be within 0..1, got {self.center_fraction}")


def check_validation(validation: ValidationConfig | None, objective: ObjectiveConfig, image_size: int) -> None:
    """Raise ValueError if a run's objective has not what its validation asks for."""
    if validation is None:
        return
    if validation.by_place and not isinstance(objective, PatchConfig):
        raise ValueError(f"validation.by_place is for aim and masked, and this is {objective.kind}; leave it out")
    prefix = validation.fixed_prefix
    if prefix is None:
        return
    if not isinstance(objective, AimConfig):
        raise ValueError(f"validation.prefix is for aim, and this is {objective.kind}; leave it out")
    patches = objective.trunk(image_size).num_patches
    if not 1 <= prefix < patches:
        raise ValueError(
            f"validation.prefix must be 1..{patches - 1}, as a picture has {patches} patches, got {prefix}"
        )
