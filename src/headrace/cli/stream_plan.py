"""What `headrace stream --plan` prints."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.pipeline import Stream
    from headrace.pipeline.forecast import Forecast


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
