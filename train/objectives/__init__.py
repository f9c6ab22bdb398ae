"""What a run can minimise. Each objective is one module: its config, and the class that the config builds."""

from headrace.extensions import with_extensions
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.clip import ClipConfig
from headrace.train.objectives.contrastive.byol import ByolConfig
from headrace.train.objectives.contrastive.moco import MocoConfig
from headrace.train.objectives.contrastive.simclr import SimclrConfig
from headrace.train.objectives.contrastive.swav import SwavConfig
from headrace.train.objectives.dense.detect import DetectConfig
from headrace.train.objectives.dense.segment import SegmentConfig
from headrace.train.objectives.finetune import FinetuneConfig
from headrace.train.objectives.masked import MaskedConfig
from headrace.train.objectives.objective import ObjectiveConfig
from headrace.train.objectives.simmim import SimmimConfig
from headrace.train.objectives.supervised import SupervisedConfig

# The value of `objective.kind` -> the config of that objective.
OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "aim": AimConfig,
    "byol": ByolConfig,
    "clip": ClipConfig,
    "detect": DetectConfig,
    "finetune": FinetuneConfig,
    "masked": MaskedConfig,
    "moco": MocoConfig,
    "segment": SegmentConfig,
    "simclr": SimclrConfig,
    "simmim": SimmimConfig,
    "supervised": SupervisedConfig,
    "swav": SwavConfig,
}


def objective_configs() -> dict[str, type[ObjectiveConfig]]:
    """Return the table with what installed extensions add. Raises ValueError for an extension that is broken."""
    return with_extensions("objectives", OBJECTIVES)
