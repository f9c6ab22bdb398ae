"""What a run will do, without doing it.

Nothing is allocated or written; parameters are counted on the meta device. FLOPs are those of forward and backward at
all positions, as published counts are, although AIM's head skips positions whose output is not used.
"""

from pathlib import Path

import torch

from headrace.pipeline import open_stream
from headrace.shards.dataset import open_dataset
from headrace.train.config import RunConfig
from headrace.train.evaluate.monitors import check_monitors
from headrace.train.model import refuse_data, refuse_splitting
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.optim import ScalesRate
from headrace.train.runs.branch import checkpoint_to_continue
from headrace.train.runs.checkpoint import list_checkpoints, refuse_other_config
from headrace.train.runs.cost import PlanError, cost_lines
from headrace.train.runs.folder import check_out
from headrace.train.runs.initial import initial_weights
from headrace.train.runs.micro_batch import activation_lines
from headrace.train.sources import check_length, check_size, check_sources
from headrace.train.steady.changes import period_at, periods, planned_mixture


def plan_run(config: RunConfig) -> list[str]:
    """Return what `train` would do, one fact a line.

    Raises ValueError for what cannot run; PlanError, which has the lines, where only the data or the room is missing.
    """
    check_out(config)
    with torch.device("meta"):
        objective = build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)
    _check_model(config, objective)
    lines = _model_lines(config, objective)
    data, why = _data(config, objective)
    lines += data
    missing = [why] if why else []
    try:
        lines += cost_lines(config, objective)
    except PlanError as error:
        missing.append(str(error))
        lines += error.lines
    try:
        lines += activation_lines(config, objective)
    except PlanError as error:
        missing = missing or [str(error)]
        lines += error.lines
    if missing:
        raise PlanError("; ".join(missing), lines)
    return lines


def why_refused(config: RunConfig, objective: Objective) -> str:
    """Return what of its model, batch or data `train` would refuse before the first step; empty if nothing."""
    try:
        _check_model(config, objective)
        _model_lines(config, objective)  # refuses weights to begin from that are not there, or of another model
    except (ValueError, FileNotFoundError) as error:
        return _told(error)
    return _data(config, objective)[1]


def _check_model(config: RunConfig, objective: Objective) -> None:
    refuse_splitting(objective, config, world_size=1)
    refuse_data(objective, config)
    config.optimizer.build(objective)  # refuses names of parameters and depths that the model has not
    objective.check_files()


def _data(config: RunConfig, objective: Objective) -> tuple[list[str], str]:
    """Return what the data give, and else why they cannot be used."""
    try:
        return _data_lines(config, objective), ""
    except (ValueError, FileNotFoundError) as error:
        return [], _told(error)


def _told(error: Exception) -> str:
    return str(error) + "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def _trained(objective: Objective) -> str:
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    frozen = sum(not parameter.requires_grad for parameter in objective.parameters())
    return f", of which {trained:,} are trained" if frozen else ""


def _model_lines(config: RunConfig, objective: Objective) -> list[str]:
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in objective.named_children()}
    images = config.total_steps * config.global_batch
    flops = objective.train_flops_per_image
    counted = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
    lines = [
        f"objective: {config.objective.kind}, images of {config.mixture.image_size} pixels",
        f"parameters: {sum(parts.values()):,} ({counted}){_trained(objective)}",
        f"FLOPs per image: {flops / 1e9:,.3f} G (forward and backward); whole run: {flops * images:.3g}",
        f"steps: {config.total_steps:,} of {config.global_batch:,} images = {images:,} images",
    ]
    plan = periods(config)
    told = [f"{period_at(plan, step).config.rate(step):.3g} at {step:,}" for step in _sampled(config.total_steps)]
    lines.append(f"learning rate: {config.schedule.kind}, {', '.join(told)}{_scaled(config)}")
    has_begun = bool(list_checkpoints(Path(config.out) / "checkpoints"))  # what it began from may be gone
    if not has_begun and (found := checkpoint_to_continue(config)) is not None:
        refuse_other_config(found, config)
        lines.append(f"continue_from: {found.path}, {found.progress.step:,} steps are done")
    if not has_begun and config.init_from is not None:
        lines.append(f"init_from: {initial_weights(objective, Path(config.init_from), config.init_rename)}")
    for period in plan[1:]:
        lines += [f"at step {period.first_step:,}: {told}" for told in (str(period), period.jump) if told]
    return lines


def _scaled(config: RunConfig) -> str:
    """Return how the highest rate comes of the batch; empty where it does not."""
    if not isinstance(config.optimizer, ScalesRate) or not config.optimizer.lr_per_images:
        return ""
    lr, per = config.optimizer.lr, config.optimizer.lr_per_images
    return f"; optimizer.lr {lr:g} per {per:,} images x {config.global_batch:,} images a step = {config.peak_lr:g}"


def _sampled(steps: int) -> list[int]:
    """Return steps that show the course of a run: the first and the last, and a quarter, half, three quarters."""
    return sorted({steps * part // 4 for part in range(4)} | {steps - 1})


def _data_lines(config: RunConfig, objective: Objective) -> list[str]:
    """Return what the data give. Raises ValueError for what the run would refuse: lanes, memory, a missing dataset."""
    lines, images = [], config.total_steps * config.global_batch
    check_sources(objective, config)
    # Opening reads manifests only.
    with open_stream(planned_mixture(config), global_batch=config.global_batch, columns=objective.columns) as stream:
        check_length(stream, config)
        check_size(stream, objective)
        given = stream.plan.given(images)
        for source, seen in zip(stream.sources, given, strict=True):
            name, size = source.config.name, source.num_samples
            lines.append(f"source {name}: {seen:,} of {size:,} samples = {seen / size:.2f} epochs")
    if config.validation:
        size = open_dataset(config.validation.dataset).num_samples
        used = min(size, config.validation.samples or size)
        lines.append(f"validation: {used:,} of {size:,} samples, every {config.validation.every:,} steps")
    check_monitors(objective, config)
    for monitor in config.monitors:
        sizes = [open_dataset(url).num_samples for url in (monitor.train, monitor.test)]
        held = [min(size, monitor.samples or size) for size in sizes]
        what = f"about {held[0]:,} of {sizes[0]:,} samples against {held[1]:,} of {sizes[1]:,}"
        lines.append(f"monitor {monitor.called}: {what}, every {monitor.every:,} steps")
    return lines
