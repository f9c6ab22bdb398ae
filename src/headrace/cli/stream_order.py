"""What `headrace stream` says of the order: how well it is shuffled, what it will give, and whether a run saw it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headrace.cli.result import say_json

if TYPE_CHECKING:
    from headrace.pipeline import Mixture, Stream
    from headrace.pipeline.forecast import Forecast
    from headrace.pipeline.seen import Proof


def show_plan(stream: "Stream", steps: int, *, quiet: bool) -> dict[str, Any]:
    """Print what the first `steps` steps of a mixture give, unless `quiet`, and return it as JSON-able data."""
    from headrace.pipeline.forecast import forecast
    from headrace.pipeline.order.plan import EndlessPlan

    assert isinstance(stream.plan, EndlessPlan)
    found = forecast(stream.plan, stream.sources, steps)
    if not quiet:
        _print(found, steps)
    return asdict(found)


def _print(found: "Forecast", asked: int) -> None:
    samples = found.num_steps * found.global_batch
    print(f"{found.num_steps:,} steps of {found.global_batch:,} samples: {samples:,} samples")
    if found.num_steps < asked:
        print(f"the mixture ends there: what is left of its sources does not fill step {found.num_steps + 1:,}")
    print(f"{'steps':<28} {'lanes':>5} {'source':<20} {'samples':>18} {'epochs':>12} {'GB':>14}")
    for segment in found.segments:
        where = f"{segment.first_step:,}-{segment.last_step:,}"
        for name, share in segment.sources.items():
            print(_line(where, str(segment.num_lanes), name, share.num_samples, share.epochs, share.num_bytes))
            where = ""
    where = "all"
    for name, source in found.sources.items():
        total = source.total
        print(_line(where, "", name, total.num_samples, total.epochs, total.num_bytes))
        where = ""
    for name, source in found.sources.items():
        if source.last_step is not None:
            print(f"source {name}: ends in step {source.last_step:,}")
        repeats = f"repeats from step {source.first_repeat:,} on" if source.first_repeat else "does not repeat"
        print(f"source {name}: {repeats}")


def _line(where: str, lanes: str, name: str, samples: int, epochs: float, num_bytes: int) -> str:
    return f"{where:<28} {lanes:>5} {name:<20} {samples:>18,} {epochs:>12,.4f} {num_bytes / 1e9:>14,.3f}"


def show_shuffle(stream: "Stream", *, quiet: bool) -> dict[str, Any]:
    """Print how well each source is shuffled in a batch, unless `quiet`, and return it as JSON-able data."""
    from headrace.pipeline.order.plan import EndlessPlan
    from headrace.pipeline.quality import measure

    assert isinstance(stream.plan, EndlessPlan)
    found = measure(stream.plan, stream.sources)
    for name, quality in found.items() if not quiet else ():
        parts, shards = quality.parts, quality.shards
        print(
            f"shuffle {name}: {quality.samples:,.0f} samples a batch, of {parts.distinct:,.0f} of "
            f"{quality.num_parts:,} equal parts of the index (ideal {parts.ideal:,.0f}; dispersion "
            f"{parts.dispersion:.1f}, ideal 1) and of {shards.distinct:,.0f} of {quality.num_shards:,} shards "
            f"(ideal {shards.ideal:,.0f})"
        )
        if quality.changes:
            better = "; ".join(
                f"{change.setting} ({change.parts.distinct:,.0f} parts, {change.window_bytes / 1e9:,.2f} GB of windows)"
                for change in quality.changes
            )
            print(f"  if neighbours in it are alike (sorted by class): {better}; or import it with --shuffle")
    return {name: asdict(quality) for name, quality in found.items()}


def verify_steps(mixture: "Mixture", run: str, *, json: bool) -> None:
    """Print whether the steps of a run saw the planned samples. Exits with 1 if they did not, or it cannot be said."""
    from headrace.pipeline import open_stream
    from headrace.pipeline.order.plan import EndlessPlan
    from headrace.pipeline.seen import FILE, last_trained_step, prove, read_record, read_replaced
    from headrace.trace.history import changes_of
    from headrace.train.steady.changes import mixture_with

    path = Path(run) / FILE
    lines = read_record(path)
    if not lines:
        raise ValueError(f"{path}: no step is recorded there; is {run} the folder of a run that made a step?")
    batch = int(lines[0]["global_batch"])
    mixture = mixture_with(mixture, changes_of(Path(run)), global_batch=batch)
    with open_stream(mixture, global_batch=batch) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        proof = prove(
            stream.plan,
            stream.sources,
            lines,
            replaced=read_replaced(mixture.quarantine),
            last_step=last_trained_step(Path(run) / "metrics.jsonl"),
        )
    if json:
        say_json("stream", {"run": run, "holds": proof.holds, "global_batch": batch, **asdict(proof)})
    else:
        _print_proof(proof, run, batch)
    if not proof.holds:
        raise typer.Exit(1)


def _print_proof(proof: "Proof", run: str, global_batch: int) -> None:
    if proof.holds:
        replaced = f", {proof.num_replaced:,} of them for a damaged one" if proof.num_replaced else ""
        print(f"{run}: {proof.num_steps:,} steps saw their {proof.num_samples:,} planned samples{replaced}")
        return
    if proof.differs is not None:
        first = (proof.differs - 1) * global_batch
        where = f"step {proof.differs:,} (positions {first} to {first + global_batch - 1})"
        print(f"{run}: {where} is the first that saw other samples than this mixture plans")
    _print_steps(f"{run}: not recorded", proof.not_recorded)
    _print_steps(f"{run}: recorded twice", proof.recorded_twice)
    _print_steps(
        f"{run}: not proven, as samples were replaced and no quarantine file of the mixture says by which",
        proof.not_proven,
    )


def _print_steps(what: str, steps: Sequence[int]) -> None:
    if steps:
        more = f" and {len(steps) - 8:,} more" if len(steps) > 8 else ""
        print(f"{what}: steps {', '.join(map(str, steps[:8]))}{more}")
