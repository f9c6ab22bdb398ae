"""What a stream has done so far, what its consumer waited for, and the setting that would change it.

Plain numbers: `stream.stats().as_dict()` is JSON. The first batch is counted apart, as the wait for it is
that of starting: an hour of steps says nothing of it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headrace.pipeline.clock import StageClock, StageStats
from headrace.text import without_secrets

STAGES = ("plan", "queue", "read", "decode", "augment", "map", "transfer", "wait")
"""plan: the samples of a batch; queue: a chunk until a thread reads it; read: a chunk; decode, augment: a call of the
decoder, one picture with `turbo`; map: a call of the user's function, one sample; transfer: what the consumer reports
by `count_transfer`; wait: the consumer's, for a batch."""

MADE_BY = ("decode", "augment", "map")
"""What the threads that decode do; a wait for pixels is shared out among these as their time is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueDepths:
    """What is under way at this moment."""

    planned_batches: int = 0
    """Batches whose chunks are being read."""
    begun_batches: int = 0
    """Batches being decoded, or whole."""
    whole_batches: int = 0
    """Batches that could be taken at once."""
    reads: int = 0
    """Chunks asked for and not read yet: under way and waiting for a thread."""
    pictures: int = 0
    """Pictures read and not decoded yet."""
    wanted_batches: int = 0
    """Batches that are kept ready: `prefetch_batches`."""
    bytes_in_flight: int = 0
    """Compressed bytes read or asked for, by the sources' mean sizes."""


class Delivered(NamedTuple):
    """What the consumer got. Replaced as a whole when a batch is delivered, as the position is."""

    batches: int = 0
    images: int = 0
    first_images: int = 0
    first_seconds: float = 0.0
    """How long the first batch took, from the call on."""
    began: float = 0.0
    """When the first batch was there, by `time.perf_counter`."""
    ended: float = 0.0
    """When the last one was."""
    plan: float = 0.0
    """Seconds that batches after the first were waited for because they were not planned yet."""
    read: float = 0.0
    decode: float = 0.0
    whole_batches: int = 0
    """Summed over the batches after the first: how many stood ready when it was asked for."""

    def plus(self, arrival: "Arrival", *, now: float) -> "Delivered":
        """Return the counts with one batch more, that is taken `now`."""
        if not self.batches:
            waited = arrival.plan + arrival.read + arrival.decode
            return Delivered(1, arrival.images, arrival.images, waited, now, now)
        return self._replace(
            batches=self.batches + 1,
            images=self.images + arrival.images,
            ended=now,
            plan=self.plan + arrival.plan,
            read=self.read + arrival.read,
            decode=self.decode + arrival.decode,
            whole_batches=self.whole_batches + arrival.whole_batches,
        )


class Arrival(NamedTuple):
    """One batch that was waited for: how long for its plan, its reads and its pixels."""

    images: int
    plan: float
    read: float
    decode: float
    whole_batches: int


class BatchTimes(NamedTuple):
    """When a batch came to be, by `time.perf_counter`."""

    images: int
    planned: float
    read: float
    """When the last read that it needs had ended."""
    whole: float
    """When it was taken with all its pixels."""

    def arrival(self, asked: float, *, whole_batches: int) -> Arrival:
        """Split the wait since it was `asked` for: until its plan stood, its reads had ended, it had its pixels."""
        end = max(self.whole, asked)
        planned = min(max(self.planned, asked), end)
        read = min(max(self.read, planned), end)
        return Arrival(self.images, planned - asked, read - planned, end - read, whole_batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamStats:
    """What a stream did since it was opened or its state was loaded."""

    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    """From the first batch to the last one delivered."""
    images_per_second: float = 0.0
    """Over `seconds`, the first batch left out."""
    first_batch_seconds: float = 0.0
    """How long the first batch took."""
    waited_seconds: float = 0.0
    """Of `seconds`, how long the consumer waited in `next`."""
    waited_for: Mapping[str, float] = field(default_factory=dict)
    """The same by what was missing: plan, read, decode, augment, and map where there is a function."""
    stages: Mapping[str, StageStats] = field(default_factory=dict)
    """Times of each stage, see `STAGES`."""
    queues: QueueDepths = QueueDepths()
    mean_whole_batches: float = 0.0
    """Batches that stood ready when one was asked for, on average; near 0 = the input is behind."""
    bytes_read: int = 0
    """Compressed bytes of the chunks read, wherever they came from."""
    cached_bytes: int = 0
    """Bytes that came from the cache on disk."""
    retries: int = 0
    bad_samples: Mapping[str, int] = field(default_factory=dict)
    """Damaged samples by reason."""
    slowest_shard: str = ""
    """The shard of the longest read of one chunk."""
    slowest_read_seconds: float = 0.0
    bound_by: str = ""
    """compute, or what the consumer waited for most: plan, read, decode, augment, map, transfer."""
    advice: str = ""
    """The setting to change; empty where none helps."""

    @property
    def waited_share(self) -> float:
        """Part of `seconds` that the consumer waited."""
        return self.waited_seconds / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {**dataclasses.asdict(self), "waited_share": self.waited_share}


def gather(given: Delivered, clock: StageClock, **facts: Any) -> StreamStats:
    """Return the statistics of what was delivered; `facts` are the fields that the stream itself knows."""
    stages = {stage: clock.read(stage) for stage in STAGES}
    seconds = given.ended - given.began
    made = sum(stages[stage].seconds for stage in MADE_BY)
    shares = {stage: stages[stage].seconds / made if made else float(stage == "decode") for stage in MADE_BY}
    later = given.batches - 1
    return StreamStats(
        batches=given.batches,
        images=given.images,
        seconds=seconds,
        images_per_second=(given.images - given.first_images) / seconds if seconds > 0 else 0.0,
        first_batch_seconds=given.first_seconds,
        waited_seconds=given.plan + given.read + given.decode,
        waited_for={
            "plan": given.plan,
            "read": given.read,
            **{stage: given.decode * share for stage, share in shares.items() if stages[stage].count or stage != "map"},
        },
        stages=stages,
        mean_whole_batches=given.whole_batches / later if later > 0 else 0.0,
        bytes_read=stages["read"].num_bytes,
        slowest_shard=without_secrets(clock.slowest_read[1]),
        slowest_read_seconds=clock.slowest_read[0],
        **facts,
    )
