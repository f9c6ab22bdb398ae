"""How fast this machine delivers a mixture to a consumer that does nothing else.

The one thing a reader would get wrong: what the first batch waits for is starting, so it is measured apart, and the
processor time of an image is that of all threads of this process, which decode ahead.
"""

import resource
import time
from dataclasses import dataclass

from headrace.pipeline.decode import DECODERS, describe_decoding
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.opening import open_stream
from headrace.pipeline.order.plan import EndlessPlan
from headrace.pipeline.state import identity_of, state_at
from headrace.pipeline.stats import StreamStats
from headrace.pipeline.stream import Stream

LEAST_BATCHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """What a stream delivered at its fastest."""

    num_batches: int
    """After the first."""
    num_images: int
    seconds: float
    images_per_second: float
    cpu_ms_per_image: float
    """Of all threads of this process, milliseconds."""
    first_batch_seconds: float
    """From the first `next` to the first batch; opening is not in it."""
    peak_memory_bytes: int
    """The most memory this process has had so far."""
    cores: int
    """That this process may use."""
    decoder: str
    """The mixture's `decoder`, and the libraries that decode and resize."""
    stats: StreamStats


def measure(stream: Stream, *, seconds: float, batches: int = 0) -> Ceiling:
    """Take batches for `seconds`, or so many after the first; fewer where the stream ends."""
    next(stream)
    begun, cpu, images, number = time.perf_counter(), time.process_time(), 0, 0
    while number < batches if batches else number < LEAST_BATCHES or time.perf_counter() - begun < seconds:
        batch = next(stream, None)
        if batch is None:
            break
        images, number = images + len(batch.position), number + 1
    took = max(time.perf_counter() - begun, 1e-9)
    stats = stream.stats()
    return Ceiling(
        num_batches=number,
        num_images=images,
        seconds=took,
        images_per_second=images / took,
        cpu_ms_per_image=1000 * (time.process_time() - cpu) / max(1, images),
        first_batch_seconds=stats.first_batch_seconds,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        cores=own_cores(),
        decoder=decoder_name(stream.decoder),
        stats=stats,
    )


def decoder_name(decoder: str) -> str:
    """Return what decodes and resizes, for people."""
    return f"{decoder}: {describe_decoding(decoder)}" if decoder in DECODERS else decoder


def measure_at(mixture: Mixture, batch: int, *, global_batch: int, seconds: float) -> Ceiling:
    """Open `mixture`, go to batch number `batch` and measure from there: what was read before is in some cache."""
    with open_stream(mixture, global_batch=global_batch) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        ends = stream.plan.timeline.drained_from
        identity = identity_of(mixture, stream.sources, global_batch=global_batch, once=False, ends=ends)
        stream.load_state_dict(state_at(batch * global_batch, identity))
        return measure(stream, seconds=seconds)
