"""A sweep: one run file, and axes of overrides that are tried in every combination.

Each run is a run as any other, in a folder of its own below `out`, named by its labels. `sweep.json` in that folder is
written last: so a sweep may be killed at any moment and started again, by several processes or machines at once, and
does nothing twice. Whether a finished run is the one that is asked for, its `run.yaml` says, and no digest: a setting
that a later version brings is at its default there.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.atomic import write_atomic
from headrace.config import build_config, canonical_json, config_to_dict, load_config
from headrace.train.config import RunConfig, first_difference, load_run, public_dict
from headrace.train.evaluate.probe_config import ProbeConfig

if TYPE_CHECKING:
    from headrace.train.loop import TrainResult

MAX_RUNS = 1000
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}")
RESULT = "sweep.json"

Axes = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What a sweep file says."""

    run: str
    """The run file that all start from, relative to the sweep file."""
    out: str
    """Local folder; each run lies in a folder of it."""
    axes: Axes
    """Axis -> label -> overrides of the run file; the runs are all combinations of labels."""
    overrides: tuple[str, ...] = ()
    """Overrides of every run, before those of the axes."""
    leave_out: tuple[str, ...] = ()
    """Names of combinations that are not run."""
    probes: dict[str, ProbeConfig] = field(default_factory=dict)
    """Probes of each finished run by name; the result is `probe-NAME.json` in its folder."""

    def __post_init__(self) -> None:
        if "://" in self.out:
            raise ValueError(f"out must be a local folder, got {self.out}")
        if not self.axes or not all(self.axes.values()):
            raise ValueError("axes must be at least one, each with at least one label")
        for label in (*itertools.chain(*self.axes.values()), *self.probes):
            if not LABEL.fullmatch(label):
                raise ValueError(f"{label[:80]!r} is no part of a folder's name: letters, digits and . _ % + - only")
        of_axes = (texts for axis in self.axes.values() for texts in axis.values())
        for text in itertools.chain(self.overrides, *of_axes):
            if text.partition("=")[0] == "out":
                raise ValueError(f"{text}: the sweep gives each run its folder; leave `out` to it")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Its labels, joined by dashes: the folder's name."""
    config: RunConfig
    probes: Mapping[str, ProbeConfig]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.config.out)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> list[SweepRun]:
    """Return the runs of a sweep file, in the order of its axes, the last changing fastest.

    Every run file is made and checked before any run begins. Raises ValueError naming the run that is refused, and two
    runs that would share a folder.
    """
    sweep = load_config(SweepConfig, path, overrides)
    runs = [run for run in _combinations(path, sweep) if run.name not in sweep.leave_out]
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two runs would lie in the folder {twice!r}; give their labels other names")
    if not runs:
        raise ValueError(f"{path}: leave_out leaves no run")
    configs: dict[str, str] = {}
    for run in runs:
        same = configs.setdefault(canonical_json(config_to_dict(replace(run.config, out="out"))), run.name)
        if same != run.name:
            raise ValueError(f"{path}: {same} and {run.name} are the same run; their overrides change nothing")
    return runs


def _combinations(path: Path, sweep: SweepConfig) -> Iterator[SweepRun]:
    count = 1
    for axis in sweep.axes.values():
        count *= len(axis)
    if count > MAX_RUNS:
        raise ValueError(f"{path}: {count:,} runs are too many for one sweep, at most {MAX_RUNS}")
    known = ["-".join(labels) for labels in itertools.product(*sweep.axes.values())]
    for name in sweep.leave_out:
        if name not in known:
            raise ValueError(f"{path}: leave_out: no run is called {name!r}; the first is {known[0]!r}")
    for labels in itertools.product(*sweep.axes.values()):
        name = "-".join(labels)
        chosen = [text for of, label in zip(sweep.axes.values(), labels, strict=True) for text in of[label]]
        try:
            config = load_run(path.parent / sweep.run, [*sweep.overrides, *chosen, f"out={Path(sweep.out) / name}"])
        except ValueError as error:
            raise ValueError(f"{path}: the run {name}: {error}") from error
        yield SweepRun(name=name, config=config, probes=sweep.probes)


def is_finished(run: SweepRun) -> bool:
    """True if the run and its probes are done. Raises ValueError naming the setting in which what was done differs."""
    path = run.folder / RESULT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        probes = {name: build_config(ProbeConfig, probe) for name, probe in data["probes"].items()}
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a sweep's result: {error}; remove it, and the run is looked at again") from error
    done, asked = (public_dict(config) for config in (load_run(run.folder / "run.yaml"), run.config))
    done_probes, asked_probes = (
        {name: config_to_dict(probe) for name, probe in some.items()} for some in (probes, run.probes)
    )
    changed = (
        first_difference(done, asked)
        or next(
            filter(
                None,
                (first_difference(done[part], asked[part], part) for part in ("mixture", "validation", "changes_at")),
            ),
            None,
        )
        or first_difference(done_probes, asked_probes, "probes")
    )
    if changed is not None:
        raise ValueError(f"{path}: the run was done with other settings: {changed}; choose another `out`, or remove it")
    return True


def do_run(run: SweepRun, *, on_metrics: Callable[[dict[str, Any]], None]) -> "TrainResult":
    """Train one run from where it stood, then probe it; under torchrun every process is called.

    A run that a signal stopped is not probed, and goes on the next time.
    """
    from headrace.train.evaluate.probes import probe
    from headrace.train.loop import train

    result = train(run.config, on_metrics=on_metrics)
    if not result.finished:
        return result
    told = {
        name: probe(run.folder, config, device=run.config.device, work=run.folder)
        for name, config in run.probes.items()
    }
    if result.is_first:
        for name, found in told.items():
            text = json.dumps(found, indent=1, allow_nan=False) + "\n"
            write_atomic(str(run.folder / f"probe-{name}.json"), text.encode())
        accuracies = {name: found["accuracy"] for name, found in told.items()}
        probes = {name: config_to_dict(config) for name, config in run.probes.items()}
        facts = {"name": run.name, "steps": result.step, "probes": probes, "accuracy": accuracies}
        write_atomic(str(run.folder / RESULT), (json.dumps(facts) + "\n").encode())
    return result
