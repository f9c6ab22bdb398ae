"""What is known of the steps of a run: its mixture, how far it came, and what it wrote down of its samples.

A run's folder says it all: `run.yaml` (the mixture), `samples.jsonl` (a digest a step), quarantine files (what replaced
a damaged sample), checkpoints (the state that the stream stood at). Whoever trains without `headrace train` gives the
mixture file and the global batch; then the plan is all there is, and the quarantine file that the mixture names.
"""

import bisect
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headrace.config import build_config
from headrace.overrides import apply_overrides
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.seen import FILE, last_trained_step, read_record, skipped_steps
from headrace.strict_yaml import read_mapping
from headrace.text import one_line, shown
from headrace.train.steady.changes import mixture_with

log = logging.getLogger(__name__)

RUN_FILE = "run.yaml"
MAX_STATE_BYTES = 16 << 20
MAX_POSITION = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What a run wrote down of one step."""

    digest: str
    replaced: int
    """Samples that stand for a damaged one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The steps of a run, or of a mixture that someone else trains on."""

    name: str
    """The folder of the run, or the mixture file."""
    is_run: bool
    mixture: Mixture
    """As it is now: it holds all that the run has gone through, planned changes too."""
    global_batch: int
    done: int
    """The last step that the run is known to have done; of a mixture 0, as nobody knows."""
    lines: Sequence[Mapping[str, Any]]
    """Of samples.jsonl."""
    skipped: Mapping[int, str]
    """Steps that did not move the weights -> why."""
    quarantines: tuple[str, ...]
    """Files of damaged samples, without the numbers of ranks."""
    state: Mapping[str, Any] | None
    """Of the stream, in the newest checkpoint; None = there is none."""

    def step_of(self, position: int) -> int:
        """Return the step, counted from 1, that has a position."""
        return position // self.global_batch + 1

    def positions(self, step: int) -> range:
        """Return the positions of a step. Raises ValueError if it lies behind the last position there can be."""
        if step * self.global_batch > MAX_POSITION:
            raise ValueError(f"step {step}: its positions are over {MAX_POSITION}, the last that a stream counts")
        return range((step - 1) * self.global_batch, step * self.global_batch)

    def recorded(self, step: int) -> Recorded | None:
        """Return what is written down of a step; None = nothing."""
        number = bisect.bisect_right(self.lines, step, key=lambda line: int(line["first_step"])) - 1
        line = self.lines[number] if number >= 0 else None
        if line is None or step > line["step"]:
            return None
        place = step - line["first_step"]
        return Recorded(digest=line["digests"][place], replaced=int((line.get("replaced") or {place: 0})[place]))


def open_history(target: str, *, global_batch: int = 0, overrides: Sequence[str] = ()) -> History:
    """Read the folder of a run, or a mixture file with the `global_batch` that it was trained with.

    `overrides` are of the mixture, such as the new place of a dataset. Raises ValueError for what is neither.
    """
    path = Path(target)
    if path.is_dir():
        if global_batch:
            raise ValueError(f"{target} is a run, which says its global batch itself: leave --global-batch out")
        return _of_run(path, overrides)
    if not path.exists():
        raise ValueError(f"{target} is not there; give the folder of a run, or a mixture file with --global-batch")
    data = read_mapping(path)
    if "mixture" in data and "out" in data:
        raise ValueError(f"{target} is a run file; give the folder that it names as `out`: {shown(data['out'])}")
    if global_batch < 1:
        raise ValueError(f"{target} is a mixture: give --global-batch, the images of one step over all processes")
    mixture = _build(data, overrides, target)
    return History(
        name=target,
        is_run=False,
        mixture=mixture,
        global_batch=global_batch,
        done=0,
        lines=(),
        skipped={},
        quarantines=(mixture.quarantine,) if mixture.quarantine else (),
        state=None,
    )


def _of_run(folder: Path, overrides: Sequence[str]) -> History:
    place = folder / RUN_FILE
    if not place.is_file():
        raise ValueError(f"{folder} is no run: {RUN_FILE} is missing; give the folder that a run names as `out`")
    try:
        data = yaml.safe_load(place.read_text(encoding="utf-8"))
        mixture_data, batch, out = data["mixture"], int(data["global_batch"]), str(data["out"])
        changes_at = dict(data.get("changes_at") or {})
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is not what a run writes: {type(error).__name__}: {one_line(str(error))}") from error
    base = _started_in(folder, out)
    mixture = _rebased(_build(mixture_data, overrides, str(place)), base)
    mixture = mixture_with(mixture, changes_at, global_batch=batch)
    skipped = skipped_steps(folder / "metrics.jsonl")
    states = _states(folder)
    lines = sorted(read_record(folder / FILE), key=lambda line: int(line["first_step"]))
    steps = [*(int(line["step"]) for line in lines), *(int(state["step"]) for state in states)]
    quarantines = [mixture.quarantine, *(_quarantine(state, base) for state in states)]
    return History(
        name=str(folder),
        is_run=True,
        mixture=mixture,
        global_batch=batch,
        done=max([0, last_trained_step(folder / "metrics.jsonl"), *skipped, *steps]),
        lines=lines,
        skipped=skipped,
        quarantines=tuple(dict.fromkeys(filter(None, quarantines))),
        state=states[-1]["stream"] if states else None,
    )


def changes_of(folder: Path) -> dict[Any, Any]:
    """Return what the run in `folder` planned to change on its way; nothing where no run file is."""
    try:
        data = yaml.safe_load((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return dict(data.get("changes_at") or {}) if isinstance(data, dict) else {}


def _build(data: Mapping[str, Any], overrides: Sequence[str], where: str) -> Mixture:
    try:
        return build_config(Mixture, apply_overrides(data, overrides, Mixture))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _states(folder: Path) -> list[dict[str, Any]]:
    """Return what each checkpoint says of itself, oldest first; one that cannot be read is passed over."""
    found = []
    for path in sorted(folder.glob("checkpoints/[0-9]*/state.json")):
        try:
            if path.stat().st_size > MAX_STATE_BYTES:
                raise ValueError(f"over {MAX_STATE_BYTES} bytes")
            state = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(state["stream"], dict):
                raise TypeError("stream is no mapping")
            found.append((int(state["step"]), state))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("%s: passed over: %s", path, error)
    return [state for _, state in sorted(found, key=lambda pair: pair[0])]


def _quarantine(state: Mapping[str, Any], base: Path | None) -> str:
    """Return the quarantine file of the mixture that a checkpoint was written with."""
    config = state.get("config")
    mixture = config.get("mixture") if isinstance(config, dict) else None
    path = mixture.get("quarantine") if isinstance(mixture, dict) else None
    return _moved(path, base) if isinstance(path, str) and path else ""


def _started_in(folder: Path, out: str) -> Path | None:
    """Return the folder that a run with a relative `out` was started in; None where it cannot be told."""
    parts, here = Path(out).parts, folder.resolve()
    if Path(out).is_absolute() or not parts or here.parts[-len(parts) :] != parts:
        return None
    return here.parents[len(parts) - 1]


def _rebased(mixture: Mixture, base: Path | None) -> Mixture:
    """Return the mixture with its local paths as the run understood them."""
    sources = tuple(
        dataclasses.replace(
            source,
            url=_moved(source.url, base),
            index_dir=_moved(source.index_dir, base) if source.index_dir else "",
        )
        for source in mixture.sources
    )
    quarantine = _moved(mixture.quarantine, base) if mixture.quarantine else ""
    return dataclasses.replace(mixture, sources=sources, quarantine=quarantine)


def _moved(path: str, base: Path | None) -> str:
    """Return a relative local path as seen from the folder that the run was started in."""
    if base is None or "://" in path or Path(path).is_absolute():
        return path
    return str(base / path)
