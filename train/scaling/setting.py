"""What else a run has beside size, samples and length: only runs that have the same are put into one law.

A setting is text, `name=value` parts with a semicolon between them, or whatever a table of others says.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from headrace.config import canonical_json
from headrace.train.config import RunConfig, public_dict

SIZES = frozenset(
    {"model", "width", "depth", "heads", "depths", "mlp_width", "head_width", "head_depth", "head_heads", "drop_path"}
)
"""Fields of an objective that are its size, or that studies choose by it."""
JUDGED = frozenset({"dataset", "center_fraction", "interpolation", "prefix"})
"""Fields of a validation that change its loss."""
FAMILIES = ("swinv2", "resnet")
MAX_TOLD = 200


def setting_of(config: RunConfig) -> str:
    """Return the objective but for its size, the datasets with their weights, and how pictures are seen and judged."""
    data = public_dict(config)
    mixture = data["mixture"]
    seen = {
        "objective": data["objective"],
        "image_size": mixture["image_size"],
        "augment": mixture["augment"],
        "views": mixture["views"],
        "data": [{name: source[name] for name in ("url", "weight")} for source in mixture["sources"]],
        "validation": {name: value for name, value in (data["validation"] or {}).items() if name in JUDGED},
    }
    return "; ".join(sorted(_parts(seen)))


def _parts(value: Any, where: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "model" and isinstance(part, str):
                yield f"{where}.family={next((family for family in FAMILIES if part.startswith(family)), 'vit')}"
            if name not in SIZES:
                yield from _parts(part, f"{where}.{name}" if where else name)
    else:
        yield f"{where}={canonical_json(value)}"


def told_apart(settings: Sequence[str]) -> dict[str, str]:
    """Return for each of several settings the parts that not all of them have; '' where there is but one."""
    parts = {setting: [part for part in setting.split("; ") if part] for setting in dict.fromkeys(settings)}
    shared = set.intersection(*map(set, parts.values())) if parts else set()
    return {setting: ", ".join(part for part in own if part not in shared)[:MAX_TOLD] for setting, own in parts.items()}
