"""Run a study: one table of arms, each trained with each seed, then probed; jobs.py says how it goes on when killed."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.atomic import write_atomic
from headrace.examples.studies import jobs
from headrace.train.config import load_run
from headrace.train.steady.alarms import DIP, LEAST_LINES, SPIKE, AlarmConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is compared, and how."""

    name: str
    run_file: Path
    """The run of every arm, before its overrides; paths in it are relative to the study's folder. Trunks are probed at
    the steps that its `checkpoint.keep_every` keeps, and at the last."""
    arms: Mapping[str, tuple[str, ...]]
    """Overrides of the run file by name of the arm. The first is also probed before training, once a seed."""
    probes: Mapping[str, tuple[str, ...]]
    """Options of `headrace probe` by name of the probe."""
    make_data: Callable[[Path, Path], None]
    """Makes what the run file and the probes read in OUT, from a folder of originals; what is there stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the user chose on the command line."""

    originals: Path
    out: Path
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    processes: int = 2
    finished: bool = False
    pages: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One arm with one seed: a training, then its probes."""

    arm: str
    seed: int
    folder: str
    train: jobs.Job
    probes: Mapping[tuple[str, int], jobs.Job]
    """By name of the probe and step of the trunk."""

    @property
    def jobs(self) -> tuple[jobs.Job, ...]:
        """All of it, in order."""
        return (self.train, *self.probes.values())


Runs = dict[str, list[dict[str, Any]]]
"""The numbers of the runs by arm."""


WINDOW = AlarmConfig().spike_window

BEGIN, END = "<!-- made from the numbers: -->\n", "<!-- end -->\n"


def main(study: Study, report: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    """Do the study that the command line asks for; write its numbers, and what `report` makes of them, into OUT."""
    options = parse_options(study)
    try:
        result = finished_runs(study, options) if options.finished else run_study(study, options)
        files = {f"{study.name}.json": as_json(result), **report(result)}
        if options.pages is not None:
            page = options.pages / f"{study.name}.md"
            write_files(options.pages, files | {page.name: with_tables(page, files[page.name])})
    except ValueError as error:
        sys.exit(f"{study.name}: {error}")
    write_files(options.out, files)


def with_tables(page: Path, tables: str) -> str:
    """Return the text of a page with other tables between its marks. Raises ValueError if there are none."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: expected the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write each whole or not at all."""
    for name, text in files.items():
        write_atomic(str(folder / name), text.encode())
        print("wrote", folder / name)


def as_json(result: dict[str, Any]) -> str:
    """Return the numbers of a study as they are kept, a run a line."""
    runs = ",\n".join(json.dumps(run) for run in result["runs"])
    facts = json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1)
    return f'{facts[:-2]},\n "runs": [\n{runs}\n]\n}}\n'


def runs_by_arm(result: dict[str, Any]) -> Runs:
    """Return the runs of each arm, as the arms first come."""
    names = list(dict.fromkeys(run["arm"] for run in result["runs"]))
    return {name: [run for run in result["runs"] if run["arm"] == name] for name in names}


def facts(result: dict[str, Any]) -> str:
    """Return what it took, in a line of Markdown."""
    seeds = {arm: len(of_arm) for arm, of_arm in runs_by_arm(result).items()}
    same = len(set(seeds.values())) == 1
    text = f"{max(seeds.values())}" if same else ", ".join(f"{arm} {number}" for arm, number in seeds.items())
    return f"Seeds: {text}. Measured: {result['cpu_minutes']} CPU minutes, training and probes.\n"


def each(runs: Runs) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each run with its arm."""
    for arm, of_arm in runs.items():
        for run in of_arm:
            yield arm, run


def parse_options(study: Study, words: Sequence[str] | None = None) -> Options:
    """Read the command line; a mistake ends the program with one line."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("overrides", nargs="*", help="key=value of the run file, for every arm")
    parser.add_argument("--originals", type=Path, required=True, help="folder of the files that the data is made of")
    parser.add_argument("--out", type=Path, required=True, help="folder to work in; in the same one a study goes on")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between them")
    parser.add_argument("--arms", default=",".join(study.arms), help="those of the table to do")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--finished", action="store_true", help="do nothing; write what the finished runs gave")
    parser.add_argument("--pages", type=Path, help="folder of the study's page, whose tables and curves are replaced")
    given = parser.parse_args(words)
    arms = tuple(given.arms.split(","))
    unknown = [name for name in arms if name not in study.arms]
    if unknown:
        parser.error(f"unknown arm {unknown[0]!r}; known: {', '.join(study.arms)}")
    for override in given.overrides:
        if override.partition("=")[0] in {"out", "seed", "mixture.seed"}:
            parser.error(f"{override}: the study gives that for each run; see --out and --seeds")
    if not all(seed.isdecimal() for seed in given.seeds.split(",")):
        parser.error(f"--seeds {given.seeds!r}: expected numbers with commas between them")
    return Options(
        originals=given.originals.absolute(),
        out=given.out.absolute(),
        seeds=tuple(map(int, given.seeds.split(","))),
        arms=arms,
        processes=given.processes,
        finished=given.finished,
        pages=given.pages,
        overrides=tuple(given.overrides),
    )


def run_study(study: Study, options: Options) -> dict[str, Any]:
    """Do what is not done yet and return the numbers, as JSON-able data.

    Raises ValueError for a command that fails, and for jobs in `options.out` that were done with other settings.
    """
    # Read before anything starts: an arm that is refused must not be found after half an hour.
    runs = plan_runs(study, options)
    _keep_run_file(study, options.out)
    with jobs.lock(options.out / "locks" / "data", wait=True):
        study.make_data(options.originals, options.out)
    jobs.do_all(options.out, {run.train.name: run.jobs for run in runs}, processes=options.processes)
    return finished_runs(study, options)


def finished_runs(study: Study, options: Options) -> dict[str, Any]:
    """Return the numbers of the runs that are finished, as JSON-able data. Raises ValueError if none is."""
    runs = [run for run in plan_runs(study, options) if _is_finished(options.out, run)]
    if not runs:
        raise ValueError(f"{options.out}: no run is finished yet")
    seconds = sum(jobs.cpu_seconds(options.out, job) or 0 for run in runs for job in run.jobs)
    return {
        "study": study.name,
        "overrides": list(options.overrides),
        "cpu_minutes": round(seconds / 60, 1),
        "runs": [_numbers(options.out, run) for run in runs],
    }


def _is_finished(out: Path, run: Run) -> bool:
    return all(jobs.cpu_seconds(out, job) is not None for job in run.jobs)


def _keep_run_file(study: Study, out: Path) -> None:
    """Copy the run file into OUT, so that its commands are whole there. Raises ValueError if there is another one."""
    kept, text = out / study.run_file.name, study.run_file.read_text()
    if kept.exists() and kept.read_text() != text:
        raise ValueError(f"{kept} is not {study.run_file} any more; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "probes").mkdir(exist_ok=True)
    write_atomic(str(kept), text.encode())


def plan_runs(study: Study, options: Options) -> list[Run]:
    """Return all runs, seed by seed: a study that is stopped has done the most of them for every arm."""
    return [plan_run(study, options, arm, seed) for seed in options.seeds for arm in options.arms]


def plan_run(study: Study, options: Options, arm: str, seed: int) -> Run:
    """Return the jobs of one arm with one seed. Raises ValueError for overrides that make no run."""
    name, overrides = f"{arm}-{seed}", (*study.arms[arm], *options.overrides)
    config = load_run(study.run_file, overrides)
    folder, every = f"runs/{name}", config.checkpoint.keep_every
    changes = (f"out={folder}", f"seed={seed}", f"mixture.seed={seed}", *overrides)
    steps = [*(range(every, config.steps, every) if every else ()), config.steps]
    if arm == next(iter(study.arms)):
        steps.insert(0, 0)
    probes = {}
    for step in steps:
        for probe, flags in study.probes.items():
            job = f"{name}-{step}-{probe}"
            trunk = (f"{folder}/checkpoints/{step:08d}",) if step else (folder, "--untrained")
            arguments = ("probe", *trunk, *flags, "--seed", str(seed), "--out", f"probes/{job}.json")
            probes[probe, step] = jobs.Job(name=job, arguments=arguments)
    train = jobs.Job(name=name, arguments=("train", study.run_file.name, *changes))
    return Run(arm=arm, seed=seed, folder=folder, train=train, probes=probes)


def _numbers(out: Path, run: Run) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / run.folder / "metrics.jsonl").read_text().splitlines()]
    curves = {
        event: [[line["step"], round(line["loss"], 5)] for line in lines if line["event"] == event]
        for event in ("train", "validation")
    }
    accuracy: dict[str, list[list[float]]] = {}
    for (probe, step), job in run.probes.items():
        result = json.loads((out / "probes" / f"{job.name}.json").read_text())
        accuracy.setdefault(probe, []).append([step, result["accuracy"]])
    return {"arm": run.arm, "seed": run.seed, **curves, **watched(lines), "accuracy": accuracy}


def watched(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what monitors and gradients gave, where a run has them: curves, spikes and dips, peaks by layer."""
    found: dict[str, Any] = {}
    for line in lines:
        event, step = line["event"], line["step"]
        if event.startswith("monitor/") and "accuracy" in line:
            found.setdefault(event, []).append([step, line["accuracy"]])
        elif event in (SPIKE, DIP):
            found.setdefault("alarms", []).append([event, step, line.get("layers", line.get("curve"))])
    gradients = [line for line in lines if line["event"] == "gradients"]
    return found | ({"gradient_peaks": gradient_peaks(gradients)} if gradients else {})


def gradient_peaks(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return of each layer the largest multiple of its running median that its largest gradient had, and the step."""
    peaks: dict[str, list[float]] = {}
    for name in (name for name in lines[0] if name.startswith("max/")):
        values = [line[name] or 0.0 for line in lines]
        found = [[0.0, 0]]
        for at in range(LEAST_LINES, len(values)):
            middle = statistics.median(values[max(0, at - WINDOW) : at])
            found.append([round(values[at] / middle, 2) if middle else 0.0, lines[at]["step"]])
        peaks[name.removeprefix("max/")] = max(found)
    return peaks
