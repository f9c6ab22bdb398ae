"""A fine-tuning that a release before began: its recipe may have gained parts since, and it goes on without them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.strict_yaml import read_mapping

log = logging.getLogger(__name__)

GAINED = ("rand_augment", "random_erasing")
"""Keys of the augmentation that recipes did not always have."""
JITTERED = ("crop", "jitter", "pad_value")
BEFORE_JITTER = {"scale": [0.25, 1.0], "ratio": [1.0, 1.0]}
"""What `study-segment` had in the place of its scale jitter."""


def as_begun(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a run file as the run in its `out` was begun, if there is one.

    A run of a release before does not name what its recipe has gained. A later one names it even where it was told to
    leave it out, so that another command is refused there as ever.
    """
    path = Path(run["out"]) / "run.yaml"
    if not path.is_file():
        return dict(run)
    mixture, was = run["mixture"], read_mapping(path).get("mixture")
    known = was.get("augment", {}) if isinstance(was, Mapping) else {}
    missing = [name for name in GAINED if name in mixture["augment"] and name not in known]
    if missing:
        log.info("%s was begun without %s, and goes on so", run["out"], " and ".join(missing))
    augment = {name: value for name, value in mixture["augment"].items() if name not in missing}
    if "jitter" in augment and "jitter" not in known:
        log.info("%s was begun without scale jitter, and goes on so", run["out"])
        augment = {name: value for name, value in augment.items() if name not in JITTERED} | BEFORE_JITTER
    return {**run, "mixture": {**mixture, "augment": augment}}
