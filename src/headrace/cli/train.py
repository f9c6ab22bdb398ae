"""`headrace train`: run, or continue, a training run."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headrace.cli.result import JsonOption, say_json, say_next, say_plan
from headrace.cli.stopping import leaving_lost_ranks
from headrace.cli.verbosity import is_quiet

if TYPE_CHECKING:
    from headrace.train.config import RunConfig
    from headrace.train.loop import TrainResult


MONITOR = "monitor/"

NOTICES: dict[str, Callable[[dict[str, Any]], str]] = {
    "init": lambda line: f"init_from {line['summary']}",
    "change": lambda line: f"step {line['step']}: " + _changes_of(line),
    "skipped": lambda line: f"step {line['step']}: skipped ({line['reason']}), its samples are in skipped.jsonl",
}
"""What is said of events that are no steps, on stderr."""


def train_command(
    run: Annotated[str, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Overrides, for example optimizer.lr=0.0005")
    ] = None,
    cooldown: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP:STEPS",
            help="Cool the run down from its checkpoint of STEP, in so many steps; repeatable, a branch each.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done (parameters, FLOPs, epochs); write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train; a run that was stopped or killed goes on from its newest checkpoint.

    SIGTERM and Ctrl-C save at the end of the step; the exit code is then 143 or 130, and 0 only after the last step.

    Example: headrace train examples/aim-cifar10.yaml out=runs/a seed=1

    Several processes: torchrun --standalone --nproc-per-node 2 --no-python headrace train RUN.yaml

    One run, several ends: headrace train RUN.yaml --cooldown 200000:20000 --cooldown 400000:40000
    """
    from headrace.train.config import load_run

    config = load_run(run, overrides or ())
    if cooldown:
        from headrace.train.runs.cooldowns import branches

        _train_branches(branches(config, cooldown), dry_run=dry_run, json=json)
        return
    if dry_run:
        plan_training("train", config, json=json)
        return
    result = run_training(config, json=json)
    if result.is_first and json:
        say_json("train", _facts(result))
    elif result.is_first:
        _show(result)
    end_training(result)


def _train_branches(configs: "list[RunConfig]", *, dry_run: bool, json: bool) -> None:
    """Train one branch after the other; what is finished is passed over, what was stopped goes on."""
    if dry_run:
        from headrace.train.runs.plan import plan_run

        say_plan("train", [f"{config.out}: {line}" for config in configs for line in plan_run(config)], json=json)
        return
    results = []
    for config in configs:
        result = run_training(config, json=json)
        results.append(result)
        if result.is_first and not json:
            _show(result)
        if not result.finished:
            break
    if json and results[-1].is_first:
        say_json("train", {"cooldowns": [_facts(result) for result in results]})
    end_training(results[-1])


def plan_training(command: str, config: "RunConfig", *, json: bool, before: Sequence[str] = ()) -> None:
    """Print what a run would do, behind the lines `before`."""
    from headrace.train.runs.cost import PlanError
    from headrace.train.runs.plan import plan_run

    try:
        say_plan(command, [*before, *plan_run(config)], json=json)
    except PlanError as error:
        error.add_note(f"known without it: {'; '.join(error.lines)}")  # a refusal is one line
        raise


def run_training(config: "RunConfig", *, json: bool) -> "TrainResult":
    """Run, or continue, a run, and show how it goes; the process ends here if it has lost the others."""
    from headrace.train.loop import train

    with leaving_lost_ranks(), _progress(config.total_steps, json=json) as on_metrics:
        return train(config, on_metrics=on_metrics)


def end_training(result: "TrainResult") -> None:
    """Leave with the code of the signal that stopped the run before its last step, if one did."""
    if not result.finished:
        # What a shell gives for a signal: a scheduler must not take the run for finished.
        raise typer.Exit(128 + result.stopped_by)


def _top1_of(line: dict[str, Any]) -> str:
    return f", top1 {line['top1']:.4f}" if "top1" in line else ""


def _changes_of(line: dict[str, Any]) -> str:
    made = [f"{path} {was} -> {now}" for path, (was, now) in line["changes"].items() if was != now]
    return ", ".join(made) or f"{', '.join(line['changes'])} as before"


def _show(result: "TrainResult") -> None:
    if not result.finished:
        name = signal.Signals(result.stopped_by).name
        print(f"{result.out}: stopped by {name} and saved at step {result.step}; the same command continues")
        return
    print(f"{result.out}: {result.step} steps done; metrics.jsonl, model.safetensors and checkpoints are there")
    filtering = result.out / "open_clip"
    if result.has_trunk:
        say_next(["headrace", "probe", str(result.out), "--train", "DATASET", "--test", "DATASET"])
    elif filtering.is_dir():
        files = f"{{model: {filtering}/model_config.json, checkpoint: {filtering}/model.safetensors}}"
        say_next(["headrace", "curate", "RECIPE.yaml", f"annotate.clip={files}"])


def _facts(result: "TrainResult") -> dict[str, Any]:
    """Return how the run ended, with the last lines of its metrics.jsonl."""
    from headrace.train.runs.metrics import read_metrics

    last = {line["event"]: line for line in read_metrics(result.out / "metrics.jsonl")}
    return {
        "out": str(result.out),
        "step": result.step,
        "stopped_by": signal.Signals(result.stopped_by).name if result.stopped_by else None,
        "train": last.get("train"),
        "validation": last.get("validation"),
        "monitors": {event.removeprefix(MONITOR): line for event, line in last.items() if event.startswith(MONITOR)},
    }


@contextmanager
def _progress(steps: int, *, json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that shows lines of metrics: a bar on a terminal, else a line each.

    Validation and monitors go to stdout, with `json` to stderr.
    """
    console, quiet = Console(stderr=True), is_quiet()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    drawn = console.is_terminal and not quiet
    # What is printed to a file meanwhile must not be taken for the terminal.
    with Progress(*columns, console=console, disable=not drawn, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task("train", total=steps)

        def show(line: dict[str, Any]) -> None:
            if quiet:
                return
            if line["event"] in NOTICES:
                typer.echo(NOTICES[line["event"]](line), err=True)
                return
            if line["event"] == "validation":
                typer.echo(f"step {line['step']}: validation loss {line['loss']:.4f}{_top1_of(line)}", err=json)
                return
            if line["event"].startswith(MONITOR) and "accuracy" in line:  # a fault has its line in the log
                typer.echo(f"step {line['step']}: {line['event']} accuracy {line['accuracy']:.4f}", err=json)
            if line["event"] != "train":
                return
            rate, wait = line["images_per_second"], line["data_wait_percent"]
            mfu = "" if line["mfu_percent"] is None else f", {line['mfu_percent']:.0f}% MFU"
            text = f"loss {line['loss']:.4f}, {rate:.0f} images/s{mfu}, {wait:.0f}% waiting"
            if line["data_bound_by"] not in (None, "compute"):
                text += f" ({line['data_bound_by']})"
            progress.update(task, completed=line["step"], description=text)
            if not drawn:
                typer.echo(f"step {line['step']}/{steps}: {text}", err=True)

        yield show
