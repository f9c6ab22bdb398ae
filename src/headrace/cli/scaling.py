"""`headrace scaling`: what a set of runs says of scaling, as a page and as numbers."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.result import JsonOption, say_json, say_next
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.train.scaling.analysis import Analysis, FittedLaw, Prediction


def scaling_command(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold runs.")
    ] = None,
    table: Annotated[
        str,
        typer.Option("--table", metavar="FILE.csv", help="Runs of others: a csv with a run a line."),
    ] = "",
    hold_out: Annotated[
        str,
        typer.Option("--hold-out", metavar="NAME", help="The run that the others predict; else the largest."),
    ] = "",
    accuracy: Annotated[
        str, typer.Option(help="Which monitor or probe file of the runs; the first that there is if not given.")
    ] = "",
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The page.")] = "scaling.html",
    json: JsonOption = False,
) -> None:
    """Fit laws of loss by size, data and operations, predict a run that was held out, tell which runs over-fit.

    Example: headrace scaling sweeps/simmim --out simmim.html
    """
    from headrace import atomic
    from headrace.train.scaling.analysis import analyse
    from headrace.train.scaling.collect import collect, read_table, runs_in
    from headrace.train.scaling.page import render

    if bool(runs) == bool(table):
        raise ValueError("give folders of runs, or --table FILE.csv; see headrace scaling --help")
    rows = collect(runs, accuracy=accuracy) if runs else read_table(Path(table))
    found = analyse(rows, hold_out=hold_out)
    atomic.write_atomic(out, render(found, title="Scaling"))
    if json:
        say_json("scaling", {"page": out, "objectives": [_facts(one) for one in found]})
        return
    for one in found:
        _show(one)
    print(f"{printable(out)} is written")
    if runs:
        say_next(["headrace", "run-report", str(next(runs_in(Path(runs[0]))))])


def _show(one: "Analysis") -> None:
    from headrace.train.scaling.page import formula, growth_formula

    words = [verdict.word for verdict in one.verdicts.values()]
    counted = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    print(printable(f"{one.objective or 'runs'}: {len(one.rows)} runs ({counted})"))
    for law in one.laws:
        if not law.fit.undetermined:
            among = f" ({law.held_equal})" if law.held_equal else ""
            print(printable(f"  {law.title}{among}: {formula(law)}, rmse {law.fit.rmse:.2g}, {len(law.runs)} runs"))
    undetermined = sum(bool(law.fit.undetermined) for law in one.laws)
    if undetermined:
        print(f"  {undetermined} laws that these runs do not determine; the page says why")
    for prediction in one.predictions:
        print(printable(f"  {_prediction(prediction)}"))
    for each in one.correlations:
        print(f"  loss and accuracy, {each.of} ({each.runs}): Pearson {each.pearson:.3f}, Spearman {each.spearman:.3f}")
    if one.growth:
        print(printable(f"  best size = {growth_formula(one.growth)}"))
    for note in one.notes:
        print(printable(f"  {note}"))


def _prediction(one: "Prediction") -> str:
    interval = "" if one.interval is None else f" (95 %: {one.interval.low:.4f} to {one.interval.high:.4f})"
    doubt = f"; these runs do not determine that law: {one.undetermined}" if one.undetermined else ""
    return (
        f"{one.run} by {one.law}: predicted {one.predicted:.4f}{interval}, measured {one.measured:.4f}, "
        f"missed by {one.missed_by:+.4f}{doubt}"
    )


def _facts(one: "Analysis") -> dict[str, Any]:
    """Return an analysis as plain data, without what only the page draws."""
    rows = [{k: v for k, v in dataclasses.asdict(row).items() if k != "curve"} for row in one.rows]
    return {
        "objective": one.objective,
        "runs": [row | {"verdict": dataclasses.asdict(one.verdicts[row["name"]])} for row in rows],
        "laws": [_law(law) for law in one.laws],
        "predictions": [
            dataclasses.asdict(each) | {"missed_by": each.missed_by, "inside": each.inside} for each in one.predictions
        ],
        "correlations": [
            {name: None if value != value else value for name, value in dataclasses.asdict(each).items()}
            for each in one.correlations
        ],
        "optima": [dataclasses.asdict(each) for each in one.optima],
        "growth": None if one.growth is None else dataclasses.asdict(one.growth),
        "notes": list(one.notes),
    }


def _law(law: "FittedLaw") -> dict[str, Any]:
    return {
        "title": law.title,
        "among": law.held_equal,
        "runs": list(law.runs),
        "formula": law.fit.law.formula,
        "numbers": law.fit.numbers,
        "intervals": {name: dataclasses.asdict(interval) for name, interval in law.fit.intervals.items()},
        "rmse": law.fit.rmse,
        "undetermined": law.fit.undetermined,
    }
