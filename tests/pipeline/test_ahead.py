"""What is read when: the first batch reads its own samples, later ones whole chunks, and no sample is read twice."""

import dataclasses
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.pipeline import Batch, Mixture, Source, open_stream
from headrace.pipeline.ahead import EASED_BATCHES, ReadAhead
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode import DECODERS, Images, Item
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.pipeline.order.plan import BatchPlan, StreamPlan

Asked = list[tuple[int, list[int]]]


class Reader:
    """Notes what is asked for; nothing is ever read."""

    def __init__(self, num_sources: int) -> None:
        self.sources = [None] * num_sources
        self.asked: Asked = []
        self.held: dict[int, set[tuple[int, int]]] = {}
        self.reads: list[object] = []  # so that no other future gets the id of one

    def submit(self, source: int, samples: NDArray[np.int64]) -> "Future[dict[int, object]]":
        read: Future[dict[int, object]] = Future()
        self.asked.append((source, samples.tolist()))
        self.held[id(read)] = {(source, sample) for sample in samples.tolist()}
        self.reads.append(read)
        return read


def _run(
    plan: StreamPlan, num_sources: int, *, first: int, count: int
) -> list[tuple[BatchPlan, list[tuple[int, list[int]]]]]:
    """Plan batches; check that each item has a read that holds it; return what each batch asked for."""
    reader = Reader(num_sources)
    ahead = ReadAhead(plan, reader, first=first)  # type: ignore[arg-type]
    found, begun = [], Counter[int]()
    for number in range(first, first + count):
        (batch,) = plan.batches(number, 1)
        before = len(reader.asked)
        reads = ahead.reads_of(number, batch)
        for item, read in enumerate(reads):
            assert (read is not None) == bool(batch.valid[item])
            if read is not None:
                assert (int(batch.placed.source[item]), int(batch.placed.sample[item])) in reader.held[id(read)]
        found.append((batch, reader.asked[before:]))
        begun.update(dict(enumerate(ahead.take_begun())))
    for source in range(num_sources):
        assert begun[source] == sum(len(samples) for one, samples in reader.asked if one == source)
    return found


def _names(batch: BatchPlan) -> list[tuple[int, int, int]]:
    """Return source, epoch and sample of what a batch holds."""
    columns = (batch.placed.source, batch.placed.epoch, batch.placed.sample)
    return list(zip(*(column[batch.valid].tolist() for column in columns), strict=True))


@given(first=st.integers(0, 50), once=st.booleans(), chunk=st.integers(1, 9), window=st.integers(0, 60))
@settings(max_examples=40)
def test_no_batch_reads_more_than_it_may_and_no_sample_is_read_twice(
    mixture: Mixture, first: int, once: bool, chunk: int, window: int
) -> None:
    sources = tuple(dataclasses.replace(s, chunk_samples=chunk, shuffle_window=window) for s in mixture.sources)
    changed = dataclasses.replace(mixture, sources=sources, lanes=2)
    with open_stream(changed, global_batch=8, once=once) as stream:
        first = min(first, 5) if once else first
        count = 3 if once else EASED_BATCHES + 6
        found = _run(stream.plan, 2, first=first, count=count)
    for distance, (batch, asked) in enumerate(found):
        own = int(batch.valid.sum())
        total = sum(len(samples) for _, samples in asked)
        assert total <= own * (distance + 1) or distance >= EASED_BATCHES
    # Within an epoch: what is asked for again in the next one is another draw.
    given_ = Counter(
        (int(s), int(e), int(n))
        for batch, _ in found
        for s, e, n, valid in zip(
            batch.placed.source, batch.placed.epoch, batch.placed.sample, batch.valid, strict=True
        )
        if valid
    )
    asked_ = Counter((source, sample) for _, asked in found for source, samples in asked for sample in samples)
    epochs = Counter((source, sample) for source, _, sample in given_)
    assert all(asked_[name] >= count for name, count in epochs.items())
    assert max(given_.values()) == 1


def test_after_the_first_batches_chunks_are_read_whole(mixture: Mixture) -> None:
    source = dataclasses.replace(mixture.sources[0], chunk_samples=5, shuffle_window=20)
    one = dataclasses.replace(mixture, sources=(source,), lanes=1)
    with open_stream(one, global_batch=5) as stream:
        found = _run(stream.plan, 1, first=0, count=3 * EASED_BATCHES)
    later = [samples for _, asked in found[EASED_BATCHES + 4 :] for _, samples in asked]
    assert {len(samples) for samples in later} == {5}
    everything = Counter(sample for _, asked in found for _, samples in asked for sample in samples)
    epochs = 3 * EASED_BATCHES * 5 / 45
    assert max(everything.values()) <= epochs + 1  # read once an epoch


class Held(Turbo):
    """Decodes nothing before it may."""

    may = threading.Event()

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        assert self.may.wait(200)
        return super().decode(items, windows_per_view, out)


def test_while_the_first_batch_is_waited_for_nothing_else_is_read(
    write_dataset: Callable[..., str], tmp_path: Path, mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODERS, "held", Held)
    monkeypatch.setattr(Held, "may", threading.Event())
    url = write_dataset(tmp_path / "set", 2000, per_shard=500)
    source = Source(name="many", url=url, chunk_samples=64, shuffle_window=1024)
    wide = dataclasses.replace(mixture, sources=(source,), lanes=4, decoder="held")
    with open_stream(wide, global_batch=16) as stream, ThreadPoolExecutor(1) as pool:
        size = stream.sources[0].mean_bytes
        for position in (0, 16 * 77):  # from the start, and after a resume
            Held.may.clear()
            stream.load_state_dict({**stream.state_dict(), "position": position})
            first = pool.submit(next, stream)
            # Its 16 samples, of whose bytes in the tar a quarter is the picture; their chunks hold over 1,000.
            read = 0
            while read <= 16 * size / 8 or read != stream.stats().bytes_read:
                read = stream.stats().bytes_read
                time.sleep(0.3)
            assert read < 16 * size / 2
            Held.may.set()
            assert len(first.result(200).position) == 16


def test_batches_are_the_same_wherever_reading_began(
    mixture: Mixture, fingerprint: Callable[[Batch], tuple[object, ...]]
) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        whole = [fingerprint(batch) for batch in itertools.islice(stream, 2 * EASED_BATCHES)]
    for first in (1, 7, EASED_BATCHES, EASED_BATCHES + 3):
        with open_stream(mixture, global_batch=8) as stream:
            stream.load_state_dict({**stream.state_dict(), "position": 8 * first})
            tail = [fingerprint(batch) for batch in itertools.islice(stream, 2 * EASED_BATCHES - first)]
        assert tail == whole[first:]
