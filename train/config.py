"""One YAML file = one run.

A `RunConfig` is all that decides what is computed; ranks, devices and paths of other files are runtime facts.
`mixture: path.yaml` is replaced by that file's content when the run file is read (relative to the run file), so the
config in a checkpoint is complete.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from headrace.config import build_config, canonical_json, config_to_dict
from headrace.config_types import OneOf
from headrace.overrides import apply_overrides
from headrace.pipeline import Mixture
from headrace.pipeline.mixture import NO_DECODER
from headrace.strict_yaml import read_mapping
from headrace.text import without_secrets
from headrace.train.evaluate.monitor_config import MonitorConfig, check_names
from headrace.train.evaluate.validation_config import ValidationConfig, check_validation
from headrace.train.execution import Attention, Compile, Residual
from headrace.train.models.stage import Recompute
from headrace.train.objectives import objective_configs
from headrace.train.objectives.dense.placement import refuse_moves
from headrace.train.objectives.objective import ObjectiveConfig
from headrace.train.optim import OPTIMIZERS, SCHEDULES, ChecksSteps, OptimizerConfig, ScheduleConfig, peak_rate
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.optim.ema import EmaConfig
from headrace.train.optim.schedules import CosineConfig
from headrace.train.parallel.strategy import ParallelConfig
from headrace.train.parallel.watchdog import HangLimits
from headrace.train.profiling import ProfileConfig
from headrace.train.steady.alarms import AlarmConfig
from headrace.train.steady.changes import periods, planned_changes, planned_mixture

AnyObjective = Annotated[ObjectiveConfig, OneOf("kind", objective_configs)]
AnyOptimizer = Annotated[OptimizerConfig, OneOf("kind", lambda: OPTIMIZERS, default="adamw")]
AnySchedule = Annotated[ScheduleConfig, OneOf("kind", lambda: SCHEDULES, default="cosine")]

# Fields that hold a path where they hold no URL.
PATH_FIELDS = frozenset(
    {
        "out",
        "url",
        "dataset",
        "train",
        "test",
        "index_dir",
        "quarantine",
        "cache_dir",
        "index_cache",
        "init_from",
        "continue_from",
        "path",
    }
)
MAX_SPIKE_WINDOW = 10_000

# A resumed run may have other values of these: they change no step but by rounding. A mixture is the stream's to judge.
FREE_FIELDS = frozenset(
    {
        "out",
        "continue_from",
        "log_every",
        "checkpoint",
        "validation",
        "device",
        "images_per_micro_batch",
        "mixture",
        "timeout_seconds",
        "hang_seconds",
        "on_non_finite",
        "on_spike",
        "spike",
        "max_skipped_steps",
        "compile",
        "attention",
        "activation_checkpointing",
        "profile",
        "parallel",
        "tensorboard",
        "monitors",
        "gradient_norms",
        "alarms",
    }
)
# Parts that have fields which came after the first runs.
PARTS_THAT_GREW = ("objective", "optimizer", "objective.backbone", "objective.of.backbone")
# Files that may lie elsewhere when a run goes on: their sha256 stands beside them.
FREE_PATHS = ("objective.codebook.path",)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the state of the run is written. It always is at the end and on SIGTERM."""

    every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 3
    """The newest that stay; older ones are removed."""
    keep_every: int = 0
    """Checkpoints of steps that this divides stay for good; 0 = none."""
    on_full_disk: Literal["stop", "keep_training"] = "stop"
    """What a save does that finds no room: end the run, or let it go on and try again at the next save. The last save
    of a run ends it either way."""
    asynchronous: bool = False
    """A copy in host memory is written while training goes on. On CUDA it has not passed a test yet."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError("every and keep must be at least 1")
        if self.keep_every < 0 or self.keep_every % self.every:
            raise ValueError(f"keep_every must be 0 or a multiple of every ({self.every}), got {self.keep_every}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeConfig:
    """What counts as a spike: a gradient norm, of the whole or of the first layer, far above those before it."""

    window: int = 100
    """Latest steps that a norm is compared with; so many must have come first."""
    z: float = 6.0
    """Standard deviations above their mean, of the logarithm of the norm."""

    def __post_init__(self) -> None:
        if not 2 <= self.window <= MAX_SPIKE_WINDOW:
            raise ValueError(f"window must be 2..{MAX_SPIKE_WINDOW}, got {self.window}")
        if self.z <= 0:
            raise ValueError(f"z must be above 0, got {self.z}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run."""

    out: str
    """Local folder of the run; an existing run there is continued."""
    seed: int
    """Decides initial weights and prefixes; the mixture has its own for order and crops."""
    steps: int
    """Optimizer steps in all; `changes_at` may give more."""
    global_batch: int
    """Images of one step, over all processes."""
    mixture: Mixture
    """What is streamed: the content of a mixture file, or its path."""
    objective: AnyObjective
    """What is minimised."""
    init_from: str | None = None
    """Weights that step 0 starts from: a run, a checkpoint, an exported file, a released AIM, a file of l3m's or of
    open_clip's. null = drawn from the seed."""
    init_rename: dict[str, str] = field(default_factory=dict)
    """Prefixes of names in `init_from`, and what stands there instead; '' = those tensors are left out."""
    continue_from: str | None = None
    """A checkpoint of a run with the same config up to its step, RUN/checkpoints/STEP: while this run has none of its
    own, it goes on from there. null = it begins at step 0."""
    images_per_micro_batch: int | None = None
    """Images that one process runs at once; gradients accumulate. null = its whole share of the batch."""
    optimizer: AnyOptimizer = field(default_factory=AdamWConfig)
    """How weights move."""
    schedule: AnySchedule = field(default_factory=CosineConfig)
    """How the learning rate moves."""
    ema: EmaConfig | None = None
    """An average of the weights that is kept beside them, saved, validated and exported; null = none."""
    clip_grad_norm: float = 1.0
    """Gradients with a larger global L2 norm are scaled down to it."""
    changes_at: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes on the way: `{STEP: {optimizer.lr: 0.0005}}` holds when STEP steps are done. What can change: numbers of
    the optimizer, the schedule, ema, clip_grad_norm, steps, mixture.weights, mixture.lanes."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto = bf16 autocast where the accelerator has it, else fp32."""
    residual: Residual = "auto"
    """What the residual stream is kept in where the forward pass runs in bf16; auto = bf16 on CUDA, else fp32."""
    compile: Compile = "auto"
    """blocks = each block is a compiled function; auto = blocks on CUDA, off on a CPU."""
    attention: Attention = "auto"
    """How aim attends with a prefix: sdpa, or flex (FlexAttention, CUDA only); auto = flex on CUDA, else sdpa."""
    activation_checkpointing: Recompute = "none"
    """What backward computes again: selective = all but matrix products and attention, full = each block."""
    validation: ValidationConfig | None = None
    """Validation during the run; null = none."""
    monitors: tuple[MonitorConfig, ...] = ()
    """What else looks at the weights during the run; a fault of one costs no step."""
    gradient_norms: Literal["off", "by_layer"] = "off"
    """by_layer = L2 norm and largest magnitude of each block's gradient, with each line of metrics."""
    alarms: AlarmConfig | None = field(default_factory=AlarmConfig)
    """What of the metrics is told as a spike or a dip, in the log and in `metrics.jsonl`; null = nothing."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the state is written."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose loss or gradient is not finite: the run stops with the weights before it saved, or
    the step is left out."""
    on_spike: Literal["off", "stop", "skip"] = "off"
    """The same for a step whose gradient norm is a spike; off = spikes are not looked for."""
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    """What counts as a spike."""
    max_skipped_steps: int = 10
    """Most steps skipped among the latest 1000; one more stops the run."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = False
    """An event file for TensorBoard beside metrics.jsonl, with the same numbers."""
    profile: ProfileConfig | None = None
    """A trace of a few steps under OUT/profile, for torch's viewers; null = none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = CUDA if there is one."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several processes share the model."""
    timeout_seconds: float = 1800.0
    """Of several processes, one that waits so long for the others stops the run; a save must take less."""
    hang_seconds: float | None = None
    """A rank that stands so long in one phase of a step, or says nothing for so long, ends the run, named. Waiting for
    data may take `mixture.read_patience_seconds` longer. null = 20 median steps, at least 300 and at most
    `timeout_seconds`; a process alone is then not watched."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps must be at least 0, got {self.max_skipped_steps}")
        for name in ("clip_grad_norm", "timeout_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if self.hang_seconds is not None and not 0 < self.hang_seconds < math.inf:
            raise ValueError(f"hang_seconds must be above 0 and finite, got {self.hang_seconds}")
        if self.images_per_micro_batch is not None and self.images_per_micro_batch < 1:
            raise ValueError(f"images_per_micro_batch must be at least 1, got {self.images_per_micro_batch}")
        if self.mixture.decoder == NO_DECODER:
            raise ValueError(f"mixture.decoder: {NO_DECODER} delivers bytes, and training takes pictures; leave it out")
        if self.objective.kind in ("segment", "detect"):
            refuse_moves(self.mixture)
        if "://" in self.out:
            raise ValueError(f"out must be a local folder, got {self.out}")
        for name in ("init_from", "continue_from"):
            if (path := getattr(self, name)) is not None and (not path or "://" in path):
                raise ValueError(f"{name} must be a local file or folder, got {path!r}")
        if self.continue_from is not None and Path(self.out).absolute() in Path(self.continue_from).absolute().parents:
            raise ValueError(
                f"continue_from {self.continue_from} is a checkpoint of `out` itself; choose another `out`"
            )
        if self.init_rename and self.init_from is None:
            raise ValueError("init_rename maps names of init_from, which is null")
        if isinstance(self.schedule, ChecksSteps):
            try:
                self.schedule.check(self.steps)
            except ValueError as error:
                raise ValueError(f"schedule: {error}") from error
        check_validation(self.validation, self.objective, self.mixture.image_size)
        check_names(self.monitors)
        if self.changes_at:
            periods(self)
            planned_mixture(self)

    @property
    def hang_limits(self) -> HangLimits:
        """How long a rank may stand still."""
        patience = self.mixture.patience
        return HangLimits(
            seconds=self.hang_seconds,
            data_seconds=patience.seconds + patience.timeout_seconds,
            most_seconds=self.timeout_seconds,
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all, planned changes included."""
        steps = self.steps
        for changes in planned_changes(self.changes_at).values():
            steps = changes.get("steps", steps)
        return steps

    @property
    def peak_lr(self) -> float:
        """Highest learning rate: `optimizer.lr`, or what that is for `global_batch` images."""
        return peak_rate(self.optimizer, global_batch=self.global_batch)

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step` (0-based), planned changes aside."""
        return self.schedule.rate(step, steps=self.steps, peak=self.peak_lr)


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, its mixture file if it names one, and `key.path=value` overrides (of the mixture too).

    Raises ValueError naming file, key path, what was expected and the known keys.
    """
    path = Path(path)
    data = read_mapping(path)
    try:
        data = apply_overrides(data, [text for text in overrides if not text.startswith("mixture.")])
        if isinstance(data.get("mixture"), str):
            data["mixture"] = read_mapping(path.parent / data["mixture"])
        return build_config(
            RunConfig, apply_overrides(data, [text for text in overrides if text.startswith("mixture.")])
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def public_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain data that may be given away: no passwords and signatures in its URLs."""
    data: dict[str, Any] = _public(config_to_dict(config))
    return data


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _public(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def published_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as it goes into a published file: as `public_dict`, and of local paths the last name only."""
    return published(config_to_dict(config))


def published(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain data of a config as it goes into a published file."""
    shown: dict[str, Any] = _without_paths(_public(dict(data)))
    return shown


def _without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part, key) for part in value]
    if not isinstance(value, str):
        return value
    path = value.removeprefix("file://").removeprefix("local://")
    is_path = path != value or path.startswith(("/", "~", ".")) or (key in PATH_FIELDS and "://" not in path)
    return Path(path).name if is_path and "/" in path else value


def run_digest(config: RunConfig, step: int = 0) -> str:
    """Return the sha256 of all that must stay the same when a run is continued behind step `step` (0-based)."""
    data = {name: value for name, value in config_to_dict(config).items() if name not in FREE_FIELDS | {"changes_at"}}
    # What came later and plays no part is not named, so that runs from before keep their digest.
    for where in PARTS_THAT_GREW:
        part, inside = _at(config, data, where.split("."))
        for name in getattr(part, "idle", ()):
            del inside[name]
    for name in getattr(getattr(config.objective, "of", None), "idle_within", ()):
        del data["objective"]["of"][name]
    if data["ema"] is None:
        del data["ema"]
    for *sections, key in (where.split(".") for where in FREE_PATHS):
        holder: Any = data
        for section in sections:
            holder = holder.get(section) or {}
        holder.pop(key, None)
    made = {str(at): changes for at, changes in planned_changes(config.changes_at).items() if at <= step}
    if made:
        data["changes_at"] = made
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _at(config: Any, data: Any, sections: Sequence[str]) -> tuple[Any, Any]:
    """Return the part of a config that these names lead to, and its plain data; None where there is none."""
    for section in sections:
        config, data = getattr(config, section, None), (data or {}).get(section)
    return config, data


def completed(data: dict[str, Any]) -> dict[str, Any]:
    """Return the config of another version with the defaults of keys that it did not have; as it is if unreadable."""
    try:
        return config_to_dict(build_config(RunConfig, data))
    except ValueError:
        return data


def first_difference(old: Any, new: Any, where: str = "") -> str | None:
    """Return the path of the first value that differs and both values; None if only free fields and changes do."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        found = (
            first_difference(old.get(name), new.get(name), f"{where}.{name}" if where else name)
            for name in names
            if (where or name not in FREE_FIELDS | {"changes_at"}) and f"{where}.{name}" not in FREE_PATHS
        )
        return next((text for text in found if text), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next((text for i, (a, b) in pairs if (text := first_difference(a, b, f"{where}.{i}"))), None)
    return None if old == new else f"{where}: was {old!r}, is {new!r}"
