"""A stream says how fast it is, what its consumer waits for, and the setting that would change it."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from headrace.pipeline import Mixture, open_stream, stream
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.chunks import ChunkReader
from headrace.pipeline.clock import StageStats
from headrace.pipeline.decode import DECODERS, Images, Item
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.pipeline.stats import STAGES, QueueDepths, StreamStats
from headrace.pipeline.verdict import describe, judge


def test_statistics_are_json_and_count_what_was_delivered(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as opened:
        assert opened.stats().as_dict()["bound_by"] == ""
        batches = [next(opened) for _ in range(5)]
        stats = opened.stats()
    read = json.loads(json.dumps(stats.as_dict(), allow_nan=False))
    assert (read["batches"], read["images"]) == (5, 40)
    assert set(read["stages"]) == set(STAGES)
    assert stats.stages["decode"].count >= 40
    assert stats.stages["augment"].count >= 40
    assert stats.stages["wait"].count == 5
    assert stats.bytes_read > 0
    assert stats.slowest_shard.endswith(".tar")
    assert stats.waited_seconds == pytest.approx(sum(batch.waited_seconds for batch in batches[1:]))
    assert stats.first_batch_seconds == pytest.approx(batches[0].waited_seconds)
    assert sum(stats.waited_for.values()) == pytest.approx(stats.waited_seconds)


def test_statistics_begin_anew_with_a_state_and_go_on_after_an_error(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_stream(mixture, global_batch=8) as opened:
        next(opened)
        read, monkeypatched = ChunkReader.read, [True]

        def fail_once(self: ChunkReader, source: int, samples: Any) -> Any:
            if monkeypatched and monkeypatched.pop():
                raise OSError("the disk is away")
            return read(self, source, samples)

        opened.load_state_dict(opened.state_dict())
        assert opened.stats().batches == 0
        next(opened)
        opened._stop()
        monkeypatch.setattr(ChunkReader, "read", fail_once)
        with pytest.raises(OSError, match="the disk is away"):
            next(opened)
        next(opened)
        assert opened.stats().batches == 2


def test_the_padding_of_a_finite_pass_is_no_image(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=24, once=True) as opened:
        assert len(list(opened)) == 3
        assert opened.stats().images == 64


def test_the_log_says_what_binds_after_a_hundred_batches_and_at_the_end(
    mixture: Mixture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REPORTED_BATCHES", 10)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if "waited for data" in record.getMessage()]

    with caplog.at_level(logging.INFO), open_stream(mixture, global_batch=8) as opened:
        for _ in range(9):
            next(opened)
        assert not lines()
        next(opened)
        assert len(lines()) == 1
        assert "10 batches" in lines()[0]
        next(opened)
        assert len(lines()) == 1
    opened.close()
    assert len(lines()) == 2
    assert "11 batches" in lines()[1]


class SlowDecode(Turbo):
    """Takes its time."""

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        time.perf_counter.pass_by(0.03)  # type: ignore[attr-defined]
        return super().decode(items, windows_per_view, out)


class SlowAugment(Turbo):
    """Takes its time where it says that it crops."""

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        answers = super().decode(items, windows_per_view, out)
        time.perf_counter.pass_by(0.03)  # type: ignore[attr-defined]
        self.on_augment(0.03)
        return answers


def _bound(mixture: Mixture, consume: Callable[[], None] = lambda: None) -> StreamStats:
    with open_stream(mixture, global_batch=8) as opened:
        for _ in range(8):
            next(opened)
            consume()
        return opened.stats()


@pytest.mark.usefixtures("passing")
def test_a_slow_decoder_is_named_and_the_setting_that_helps(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "slow", SlowDecode)
    monkeypatch.setattr("headrace.pipeline.verdict.own_cores", lambda: 32)
    stats = _bound(dataclasses.replace(mixture, decoder="slow", decode_threads=1))
    assert stats.bound_by == "decode"
    assert stats.advice.startswith("decode_threads: 32 (now 1")


@pytest.mark.usefixtures("passing")
def test_slow_crops_are_told_from_slow_decoding(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "slow", SlowAugment)
    assert _bound(dataclasses.replace(mixture, decoder="slow", decode_threads=1)).bound_by == "augment"


def test_slow_reads_are_named_with_their_shard(mixture: Mixture, monkeypatch: pytest.MonkeyPatch, passing: Any) -> None:
    read = ChunkReader._read_rows

    def slow(self: ChunkReader, rows: Any, *rest: Any) -> Any:
        passing.pass_by(0.5 if rows.url.endswith("00001.tar") else 0.05)
        return read(self, rows, *rest)

    monkeypatch.setattr(ChunkReader, "_read_rows", slow)
    stats = _bound(dataclasses.replace(mixture, io_threads=1))
    assert stats.bound_by == "read"
    assert stats.slowest_shard.endswith("00001.tar")
    assert stats.slowest_read_seconds > 0.45
    assert stats.advice.startswith("io_threads: 2 (now 1")


def test_a_slow_consumer_is_compute_bound(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.pipeline.verdict.COMPUTE_SHARE", 0.3)  # the machine of a test has other work
    with open_stream(mixture, global_batch=8) as opened:
        for _ in range(8):
            next(opened)
            while not opened.stats().queues.whole_batches:
                time.sleep(0.01)
            time.sleep(0.1)  # it computes
        stats = opened.stats()
    assert stats.bound_by == "compute"
    assert stats.advice == ""
    assert stats.queues.whole_batches >= 1


def test_what_the_caller_copies_is_his_transfer(mixture: Mixture, passing: Any) -> None:
    with open_stream(mixture, global_batch=8) as opened:
        for _ in range(4):
            next(opened)
            passing.pass_by(0.1)
            opened.count_transfer(0.09)
        stats = opened.stats()
    assert stats.bound_by == "transfer"
    assert stats.stages["transfer"].count == 4


def _stats(**changes: Any) -> StreamStats:
    stages = {stage: StageStats() for stage in STAGES} | changes.pop("stages", {})
    given = {"batches": 100, "images": 800, "seconds": 10.0, "waited_seconds": 5.0, "stages": stages}
    return StreamStats(**(given | changes))


@pytest.mark.parametrize(
    ("stats", "advice"),
    [
        (_stats(waited_for={"read": 5.0}, queues=QueueDepths(bytes_in_flight=4 << 30)), "memory_bytes: 8589934592"),
        (_stats(waited_for={"plan": 5.0}), "more images a rank and step"),
        (
            _stats(
                waited_for={"read": 5.0},
                stages={"read": StageStats(count=500, seconds=9.0, p50_seconds=0.01, p99_seconds=1.0)},
            ),
            "another place for the slowest shard",
        ),
        (_stats(waited_for={"read": 5.0}), "chunk_samples: 4 (now 2; part of the order)"),
        (_stats(waited_for={"decode": 5.0}), "prefetch_batches: 4 (now 2; decoding threads are idle 100%"),
        (_stats(waited_for={"read": 0.1}, waited_seconds=0.1), ""),
    ],
)
def test_advice_names_a_setting_and_its_value_now(mixture: Mixture, stats: StreamStats, advice: str) -> None:
    judged = judge(stats, mixture)
    assert judged.advice.startswith(advice)
    assert bool(judged.advice) == bool(advice)
    assert "\n" not in describe(judged)


def test_a_decoder_of_large_calls_is_at_work_when_its_few_calls_are(mixture: Mixture) -> None:
    busy = StageStats(count=90, seconds=19.0, p50_seconds=0.2, p99_seconds=0.3)
    stats = _stats(waited_for={"decode": 5.0}, stages={"decode": busy})
    dali = dataclasses.replace(mixture, decoder="dali", decode_threads=16)
    assert judge(stats, dali).advice.startswith(
        "another hw_decoder_load (now 1) or more decode_threads on a CUDA device"
    )
    assert judge(stats, dataclasses.replace(dali, decoder="turbo")).advice.startswith("prefetch_batches: 4")


def test_secrets_of_urls_do_not_reach_the_statistics(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as opened:
        opened._clock.note_read("https://user:pass@host/0.tar", 99.0)
        assert "pass" not in opened.stats().slowest_shard
