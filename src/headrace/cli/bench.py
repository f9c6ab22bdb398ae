"""`headrace stream --bench` and `--tune`: how fast this machine is, and the settings with which it is faster."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from headrace.text import printable

if TYPE_CHECKING:
    from headrace.pipeline import Mixture
    from headrace.pipeline.ceiling import Ceiling
    from headrace.pipeline.tune import Trial, Tuning

TUNING_SECONDS = 50.0
"""Opening, starting and closing come on top: a minute in all."""
BENCH_SECONDS = 5.0
LOUD = 1.2
"""Measurements of the same settings further apart than this are said to be."""


def ceiling_facts(found: "Ceiling") -> dict[str, Any]:
    """Return a measurement as JSON."""
    return {**asdict(found), "stats": found.stats.as_dict()}


def show_ceiling(found: "Ceiling") -> None:
    """Print a measurement."""
    stats = found.stats
    print(f"{found.num_images} images in {found.seconds:.2f} s: {found.images_per_second:.0f} images/s")
    print(f"{found.cpu_ms_per_image:.2f} ms of processor time an image, {found.cores} cores")
    print(f"first batch after {found.first_batch_seconds:.2f} s; at most {found.peak_memory_bytes / 1e6:.0f} MB")
    print(f"decoder {found.decoder}")
    waits = ", ".join(f"{seconds:.2f} s for {name}" for name, seconds in stats.waited_for.items())
    print(f"waited {waits}")
    print(f"{'stage':<10} {'count':>9} {'p50 ms':>9} {'p99 ms':>9} {'total s':>9}")
    for name, stage in stats.stages.items():
        if stage.count:
            times = f"{1000 * stage.p50_seconds:>9.2f} {1000 * stage.p99_seconds:>9.2f} {stage.seconds:>9.2f}"
            print(f"{name:<10} {stage.count:>9} {times}")
    if stats.slowest_shard:
        print(f"slowest shard {printable(stats.slowest_shard)} ({stats.slowest_read_seconds:.3f} s a chunk)")
    if stats.cached_bytes:
        print(f"{stats.cached_bytes / 1e6:.0f} MB came from the cache on disk")
    if stats.bad_samples or stats.retries:
        bad = ", ".join(f"{count} {reason}" for reason, count in stats.bad_samples.items()) or "none"
        print(f"damaged samples: {bad}; reads tried again: {stats.retries}")
    print(
        f"bound by {stats.bound_by or 'nothing yet'}" + (f"; what would help: {stats.advice}" if stats.advice else "")
    )


def run_tuning(mixture: "Mixture", *, global_batch: int, seconds: float, quiet: bool) -> "Tuning":
    """Tune, and print each measurement to stderr."""
    import sys

    from headrace.pipeline.tune import tune

    def say(trial: "Trial") -> None:
        if not quiet:
            settings = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
            bound = f"bound by {trial.bound_by}" if trial.bound_by else ""
            print(f"{trial.images_per_second:>8.0f} images/s  {settings}  {bound}", file=sys.stderr)

    return tune(mixture, global_batch=global_batch, seconds=seconds, on_trial=say)


def show_tuning(found: "Tuning", mixture: "Mixture") -> None:
    """Print the YAML to put into the mixture."""
    print(
        f"# {len(found.trials)} measurements in {found.seconds:.0f} s: "
        f"{found.before:.0f} images/s as it is, {found.after:.0f} with these; put them into the mixture"
    )
    if found.noise > LOUD:
        print(
            f"# the machine has other work: the same settings were up to {found.noise:.1f} times as fast; "
            "tune again when it is quiet"
        )
    print(yaml.safe_dump(dict(found.settings), sort_keys=False), end="")
    if found.chunk_samples:
        print("# part of the order, so for a new run only; this measurement had it:")
        for number, source in enumerate(mixture.sources):
            print(f"# sources.{number}.chunk_samples: {found.chunk_samples}  (now {source.chunk_samples})")
