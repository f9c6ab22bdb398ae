"""What is done to the views of a mixture, in words for people."""

from headrace.pipeline.augment.config import Augment, RandAugment, RandomErasing
from headrace.pipeline.augment.views import planned_views
from headrace.pipeline.mixture import Mixture


def describe_views(mixture: Mixture) -> list[str]:
    """Return a line for each run of views that are the same; none where every view has the defaults."""
    views = planned_views(mixture)
    if all(view.augment == Augment() for view in views):
        return []
    lines = []
    first = 0
    for last, view in enumerate(views):
        if last + 1 == len(views) or views[last + 1] != view:
            numbers = f"view {first}" if first == last else f"views {first}-{last}"
            lines.append(f"{numbers}: {view.image_size} pixels, {describe_augment(view.augment)}")
            first = last + 1
    return lines


def describe_augment(augment: Augment) -> str:
    """Return one augmentation in a line."""
    low, high = augment.scale
    window = {
        "random": f"random crop of {low:g}-{high:g}",
        "center": f"centre crop of {augment.center_fraction:g}",
        "squash": f"squashed, the middle {augment.center_fraction:g}",
        "pad": f"padded with {augment.pad_value}",
        "scale_jitter": f"scale jitter of {augment.jitter[0]:g}-{augment.jitter[1]:g}, filled with {augment.pad_value}",
    }[augment.crop]
    parts = [f"{window} {augment.interpolation}"]
    if augment.flip:
        parts.append("flip")
    if augment.rand_augment is not None:
        parts.append(describe_rand_augment(augment.rand_augment))
    if augment.jitters:
        strengths = " ".join(f"{strength:g}" for strength in augment.colour_jitter)
        parts.append(f"colour jitter {strengths} in {augment.colour_jitter_probability:.0%}")
    if augment.grayscale_probability:
        parts.append(f"greyscale in {augment.grayscale_probability:.0%}")
    if augment.blur_probability:
        low, high = augment.blur_sigma
        parts.append(f"blur of {low:g}-{high:g} in {augment.blur_probability:.0%}")
    if augment.solarize_probability:
        parts.append(f"solarised from {augment.solarize_threshold} in {augment.solarize_probability:.0%}")
    if augment.random_erasing is not None:
        parts.append(describe_erasing(augment.random_erasing))
    return ", ".join(parts)


def describe_rand_augment(config: RandAugment) -> str:
    """Return RandAugment in a few words."""
    kind = "" if config.increasing else " not increasing"
    spread = f" +- {config.magnitude_std:g}" if config.magnitude_std else ""
    share = f" (each in {config.probability:.0%})" if config.probability < 1 else ""
    return f"RandAugment of {config.num_ops} at {config.magnitude:g}{spread}{kind}{share}"


def describe_erasing(config: RandomErasing) -> str:
    """Return random erasing in a few words."""
    most = f" up to {config.count}" if config.count > 1 else ""
    area = f"{config.min_area:.2g}-{config.max_area:.2g}"
    return f"random erasing of{most} {area} ({config.mode}) in {config.probability:.0%}"
