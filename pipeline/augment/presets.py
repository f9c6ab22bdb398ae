"""Augmentations as papers and their code have them, by name.

`preset: NAME` in a mixture stands for the views below. It is written out where the mixture is made, the file's own
`augment` keys on top of every view, so that what is saved, and a stream's state, say the values and no name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from headrace.config import build_config, config_to_dict
from headrace.pipeline.augment.config import Augment, View
from headrace.text import known_words

# MoCo v3, main_moco.py, as its ViTs are trained (crop_min 0.08; its ResNets have 0.2). Asymmetric as BYOL.
_MOCO = Augment(colour_jitter=(0.4, 0.4, 0.2, 0.1), colour_jitter_probability=0.8, grayscale_probability=0.2)
_MOCO_1 = dataclasses.replace(_MOCO, blur_probability=1.0)
_MOCO_2 = dataclasses.replace(_MOCO, blur_probability=0.1, solarize_probability=0.2)

# SimCLR, arXiv:2002.05709, appendix A, strength 1: ColorJitter(0.8, 0.8, 0.8, 0.2).
_SIMCLR = Augment(
    colour_jitter=(0.8, 0.8, 0.8, 0.2),
    colour_jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    interpolation="bicubic",
)

# SwAV, src/multicropdataset.py and its 800-epoch script: SimCLR's colours, bilinear.
_SWAV = dataclasses.replace(_SIMCLR, interpolation="bilinear", scale=(0.14, 1.0))
_SWAV_SIDE, _SWAV_SMALL_SIDE = 224, 96

PRESETS: dict[str, tuple[View, ...]] = {
    # arXiv:2401.08541, appendix, and ml-l3m's configuration but for its colour jitter.
    "aim": (View(augment=Augment(scale=(0.4, 1.0), interpolation="bicubic")),),
    "moco_v3": (View(augment=_MOCO_1), View(augment=_MOCO_2)),
    # arXiv:2006.07733, appendix B, table 6.
    "byol": tuple(
        View(augment=dataclasses.replace(augment, interpolation="bicubic")) for augment in (_MOCO_1, _MOCO_2)
    ),
    "simclr": (View(count=2, augment=_SIMCLR),),
    "swav": (
        View(count=2, augment=_SWAV),
        View(count=6, image_size=_SWAV_SMALL_SIDE, augment=dataclasses.replace(_SWAV, scale=(0.05, 0.14))),
    ),
    # open_clip's image_transform.
    "clip": (View(augment=Augment(scale=(0.9, 1.0), flip=False, interpolation="bicubic")),),
    # SimMIM, data_simmim.py.
    "simmim": (View(augment=Augment(scale=(0.67, 1.0))),),
    # Resize(256) and CenterCrop(224).
    "eval": (View(augment=Augment(crop="center", center_fraction=0.875, flip=False)),),
}


def preset_views(name: str, *, image_size: int = 224, **changes: Any) -> tuple[View, ...]:
    """Return the views of a preset, every augment with `changes`; the small ones shrink with `image_size`.

    Raises ValueError for an unknown name, TypeError for an unknown change.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: unknown {name!r}; {known_words(name, PRESETS)}")
    return tuple(
        dataclasses.replace(
            view,
            image_size=view.image_size and max(1, round(view.image_size * image_size / _SWAV_SIDE)),
            augment=dataclasses.replace(view.augment or Augment(), **changes),
        )
        for view in PRESETS[name]
    )


def written_out(mixture: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mixture's plain data with its `preset`, if that is one, as `augment` and `views`; null is none.

    Raises ValueError if the file gives views and the preset has several.
    """
    data = dict(mixture)
    if data.get("preset", "") is None:  # as other keys are unset
        del data["preset"]
    name, changes, side = data.get("preset"), data.get("augment", {}), data.get("image_size", _SWAV_SIDE)
    if not isinstance(name, str) or name not in PRESETS or not isinstance(changes, dict) or not isinstance(side, int):
        return data  # what is wrong with it is said where it is checked
    del data["preset"]
    views = [config_to_dict(view) for view in preset_views(name, image_size=side)]
    for view in views:
        view["augment"] |= changes
    data["augment"] = views[0]["augment"]
    if sum(view["count"] for view in views) > 1:
        if data.get("views"):
            raise ValueError(f"preset: {name} gives the views: leave `views` out, or the preset")
        _refuse_once(views[0]["augment"])
        data["views"] = views
    return data


def _refuse_once(augment: dict[str, Any]) -> None:
    """Raise ValueError for a change that no view can take, before it is said of every view that nobody wrote."""
    try:
        build_config(Augment, augment)
    except ValueError as error:
        raise ValueError(f"augment: {str(error).removeprefix('top level: ')}") from None
