"""`headrace trace`: the pictures, keys, URLs and verdicts of one step's batch, as a page."""

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.result import JsonOption, say_json, say_next
from headrace.text import cut_line, one_line, printable

if TYPE_CHECKING:
    from headrace.trace.history import History
    from headrace.trace.step import TracedStep

SHOWN_SAMPLES = 8


def trace_command(
    target: Annotated[str, typer.Argument(metavar="RUN|MIXTURE.yaml", help="Folder of a run, or a mixture file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Overrides of the mixture, say where a dataset lies now."),
    ] = None,
    step: Annotated[int, typer.Option("--step", min=0, help="The step, from 1 on, as metrics.jsonl counts.")] = 0,
    position: Annotated[
        int | None, typer.Option("--position", min=0, help="One position, as batches and quarantine files name it.")
    ] = None,
    global_batch: Annotated[
        int, typer.Option("--global-batch", min=0, help="Of a mixture file: images in a step, over all processes.")
    ] = 0,
    pictures: Annotated[int, typer.Option("--pictures", min=0, help="Samples shown with a picture.")] = 64,
    job: Annotated[
        list[str] | None,
        typer.Option("--job", help="Job that a source was curated in, if the dataset lies elsewhere; may be repeated."),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="The page; default: trace-step-N.html, with --json none.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Show what a step of a run saw: pictures as they were cropped, keys, sources, URLs and the ledger's verdicts.

    Nothing was kept for it: samples follow from the order, pictures are made again. Replaced samples are shown as such.

    Example: headrace trace runs/a --step 1200
    """
    from dataclasses import asdict

    from headrace import atomic
    from headrace.trace.history import open_history
    from headrace.trace.lookup import open_sources
    from headrace.trace.page import render
    from headrace.trace.replaced import read_replacements
    from headrace.trace.step import trace_step

    if bool(step) == (position is not None):
        raise ValueError("give --step N or --position P, one of them")
    history = open_history(target, global_batch=global_batch, overrides=overrides or ())
    positions = history.positions(step if position is None else history.step_of(position))
    positions = positions if position is None else range(position, position + 1)
    opened = open_sources(history)
    shown = pictures if out or not json else 0
    traced = trace_step(opened, read_replacements(opened), positions, pictures=shown, jobs=job or ())
    place = out or ("" if json else _default_name(traced))
    if place:
        data = render(traced, name=target, global_batch=history.global_batch, num_views=len(opened.views))
        atomic.write_atomic(place, data)
    if json:
        facts = {name: value for name, value in asdict(traced).items() if name != "pictures"}
        say_json("trace", {"target": target, **facts, "page": place or None, "pictures": len(traced.pictures)})
        return
    _show(history, traced, place)


def _default_name(traced: "TracedStep") -> str:
    first, end = traced.positions
    return f"trace-step-{traced.step}.html" if end - first > 1 else f"trace-position-{first}.html"


def _show(history: "History", traced: "TracedStep", place: str) -> None:
    from headrace.trace.step import PROOFS

    first, end = traced.positions
    print(f"step {traced.step:,}, positions {first} to {end - 1}: {PROOFS[traced.proof]}")
    if traced.skipped is not None:
        print(f"the run skipped this step ({one_line(traced.skipped)}): the weights did not move")
    for sample in traced.samples[:SHOWN_SAMPLES]:
        instead = f" (instead of {sample.instead_of}: {sample.damage})" if sample.instead_of is not None else ""
        print(cut_line(f"{sample.position} {sample.source} {sample.key}{instead}: {sample.url or 'no URL'}"))
    if len(traced.samples) > SHOWN_SAMPLES:
        print(f"... and {len(traced.samples) - SHOWN_SAMPLES:,} more")
    if traced.note:
        print(one_line(f"pictures: {traced.note}"))
    print(printable(f"page: {place} ({len(traced.pictures):,} pictures)"))
    key = next((sample.key for sample in traced.samples), "KEY")
    batch = [] if history.is_run else ["--global-batch", str(history.global_batch), "--upto", str(traced.step)]
    say_next(["headrace", "audit", history.name, *batch, "--key", key])
