"""What a run can minimise. Each objective is one module: its config, and the class that the config builds."""

from headrace.extensions import with_extensions
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.clip import ClipConfig
from headrace.train.objectives.finetune import FinetuneConfig
from headrace.train.objectives.masked import MaskedConfig
from headrace.train.objectives.objective import ObjectiveConfig
from headrace.train.objectives.supervised import SupervisedConfig

# The value of `objective.kind` -> the config of that objective.
OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "aim": AimConfig,
    "clip": ClipConfig,
    "finetune": FinetuneConfig,
    "masked": MaskedConfig,
    "supervised": SupervisedConfig,
}


def objective_configs() -> dict[str, type[ObjectiveConfig]]:
    """Return the table with what installed extensions add. Raises ValueError for an extension that is broken."""
    return with_extensions("objectives", OBJECTIVES)
