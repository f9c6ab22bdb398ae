"""What holds a stream up, and the setting that would change it, in one line.

Whoever waits in `next` waits for one thing at a time: the plan of the batch, its reads, its pixels. The largest part
is the bound. The advice follows from what the threads did meanwhile; where none of ours helps, it names what would.
"""

import dataclasses

from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.decode.dali import CALLS_AT_ONCE
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.prefetch import LEAST_AHEAD
from headrace.pipeline.stats import MADE_BY, StreamStats

COMPUTE_SHARE = 0.02
"""Below this part of the time spent waiting, the consumer is what takes the time."""
BUSY = 0.8
"""Threads, cores or memory used to this part are the limit."""
SLOW_READ = 10.0
"""A read this many times the usual one is a slow shard's, not a slow link's."""


def judge(stats: StreamStats, mixture: Mixture) -> StreamStats:
    """Return `stats` with what they are bound by, and the advice."""
    bound = bound_of(stats) if stats.batches > 1 else ""
    return dataclasses.replace(stats, bound_by=bound, advice=_advise(stats, mixture, bound))


def bound_of(stats: StreamStats) -> str:
    """Return compute, or what was waited for most: plan, read, decode, augment, map, transfer."""
    waits = {**stats.waited_for, "transfer": stats.stages["transfer"].seconds}
    if sum(waits.values()) <= COMPUTE_SHARE * stats.seconds:
        return "compute"
    return max(waits, key=waits.__getitem__)


def _advise(stats: StreamStats, mixture: Mixture, bound: str) -> str:
    """Return the setting to change, and why; empty where nothing is to be gained."""
    if bound == "plan":
        return "more images a rank and step: a plan costs less a sample the larger its batch is"
    if bound == "read":
        return _advise_read(stats, mixture)
    if bound in ("decode", "augment"):
        return _advise_decode(stats, mixture, bound)
    if bound == "map":
        usual = f"{1e3 * stats.stages['map'].p50_seconds:.2g} ms a sample"
        return f"a quicker map function ({usual}; Python code runs in one thread at a time), or a map of whole batches"
    return "copies from pinned memory, one batch ahead of the computation" if bound == "transfer" else ""


def _advise_read(stats: StreamStats, mixture: Mixture) -> str:
    read, queue, memory = stats.stages["read"], stats.stages["queue"], mixture.memory_bytes
    if stats.queues.bytes_in_flight >= BUSY * memory:
        return f"memory_bytes: {2 * memory} (now {memory}, all in use), or a smaller shuffle_window"
    if queue.seconds > read.seconds:
        threads = mixture.io_threads
        return f"io_threads: {2 * threads} (now {threads}; chunks wait longer for a thread than they are read)"
    if read.p50_seconds and read.p99_seconds > SLOW_READ * read.p50_seconds:
        return f"another place for the slowest shard: one read in a hundred takes {SLOW_READ:.0f} times the usual"
    smallest = min(source.chunk_samples for source in mixture.sources)
    return f"chunk_samples: {2 * smallest} (now {smallest}; part of the order), or a copy that is nearer"


def _advise_decode(stats: StreamStats, mixture: Mixture, bound: str) -> str:
    cores = own_cores()
    # Calls that may be under way: of dali few, each of many pictures.
    threads = CALLS_AT_ONCE if mixture.decoder == "dali" else mixture.decode_threads or cores
    worked = sum(stats.stages[stage].seconds for stage in MADE_BY)
    used = worked / (threads * max(stats.seconds + stats.first_batch_seconds, 1e-9))
    batches = mixture.prefetch_batches or stats.queues.wanted_batches or LEAST_AHEAD
    if used < BUSY:
        return f"prefetch_batches: {2 * batches} (now {batches}; decoding threads are idle {1 - used:.0%} of the time)"
    if mixture.decoder == "dali":
        share = f"another hw_decoder_load (now {mixture.hw_decoder_load:g})"
        return f"{share} or more decode_threads on a CUDA device, decoder: turbo on the CPU: DALI is always at work"
    if threads < cores:
        return f"decode_threads: {cores} (now {threads}, all at work)"
    if bound == "augment":
        return "fewer or smaller views, or more cores: every decoding thread is at work"
    return "more cores, or smaller images: every decoding thread is at work"


def describe(stats: StreamStats) -> str:
    """Say it in one line, for the log."""
    if stats.batches < 2:
        return f"{stats.batches} batches; the first took {stats.first_batch_seconds:.2f} s"
    bound = "compute-bound" if stats.bound_by == "compute" else f"input-bound by {stats.bound_by}"
    parts = [
        f"{bound}: {stats.waited_seconds:.2f} of {stats.seconds:.2f} s waited for data ({stats.waited_share:.1%})",
        f"{stats.batches} batches, {stats.images_per_second:.0f} images/s",
        f"first batch {stats.first_batch_seconds:.2f} s",
    ]
    if stats.slowest_shard:
        parts.append(f"slowest shard {stats.slowest_shard} ({stats.slowest_read_seconds:.2f} s a chunk)")
    if stats.retries:
        parts.append(f"{stats.retries} reads tried again")
    if stats.advice:
        parts.append(f"what would help: {stats.advice}")
    return "; ".join(parts)
