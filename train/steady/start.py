"""What is looked at before the first step: what would end the run hours later ends it now."""

import logging
import shutil
from pathlib import Path

from headrace.shards.dataset import open_dataset
from headrace.train.config import RunConfig
from headrace.train.objectives.objective import Objective
from headrace.train.optim import CountsState
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.tensors import num_bytes
from headrace.train.steady.changes import keeps_average

log = logging.getLogger(__name__)


def check_validation(config: RunConfig) -> None:
    """Raise ValueError if the validation set cannot be opened, or holds nothing."""
    if config.validation is None:
        return
    url = config.validation.dataset
    try:
        size = open_dataset(url).num_samples
    except (ValueError, OSError) as error:
        raise ValueError(f"validation.dataset: {error}") from error
    if not size:
        raise ValueError(f"validation.dataset {url} has no samples")


def bytes_of_moments(config: RunConfig, objective: Objective) -> int:
    """Return how many bytes the optimizer keeps: what its config says, else Adam's two tensors a trained parameter.

    A config may also say `num_moments`, tensors of a parameter's size.
    """
    if isinstance(config.optimizer, CountsState):
        return config.optimizer.state_bytes(objective)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    num_moments = int(getattr(config.optimizer, "num_moments", 2))
    return num_moments * sum(parameter.numel() * parameter.element_size() for parameter in trained)


def bytes_of_checkpoint(config: RunConfig, objective: Objective) -> int:
    """Return about how many bytes one checkpoint takes: weights, moments, and their average."""
    averages = bytes_of_average(objective) * keeps_average(config)
    return num_bytes(objective.state_dict()) + bytes_of_moments(config, objective) + averages


def bytes_of_training(config: RunConfig, objective: Objective) -> int:
    """Return the bytes that a process holds which has all of it: weights, gradients, moments, and their average."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters())
    gradients = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    return (
        weights + gradients + bytes_of_moments(config, objective) + bytes_of_average(objective) * keeps_average(config)
    )


def bytes_of_average(objective: Objective) -> int:
    """Return how many bytes an average of the weights takes: four for each that is trained."""
    return sum(4 * parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)


def check_room(config: RunConfig, objective: Objective, ranks: Ranks) -> None:
    """Raise OSError on all ranks if not even the next checkpoint fits the disk; warn if not all that are kept do."""
    out = Path(config.out)
    averaged = keeps_average(config)
    size = bytes_of_checkpoint(config, objective)
    weights = num_bytes(objective.state_dict()) * (1 + averaged)
    with ranks.first_writes("the next checkpoint: its disk is too full") as writes:
        if not writes:
            return
        free = shutil.disk_usage(next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())).free
        there = len(list_checkpoints(out / "checkpoints"))
        # The oldest goes when the newest is whole, so there is one more for a moment.
        wanted = max(1, config.checkpoint.keep + 1 - there) * size + weights
        if free < size and config.checkpoint.on_full_disk == "stop":
            raise OSError(
                f"{out}: a checkpoint takes {size:,} bytes, and {free:,} are free there; make room, choose another "
                "`out`, or set checkpoint.on_full_disk=keep_training"
            )
        if free < wanted:
            log.warning(
                "%s: %d checkpoints and the exported weights will take %d bytes more, and %d are free; make room, or "
                "lower checkpoint.keep",
                out,
                config.checkpoint.keep,
                wanted,
                free,
            )
