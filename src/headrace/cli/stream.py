"""`headrace stream`: look at a mixture, or measure how fast this machine delivers it."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.text import printable, without_secrets

if TYPE_CHECKING:
    from headrace.pipeline import Stream

SHOWN_KEYS = 4


def stream_command(
    mixture: Annotated[str, typer.Argument(metavar="MIXTURE.yaml", help="The mixture file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Overrides, for example sources.0.weight=0.5")
    ] = None,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Batches to deliver.")] = 4,
    global_batch: Annotated[
        int,
        typer.Option("--global-batch", min=0, help="Images in a batch; 0 = the least multiple of the lanes from 64."),
    ] = 0,
    bench: Annotated[
        bool, typer.Option("--bench", help="Only measure: one batch to warm up, then images/s and what was waited for.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only open it: sources, weights as they are met, views; nothing is read.")
    ] = False,
) -> None:
    """Open a mixture and show its sources, the first batches, how fast they came and what was waited for.

    Example: headrace stream examples/mixture.yaml sources.0.url=/data/cifar --batches 8 --bench
    """
    from headrace.config import load_config
    from headrace.pipeline import Mixture, open_stream

    config = load_config(Mixture, mixture, overrides or ())
    size = global_batch or -(-64 // config.lanes) * config.lanes
    with open_stream(config, global_batch=size) as stream:
        _show_sources(stream)
        if dry_run:
            return
        if bench:
            next(stream)
        _deliver(stream, batches, show_keys=not bench)


def _show_sources(stream: "Stream") -> None:
    from headrace.pipeline.advice import SHOWN_SAMPLES, describe_weight_error
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


def _deliver(stream: "Stream", batches: int, *, show_keys: bool) -> None:
    waited = {"read": 0.0, "decode": 0.0, "none": 0.0}
    images, begun = 0, time.perf_counter()
    for number in range(batches):
        batch = next(stream)
        images += len(batch.position)
        waited[batch.waited_for] += batch.waited_seconds
        if show_keys:
            keys = printable(" ".join(batch.key[:SHOWN_KEYS]))
            print(
                f"batch {number} at position {batch.position[0]}: {keys}{' ...' if len(batch.key) > SHOWN_KEYS else ''}"
            )
    seconds = time.perf_counter() - begun
    print(f"{images} images in {seconds:.2f} s: {images / seconds:.0f} images/s")
    print("waited " + ", ".join(f"{waited[name]:.2f} s for {name}" for name in ("read", "decode")))
    print("views " + ", ".join(f"{name} {views:.4f}" for name, views in stream.views.items()))
    if stream.bad_samples or stream.num_retries:
        bad = ", ".join(f"{count} {reason}" for reason, count in stream.bad_samples.items()) or "none"
        print(f"damaged samples: {bad}; reads tried again: {stream.num_retries}")
