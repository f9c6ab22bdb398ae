"""The model of a run on the devices of its processes, before and after it has weights."""

import logging
from pathlib import Path
from typing import Any

import torch

from headrace.config import config_to_dict
from headrace.pipeline.augment.views import planned_views
from headrace.train.config import RunConfig
from headrace.train.execution import Execution, choose_execution
from headrace.train.models.batch_norm import synchronise
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.layout import Layout
from headrace.train.parallel.precision import uses_bf16
from headrace.train.parallel.ranks import Ranks
from headrace.train.parallel.strategy import Strategy, hand_out, layout_of, spread, without_weights
from headrace.train.runs.initial import initial_weights
from headrace.train.steady.changes import keeps_average, planned_mixture
from headrace.train.steady.start import bytes_of_training

log = logging.getLogger(__name__)


def place_model(config: RunConfig, ranks: Ranks) -> tuple[Objective, Layout]:
    """Return the objective, placed and ready to compute, and which part of it this process holds.

    A spread one has no weights yet: they come from a checkpoint or from `first_weights`.
    """
    strategy = chosen_strategy(config, ranks)
    if strategy == "fsdp":
        with without_weights():
            objective = _built(config)
    else:
        objective = _built(config)
    refuse_splitting(objective, config, world_size=ranks.size)
    refuse_data(objective, config)
    execution = execution_of(config, ranks.device)
    objective.ranks, objective.reads = ranks, config_to_dict(config.mixture)
    synchronise(objective, ranks)
    objective.run_as(execution)
    if ranks.is_first:
        log.info("execution: %s; strategy %s", execution, strategy)
    if strategy != "fsdp":
        objective.to(ranks.device)
        return objective, layout_of(strategy, ranks)
    bf16 = uses_bf16(config.precision, ranks.device)
    return objective, spread(objective, ranks, replicas=config.parallel.num_replicas(ranks), bf16=bf16)


def first_weights(config: RunConfig, objective: Objective, ranks: Ranks) -> dict[str, Any] | None:
    """Give the objective the weights of step 0; return what was taken of `init_from`, None where it is not set.

    Of a spread model rank 0 alone draws and reads them, and the others return None.
    """
    if chosen_strategy(config, ranks) != "fsdp":
        return _start_from(config, objective)
    source, initial = None, None
    if ranks.is_first:
        source = _built(config)
        initial = _start_from(config, source)
    hand_out(objective, None if source is None else source.state_dict(), ranks)
    return initial


def chosen_strategy(config: RunConfig, ranks: Ranks) -> Strategy:
    """Return how these processes share the model."""

    def held_bytes() -> int:
        with without_weights():
            return bytes_of_training(config, _built(config))

    return config.parallel.choose(ranks, held_bytes=held_bytes)


def _built(config: RunConfig) -> Objective:
    return build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)


def _start_from(config: RunConfig, objective: Objective) -> dict[str, Any] | None:
    """Put the weights that `init_from` names into the objective; nothing of the file is kept."""
    if config.init_from is None:
        return None
    initial = initial_weights(objective, Path(config.init_from), config.init_rename)
    initial.load_into(objective)
    objective.follow_weights(initial.taken.keys())
    log.info("init_from %s", initial)
    return initial.facts()


def refuse_splitting(objective: Objective, config: RunConfig, *, world_size: int) -> None:
    """Raise ValueError if the run would cut a batch whose loss is not the sum over its parts."""
    spreads = world_size > 1 and not objective.gathers
    cuts = config.images_per_micro_batch is not None and not objective.caches
    if objective.splits or not (spreads or cuts):
        return
    kind = config.objective.kind
    if objective.gathers:
        raise ValueError(
            f"objective {kind} compares all pictures of a batch, and images_per_micro_batch would cut it: leave it "
            "out, and take more processes, a smaller global_batch or activation_checkpointing"
        )
    raise ValueError(f"objective {kind} needs the whole batch: one process, no images_per_micro_batch")


def refuse_data(objective: Objective, config: RunConfig) -> None:
    """Raise ValueError if the run's views, batch, lanes or average are not for this objective."""
    kind = config.objective.kind
    if keeps_average(config) and not objective.averages:
        raise ValueError(
            f"objective {kind} has BatchNorm, whose statistics are those of the weights and not of their average: "
            "leave `ema` out"
        )
    mixture, end = planned_mixture(config), config.total_steps * config.global_batch
    most_lanes = max([mixture.lanes, *(segment.lanes for segment in mixture.segments if segment.start < end)])
    try:
        sides = [view.image_size for view in planned_views(config.mixture)]
        objective.expect_views(sides, global_batch=config.global_batch)
        objective.expect_lanes(most_lanes, global_batch=config.global_batch)
    except ValueError as error:
        raise ValueError(f"objective {kind}: {error}") from error


def execution_of(config: RunConfig, device: torch.device) -> Execution:
    """Return how this run computes on `device`. Raises ValueError for what it cannot do."""
    return choose_execution(
        device,
        compile=config.compile,
        attention=config.attention,
        recompute=config.activation_checkpointing,
        residual=config.residual,
        bf16=uses_bf16(config.precision, device),
    )
