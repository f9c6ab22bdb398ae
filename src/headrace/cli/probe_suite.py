"""`headrace probe --suite`: one trunk on several datasets, one table."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from headrace.cli.result import say_json, say_plan
from headrace.cli.stopping import leaving_lost_ranks
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.train.evaluate.suite import SuiteConfig, SuiteRow

ALLOWED = ("checkpoint", "suite", "untrained", "device", "out", "json", "dry_run", "verbose", "quiet")
"""Parameters of `headrace probe` that go with a suite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteOptions:
    """What of the command line goes with a suite."""

    out: Path | None
    untrained: bool
    device: str
    json: bool
    dry_run: bool


def probe_suite(checkpoint: Path, path: Path, options: SuiteOptions) -> None:
    """Probe on every dataset of the suite file and show the table; exit code 1 if one of them failed."""
    from headrace.train.evaluate.suite import load_suite, mean_of, run_suite, write_tables

    suite = load_suite(path)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    target = options.out or folder / f"suite-{path.stem}{'-untrained' if options.untrained else ''}"
    if options.dry_run:
        say_plan("probe", [*_plan(suite), f"write {target}"], json=options.json)
        return
    is_first = os.environ.get("RANK", "0") == "0"

    def tell(row: "SuiteRow") -> None:
        if is_first:
            typer.echo(printable(_line(row)), err=True)

    with leaving_lost_ranks():
        rows = run_suite(checkpoint, suite, target, untrained=options.untrained, device=options.device, on_row=tell)
    failed = [row.name for row in rows if row.accuracy is None]
    if is_first:
        facts: dict[str, Any] = {
            "checkpoint": str(checkpoint),
            "suite": str(path),
            "untrained": options.untrained,
            "protocol": suite.protocol,
        }
        write_tables(target, rows, facts)
        if options.json:
            say_json(
                "probe", {**facts, "mean": mean_of(rows), "rows": [asdict(row) for row in rows], "out": str(target)}
            )
        else:
            _show(rows, mean_of(rows))
            print(printable(f"{target}: suite.md, suite.json and a file for each dataset"))
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(rows)} datasets failed: {', '.join(failed)}; the same command does those again"
        )


def refuse_other_options(context: typer.Context) -> None:
    """Raise ValueError for an option that a suite file has a place for."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ALLOWED and source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"--{name.replace('_', '-')} and --suite: put it into the suite file, under overrides of a dataset or "
                "of all, if it is a field of a probe; else leave it out"
            )


def _plan(suite: "SuiteConfig") -> list[str]:
    lines = [f"{len(suite.datasets)} datasets, protocol {suite.protocol}"]
    for dataset in suite.datasets:
        config = suite.probe_of(dataset)
        lines.append(
            f"{dataset.name}: {config.head}, {config.truth.says}; fit on {config.train}, judge on {config.test}, "
            f"{config.epochs} epochs"
        )
    return lines


def _line(row: "SuiteRow") -> str:
    if row.accuracy is None:
        return f"{row.name}: failed: {row.error}"
    return f"{row.name}: {row.metric} {row.accuracy:.4f}{' (finished before)' if row.kept else ''}"


def _show(rows: "list[SuiteRow]", mean: float | None) -> None:
    table = Table("dataset", "metric", "head", "accuracy")
    for row in rows:
        shown = "failed" if row.accuracy is None else f"{row.accuracy:.4f}"
        table.add_row(row.name, row.metric, row.head, shown)
    known = sum(row.accuracy is not None for row in rows)
    over = str(known) if known == len(rows) else f"{known} of {len(rows)}"
    table.add_row(f"mean over {over}", "", "", "" if mean is None else f"{mean:.4f}", style="bold")
    Console().print(table)
