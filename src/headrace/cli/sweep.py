"""`headrace sweep`: many runs from one run file, each in a process of its own."""

import ctypes
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.result import JsonOption, say_json, say_next, say_plan
from headrace.cli.stopping import leaving_lost_ranks
from headrace.cli.train import end_training
from headrace.cli.verbosity import is_quiet
from headrace.text import one_line, printable

if TYPE_CHECKING:
    from headrace.train.scaling.sweep import SweepRun

POLL_SECONDS = 0.2
STOP_SECONDS = 120
LOG_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1


def sweep_command(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="The sweep file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Overrides of the sweep file, for example out=sweeps/b"),
    ] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="I/N", help="Do part I of N, 1/4 to 4/4: for the jobs of any scheduler.")
    ] = "1/1",
    processes: Annotated[int, typer.Option(min=1, help="Runs at once on this machine.")] = 1,
    launch: Annotated[
        str,
        typer.Option(
            help="Words before each run's command, for example 'torchrun --standalone --nproc-per-node=8 --no-python'."
        ),
    ] = "",
    only: Annotated[str, typer.Option("--only", metavar="NAME", help="Do this run, in this process.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Train and probe every combination of a sweep; what is finished is skipped, what was killed goes on.

    Several processes or machines may do the same sweep: each run is done by one of them.

    Example: headrace sweep examples/sweeps/simmim-cifar10.yaml --processes 2

    As four jobs: headrace sweep SWEEP.yaml --part 1/4 (and 2/4, 3/4, 4/4)
    """
    from headrace.shards.part import parse_part
    from headrace.train.scaling.sweep import is_finished, load_sweep

    runs = load_sweep(Path(sweep), overrides or ())
    if only:
        _do_one(_named(runs, only), json=json)
        return
    chosen = parse_part(part).mine(runs)
    if dry_run:
        refused: dict[str, str] = {}
        say_plan("sweep", _plan(chosen, refused), json=json)
        _raise_refused(refused, len(chosen))
        return
    done = [run for run in chosen if is_finished(run)]
    waiting = [run for run in chosen if run not in done]
    command = [*shlex.split(launch), *(["headrace"] if launch else [sys.executable, "-m", "headrace.cli.app"])]
    outcome = _Outcome(skipped=len(done))
    command += ["sweep", sweep, *(overrides or ())]
    _do_all(waiting, command, processes, outcome)
    _say(chosen, outcome, json=json)


@dataclass(kw_only=True, slots=True)
class _Outcome:
    skipped: int = 0
    finished: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def _named(runs: "Sequence[SweepRun]", name: str) -> "SweepRun":
    for run in runs:
        if run.name == name:
            return run
    raise ValueError(f"--only: no run is called {name!r}; there are {', '.join(run.name for run in runs[:20])}")


def _do_one(run: "SweepRun", *, json: bool) -> None:
    from headrace.train.scaling.sweep import do_run

    def told(line: dict[str, Any]) -> None:
        if line["event"] == "validation" and not is_quiet():
            typer.echo(f"{run.name}: step {line['step']}: validation loss {line['loss']:.4f}", err=True)

    with leaving_lost_ranks():
        result = do_run(run, on_metrics=told)
    if result.finished and result.is_first:
        if json:
            say_json("sweep", {"finished": [run.name]})
        else:
            print(f"{printable(run.name)}: finished")
    end_training(result)


def _plan(runs: "Sequence[SweepRun]", refused: dict[str, str]) -> Iterator[str]:
    """Yield what each run takes; `refused` gets those that would end before their first step, with the reason."""
    import torch

    from headrace.train.objectives.build import build_objective
    from headrace.train.runs.plan import why_refused
    from headrace.train.scaling.sweep import is_finished

    total = 0.0
    for run in runs:
        config = run.config
        try:
            with torch.device("meta"):
                objective = build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)
        except ValueError as error:
            refused[run.name] = str(error)
            yield f"{run.name}: refused: {error}"
            continue
        flops = objective.train_flops_per_image * config.total_steps * config.global_batch
        size = sum(parameter.numel() for parameter in objective.parameters())
        state = "finished" if is_finished(run) else "to do"
        if state == "to do" and (why := why_refused(config, objective)):
            refused[run.name] = why
            state = f"refused: {why}"
        total += flops if state == "to do" else 0.0
        yield f"{run.name}: {size:,} parameters, {config.total_steps:,} steps, {flops:.3g} FLOPs, {state}"
    yield f"{len(runs)} runs; to do: {total:.3g} FLOPs, and the probes"


def _raise_refused(refused: dict[str, str], num_runs: int) -> None:
    for name, why in refused.items():  # the first
        raise ValueError(f"{len(refused)} of {num_runs} runs would be refused; {name}: {why}")


def _do_all(runs: "Sequence[SweepRun]", command: Sequence[str], processes: int, outcome: _Outcome) -> None:
    """Do the runs, so many at once; what fails does not keep the others from being done."""
    waiting = list(runs)
    with _Children(command, processes, outcome) as children:
        while waiting or children.running:
            while waiting and len(children.running) < processes:
                children.start(waiting.pop(0))
            children.reap()
            time.sleep(POLL_SECONDS)


class _Children:
    """The processes of the runs. Those that are left when it closes are asked to save and to end."""

    def __init__(self, command: Sequence[str], processes: int, outcome: _Outcome) -> None:
        self.running: list[tuple[SweepRun, subprocess.Popen[bytes], IO[bytes], Path]] = []
        self._command, self._outcome = list(command), outcome
        threads = max(1, (os.cpu_count() or 1) // processes)
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ} if processes > 1 else dict(os.environ)

    def __enter__(self) -> "_Children":
        return self

    def __exit__(self, *_: object) -> None:
        for _run, process, _lock, _log in self.running:
            process.terminate()
        for _run, process, lock, _log in self.running:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lock.close()

    def start(self, run: "SweepRun") -> None:
        from headrace.train.scaling.sweep import is_finished

        out = run.folder.parent
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / f".{run.name}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            self._outcome.busy.append(run.name)
            return
        if is_finished(run):  # by another process, since this one looked
            lock.close()
            self._outcome.skipped += 1
            return
        log = out / f"{run.name}.log"
        if not is_quiet():
            typer.echo(f"{printable(run.name)}: begins, or goes on; it writes {printable(str(log))}", err=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self._command, "--only", run.name],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                preexec_fn=_end_with_parent,
                # The lock is held until the run has ended too, which saves first where this process was killed.
                pass_fds=(lock.fileno(),),
            )
        self.running.append((run, process, lock, log))

    def reap(self) -> None:
        for one in [one for one in self.running if one[1].poll() is not None]:
            run, process, lock, log = one
            self.running.remove(one)
            lock.close()
            if process.returncode == 0:
                self._outcome.finished.append(run.name)
            else:
                self._outcome.failed[run.name] = _last_line(log) or f"exit code {process.returncode}"
            if not is_quiet():
                word = "finished" if process.returncode == 0 else f"failed: {self._outcome.failed[run.name]}"
                typer.echo(f"{printable(run.name)}: {printable(word)}", err=True)


def _end_with_parent() -> None:
    """Let the kernel ask this process to save and end when its parent is gone, however that died (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace").strip()
    return one_line(text.rpartition("\n")[2])


def _say(runs: "Sequence[SweepRun]", outcome: _Outcome, *, json: bool) -> None:
    out = str(runs[0].folder.parent) if runs else ""
    facts = {"out": out, "skipped": outcome.skipped, "finished": outcome.finished, "busy": outcome.busy}
    if json:
        say_json("sweep", {**facts, "failed": outcome.failed})
    else:
        print(
            printable(
                f"{out}: {len(outcome.finished)} runs finished now, {outcome.skipped} before, {len(outcome.busy)} are "
                f"being done by another process, {len(outcome.failed)} failed"
            )
        )
    if outcome.failed:
        name, why = next(iter(outcome.failed.items()))
        raise ValueError(f"{len(outcome.failed)} of {len(runs)} runs failed; {name}: {why.removeprefix('headrace: ')}")
    if not json:
        say_next(["headrace", "scaling", out])
