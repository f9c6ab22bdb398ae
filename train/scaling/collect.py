"""What is known of runs, one row each: from their folders, or from a table.

Sizes and operations are counted from `run.yaml` on the meta device, samples from the datasets where they are still
there; losses and accuracies are those that `metrics.jsonl` and the files of `headrace probe` hold.
"""

import csv
import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.text import known_words
from headrace.train.config import RunConfig, load_run
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.runs.metrics import Metrics, read_metrics
from headrace.train.scaling.setting import setting_of

MAX_RUNS = 1000
MAX_CELL = 500
MONITOR = "monitor/"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One run; None = not known."""

    name: str
    objective: str = ""
    """Losses of two objectives are never compared."""
    parameters: int | None = None
    """Of the trunk, as published sizes count; of the whole objective where there is no trunk."""
    samples: int | None = None
    """Different images that it was trained on."""
    steps: int | None = None
    """Optimizer steps."""
    images: int | None = None
    """Images seen, repeats included."""
    flops: float | None = None
    """Operations of all steps, forward and backward."""
    train_loss: float | None = None
    """Mean of the last lines of metrics.jsonl, a twentieth of them and at least one."""
    validation_loss: float | None = None
    """Of the last look, which a finished run takes behind its last step; None where it was not finite."""
    accuracy: float | None = None
    """Of the probe or monitor that was chosen, 0..1."""
    setting: str = ""
    """What else a law needs to be the same: datasets, image size, patches; '' = the same for all."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, validation loss) during the run; a table has none."""

    @property
    def error(self) -> float | None:
        """1 - accuracy."""
        return None if self.accuracy is None else 1 - self.accuracy


TEXTS = ("name", "objective", "setting")
COUNTS = ("parameters", "samples", "steps", "images")
COLUMNS = tuple(field.name for field in dataclasses.fields(RunRow) if field.name != "curve")


def read_table(path: Path) -> list[RunRow]:
    """Read runs from a csv with a header of `COLUMNS`, of which `name` must be there; an empty cell is not known.

    Raises ValueError naming the line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a mark of byte order
            reader = csv.DictReader(file, strict=True)
            head = list(reader.fieldnames or ())
            _check_head(f"{path}: line 1", head)
            rows = [_row(f"{path}: line {reader.line_num}", cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as csv: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no run in it; each line below the header is one")
    _check_names(str(path), rows)
    return rows


def _check_head(where: str, head: Sequence[str]) -> None:
    for name in head:
        if name not in COLUMNS:
            raise ValueError(f"{where}: unknown column {name!r}; {known_words(name, COLUMNS)}")
        if head.count(name) > 1:
            raise ValueError(f"{where}: the column {name!r} is there twice")
    if "name" not in head:
        raise ValueError(f"{where}: no column 'name'; known: {', '.join(COLUMNS)}")


def _row(where: str, cells: dict[str, str]) -> RunRow:
    if None in cells or None in cells.values():
        raise ValueError(f"{where}: not as many cells as the header has")
    if not cells["name"].strip():
        raise ValueError(f"{where}: the name is empty; a run is told by its name")
    values: dict[str, str | float | int | None] = {name: cells.get(name, "")[:MAX_CELL] for name in TEXTS}
    for name, text in cells.items():
        if name not in TEXTS:
            values[name] = _number(f"{where}: {name}", text, name)
    return RunRow(**values)  # type: ignore[arg-type]


def _number(where: str, text: str, name: str) -> float | int | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}: expected a number, got {text[:40]!r}") from None
    if not math.isfinite(value) or (name not in ("train_loss", "validation_loss", "accuracy") and value <= 0):
        raise ValueError(f"{where}: expected a finite number above zero, got {text[:40]!r}")
    if name == "accuracy" and not 0 <= value <= 1:
        raise ValueError(f"{where}: expected a share within 0..1, got {text[:40]!r}; 84.1 % is 0.841")
    return round(value) if name in COUNTS else value


def collect(folders: Sequence[str], *, accuracy: str = "") -> list[RunRow]:
    """Read the runs in `folders`; a folder of runs stands for all of them.

    `accuracy`: name of a monitor, of a sweep's probe, or of a file of `headrace probe` in the run's folder; '' = the
    first that there is, files before monitors. Raises ValueError for a folder that holds no run, and for a name that no
    run has.
    """
    found = [run for folder in folders for run in runs_in(Path(folder))]
    if len(found) > MAX_RUNS:
        raise ValueError(f"{len(found)} runs are too many, at most {MAX_RUNS}")
    names = [path.resolve().name for path in found]
    rows = [
        _collect_one(path, str(path) if names.count(name) > 1 else name, accuracy)
        for path, name in zip(found, names, strict=True)
    ]
    _check_names("the runs", rows)
    if accuracy and all(row.accuracy is None for row in rows):
        known = sorted({name for path in found for name in _accuracies(path, read_metrics(path / "metrics.jsonl"))})
        raise ValueError(f"no run has an accuracy called {accuracy!r}; there are {', '.join(known) or 'none'}")
    return rows


def _check_names(where: str, rows: Sequence[RunRow]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            raise ValueError(f"{where}: two runs are called {row.name[:80]!r}; a run is told by its name")
        seen.add(row.name)


def runs_in(folder: Path) -> Iterator[Path]:
    """Yield the run that a folder is, or those that lie in it. Raises ValueError where there is none."""
    if (folder / "run.yaml").is_file():
        yield folder
        return
    inside = sorted(path.parent for path in folder.glob("*/run.yaml")) if folder.is_dir() else []
    if not inside:
        raise ValueError(f"{folder}: no run (no run.yaml), and no folder of runs")
    yield from inside


def _collect_one(folder: Path, name: str, accuracy: str) -> RunRow:
    config = load_run(folder / "run.yaml")
    with torch.device("meta"):
        objective = build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)
    lines = read_metrics(folder / "metrics.jsonl")
    trained = [line for line in lines if line["event"] == "train"]
    steps = max((line["step"] for line in trained), default=0)
    if not steps:
        raise ValueError(f"{folder}: the run has no step yet")
    if steps < config.total_steps:
        log.warning("%s: only %d of its %d steps are done", folder, steps, config.total_steps)
    validations = [line for line in lines if line["event"] == "validation"]
    curve = tuple((line["step"], line["loss"]) for line in validations if _is_loss(line))
    images = steps * config.global_batch
    last = [line["loss"] for line in trained if _is_loss(line)]
    last = last[-max(1, len(last) // 20) :]
    return RunRow(
        name=name,
        objective=config.objective.kind,
        setting=setting_of(config),
        parameters=_parameters(objective),
        samples=_samples(config, folder),
        steps=steps,
        images=images,
        flops=objective.train_flops_per_image * images,
        train_loss=sum(last) / len(last) if last else None,
        validation_loss=curve[-1][1] if curve and _is_loss(validations[-1]) else None,
        accuracy=_accuracy(_accuracies(folder, lines), accuracy),
        curve=curve,
    )


def _is_loss(line: Metrics) -> bool:
    loss = line.get("loss")
    return isinstance(loss, int | float) and math.isfinite(loss)


def _parameters(objective: Objective) -> int:
    trunk = objective.trunk
    module = trunk if isinstance(trunk, torch.nn.Module) else objective
    return sum(parameter.numel() for parameter in module.parameters())


def _samples(config: RunConfig, folder: Path) -> int | None:
    """Return how many different images the run read; None where a dataset is gone."""
    from headrace.pipeline.order.subset import Subset
    from headrace.shards.dataset import open_dataset

    total = 0
    for source in config.mixture.sources:
        try:
            total += Subset(open_dataset(source.url).num_samples, source.fraction).size
        except (OSError, ValueError) as error:
            log.warning("%s: how many images it had is not known: %s", folder, error)
            return None
    return total


def _accuracy(found: Mapping[str, float], name: str) -> float | None:
    if not name:
        return next(iter(found.values()), None)
    name = name.removesuffix(".json")
    return next((found[key] for key in (name, f"probe-{name}", f"{MONITOR}{name}") if key in found), None)


def _accuracies(folder: Path, lines: Sequence[Metrics]) -> dict[str, float]:
    """Return the accuracies of a run by the stem of a probe's file, then by the event of a monitor, the last of each.

    Those of an untrained trunk are left out.
    """
    found: dict[str, object] = {}
    for path in sorted(folder.glob("probe*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not a file of headrace probe: {error}") from error
    found |= {
        line["event"]: line["accuracy"] for line in lines if line["event"].startswith(MONITOR) and "accuracy" in line
    }
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and 0 <= value <= 1 and "untrained" not in name
    }
