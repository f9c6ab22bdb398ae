"""`headrace stream`: look at a mixture, or measure how fast this machine delivers it."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.bench import BENCH_SECONDS, TUNING_SECONDS, ceiling_facts, run_tuning, show_ceiling, show_tuning
from headrace.cli.result import JsonOption, say_json, say_next
from headrace.cli.stream_order import show_plan, show_shuffle, verify_steps
from headrace.cli.verbosity import is_quiet
from headrace.text import printable, without_secrets

if TYPE_CHECKING:
    from headrace.pipeline import Mixture, Stream

SHOWN_KEYS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """How fast batches came."""

    num_batches: int
    num_images: int
    seconds: float
    images_per_second: float
    waited_seconds: dict[str, float]
    """By what was waited for."""
    views: dict[str, float]
    """How often each source was gone through."""
    bad_samples: dict[str, int]
    """Damaged samples by reason."""
    num_retries: int


def stream_command(
    mixture: Annotated[str, typer.Argument(metavar="MIXTURE.yaml", help="The mixture file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Overrides, for example sources.0.weight=0.5")
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option("--batches", min=1, help="Batches to deliver; 4, and with --bench as many as its time has."),
    ] = None,
    global_batch: Annotated[
        int,
        typer.Option("--global-batch", min=0, help="Images in a batch; 0 = the least multiple of the lanes from 64."),
    ] = 0,
    bench: Annotated[
        bool,
        typer.Option("--bench", help="Measure the ceiling of this machine: speed, processor time, waits, first batch."),
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find threads and prefetch for this machine within a minute; prints YAML.")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="How long --bench (5) or --tune (50) measures; 0 = so long.")
    ] = 0.0,
    plan: Annotated[
        int,
        typer.Option(
            "--plan", min=0, help="Say what so many steps will give: samples, epochs, bytes; nothing is read."
        ),
    ] = 0,
    verify_run: Annotated[
        str,
        typer.Option("--verify-run", metavar="RUN", help="Prove that the steps of this run saw the planned samples."),
    ] = "",
    json: JsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only open it: sources, weights as they are met, views; nothing is read.")
    ] = False,
) -> None:
    """Open a mixture and show its sources, the first batches, how fast they came and what was waited for.

    With --bench the fastest that this machine can, with --tune the settings with which it is faster.

    Example: headrace stream examples/mixture.yaml sources.0.url=/data/cifar --batches 8 --bench
    """
    from headrace.config import load_config
    from headrace.pipeline import Mixture, open_stream

    modes = {"--bench": bench, "--tune": tune, "--plan": bool(plan), "--verify-run": bool(verify_run)}
    _refuse_meaningless([name for name, given in modes.items() if given], batches=batches, seconds=seconds)
    if verify_run and global_batch:
        raise ValueError("--verify-run takes the global batch from the run: leave --global-batch out")
    config = load_config(Mixture, mixture, overrides or ())
    size = global_batch or -(-64 // config.lanes) * config.lanes
    if tune and not dry_run:
        _tune(config, size, seconds=seconds, json=json)
        return
    if verify_run and not dry_run:
        verify_steps(config, verify_run, json=json)
        return
    with open_stream(config, global_batch=size) as stream:
        facts = _sources(stream)
        if not json:
            _show_sources(stream)
        facts["shuffle"] = show_shuffle(stream, quiet=json)
        if plan:
            facts["plan"] = show_plan(stream, plan, quiet=json)
        elif not dry_run:
            if bench:
                _bench(stream, facts, seconds=seconds, batches=batches or 0, json=json)
            else:
                delivery = _deliver(stream, batches or 4, show_keys=not json)
                facts["delivery"] = asdict(delivery)
                if not json:
                    _show_delivery(delivery)
            if not json:
                say_next(["headrace", "new", "run", "run.yaml"])
        if json:
            say_json("stream", facts)


def _refuse_meaningless(modes: list[str], *, batches: int | None, seconds: float) -> None:
    """Raise ValueError for options of which one would be passed over."""
    if len(modes) > 1:
        raise ValueError(f"{' and '.join(modes)} are different runs: give one of them")
    if batches is not None and modes not in ([], ["--bench"]):
        raise ValueError(f"--batches is how many are delivered: leave it out with {modes[0]}")
    if seconds and modes not in (["--bench"], ["--tune"]):
        raise ValueError("--seconds is how long --bench or --tune measures: give one of them, or leave it out")


def _bench(stream: "Stream", facts: dict[str, Any], *, seconds: float, batches: int, json: bool) -> None:
    from headrace.pipeline.ceiling import measure

    found = measure(stream, seconds=seconds or BENCH_SECONDS, batches=batches)
    facts["ceiling"] = ceiling_facts(found)
    if not json:
        show_ceiling(found)


def _tune(mixture: "Mixture", size: int, *, seconds: float, json: bool) -> None:
    found = run_tuning(mixture, global_batch=size, seconds=seconds or TUNING_SECONDS, quiet=is_quiet())
    if json:
        say_json("stream", {"tuning": asdict(found)})
    else:
        show_tuning(found, mixture)


def _sources(stream: "Stream") -> dict[str, Any]:
    from headrace.config import config_to_dict
    from headrace.pipeline.augment.views import planned_views

    sources = {
        source.config.name: {
            "dataset": without_secrets(source.config.url),
            "num_samples": source.num_samples,
            "weight": stream.weights[source.config.name],
            "weight_error": stream.weight_errors[source.config.name],
        }
        for source in stream.sources
    }
    views = planned_views(stream.mixture)
    return {
        "sources": sources,
        "view_pixels": [view.image_size for view in views],
        "augments": [config_to_dict(view.augment) for view in views],
    }


def _show_sources(stream: "Stream") -> None:
    from headrace.pipeline.advice import SHOWN_SAMPLES, describe_weight_error
    from headrace.pipeline.augment.describe import describe_views
    from headrace.pipeline.augment.views import planned_views

    weights = stream.weights
    print(f"{'source':<20} {'samples':>12} {'weight':>8}  dataset")
    for source in stream.sources:
        name = source.config.name
        print(f"{name:<20} {source.num_samples:>12} {weights[name]:>8.4f}  {without_secrets(source.config.url)}")
    for name, error in stream.weight_errors.items():
        if abs(error) * SHOWN_SAMPLES >= 1:
            print(describe_weight_error(name, weights[name], error))
    views = planned_views(stream.mixture)
    if len(views) > 1:
        print(f"{len(views)} views of {', '.join(str(view.image_size) for view in views)} pixels")
    for line in describe_views(stream.mixture):
        print(line)


def _deliver(stream: "Stream", batches: int, *, show_keys: bool) -> Delivery:
    waited = {"read": 0.0, "decode": 0.0, "none": 0.0}
    images, begun = 0, time.perf_counter()
    for number in range(batches):
        batch = next(stream)
        images += len(batch.position)
        waited[batch.waited_for] += batch.waited_seconds
        if show_keys:
            more = " ..." if len(batch.key) > SHOWN_KEYS else ""
            keys = printable(" ".join(batch.key[:SHOWN_KEYS]))
            print(f"batch {number} at position {batch.position[0]}: {keys}{more}")
    seconds = time.perf_counter() - begun
    return Delivery(
        num_batches=batches,
        num_images=images,
        seconds=seconds,
        images_per_second=images / seconds,
        waited_seconds={name: waited[name] for name in ("read", "decode")},
        views=dict(stream.views),
        bad_samples=stream.bad_samples,
        num_retries=stream.num_retries,
    )


def _show_delivery(found: Delivery) -> None:
    print(f"{found.num_images} images in {found.seconds:.2f} s: {found.images_per_second:.0f} images/s")
    print("waited " + ", ".join(f"{seconds:.2f} s for {name}" for name, seconds in found.waited_seconds.items()))
    print("views " + ", ".join(f"{name} {views:.4f}" for name, views in found.views.items()))
    if found.bad_samples or found.num_retries:
        bad = ", ".join(f"{count} {reason}" for reason, count in found.bad_samples.items()) or "none"
        print(f"damaged samples: {bad}; reads tried again: {found.num_retries}")
