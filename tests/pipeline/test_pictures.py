"""Large pictures take turns, bombs cost one sample, and compressed bytes go when their pixels are made."""

import dataclasses
import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from headrace.pipeline import Mixture, open_stream, pictures
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.catalog import ShardRows
from headrace.pipeline.chunks import ChunkReader, Payload
from headrace.pipeline.decode import DECODERS, Images, Item, decoder
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.shards.write import Sample, finish_dataset, write_shard


class Watched(Turbo):
    """Turbo that counts how many decode at once; each waits for company, `seconds` at most."""

    inside = most = 0
    seconds = 0.0
    lock = threading.Lock()
    together = threading.Event()

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        with self.lock:
            Watched.inside += 1
            Watched.most = max(Watched.most, Watched.inside)
            if Watched.most > 1:
                self.together.set()
        self.together.wait(self.seconds)
        answers = super().decode(items, windows_per_view, out)
        with self.lock:
            Watched.inside -= 1
        return answers


@pytest.mark.parametrize(("large_pixels", "at_once"), [(40 * 32 - 1, [1]), (40 * 32, [2, 3, 4])])
def test_large_pictures_are_decoded_one_at_a_time(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch, large_pixels: int, at_once: list[int]
) -> None:
    monkeypatch.setitem(DECODERS, "watched", Watched)
    monkeypatch.setattr(decoder, "LARGE_PIXELS", large_pixels)
    Watched.most, Watched.seconds, Watched.together = 0, 0.02 if at_once == [1] else 200, threading.Event()
    with open_stream(dataclasses.replace(mixture, decoder="watched", decode_threads=4), global_batch=8) as stream:
        for _ in range(3):
            next(stream)
    assert Watched.most in at_once


def test_a_jpeg_of_hundreds_of_scans_costs_one_sample_and_no_time(mixture: Mixture, tmp_path: Path) -> None:
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", progressive=True)
    whole = sink.getvalue()
    first = whole.index(b"\xff\xda")
    second = whole.index(b"\xff\xc4", first)
    bomb = whole[:first] + whole[first:second] * 20_000 + whole[second:]
    write_shard(str(tmp_path / "data"), "0", [Sample("a", whole, "jpg", {}), Sample("b", bomb, "jpg", {})])
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    source = dataclasses.replace(mixture.sources[0], url=str(tmp_path / "data"))
    begun = time.process_time()
    with open_stream(dataclasses.replace(mixture, sources=(source,)), global_batch=2, once=True) as stream:
        batch = next(stream)
        assert batch.valid.tolist() == [True, False]
        assert stream.bad_samples == {"decode": 1}
    assert time.process_time() - begun < 5  # decoding it takes half a minute


def test_compressed_bytes_are_let_go_of_when_their_pixels_are_made(mixture: Mixture) -> None:
    """`memory_bytes` no longer counts them then, and whole batches wait for their consumer."""
    with open_stream(dataclasses.replace(mixture, prefetch_batches=3), global_batch=8) as stream:
        next(stream)
        assert stream._reading is not None
        batches = stream._reading.prefetcher.batches
        deadline = time.monotonic() + 60
        while 1 not in batches or not batches[1].is_whole:  # it is planned once the first is whole
            assert time.monotonic() < deadline, "the batch was never made ready"
            time.sleep(0.01)
        made = batches[1].made
        assert sorted(made) == list(range(8))
        assert not any(row.payload.data for row in made.values())


def test_a_replacement_that_does_not_decode_has_a_second_look_of_its_own(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    class Failing(Turbo):
        left = 2

        def decode(
            self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
        ) -> list[SampleError | None]:
            if items[0].position == 3 and Failing.left:
                Failing.left -= 1
                return [SampleError("decode", "no")]
            return super().decode(items, windows_per_view, out)

    read_again = ChunkReader.read_again

    def look(reader: ChunkReader, payload: Payload) -> Payload | None:
        looks.append(payload.key)
        return read_again(reader, payload)

    monkeypatch.setitem(DECODERS, "failing", Failing)
    monkeypatch.setattr(ChunkReader, "read_again", look)
    unchecked = dataclasses.replace(mixture, decoder="failing", verify_crc=False, max_bad_fraction=1.0)
    with open_stream(unchecked, global_batch=8) as stream:
        assert next(stream).num_replaced == 1
    assert len(looks) == len(set(looks)) == 2


def test_secrets_of_urls_do_not_reach_the_quarantine() -> None:
    sample = pictures._damaged(3, "s", _payload("https://user:pass@host/shards/0.tar"), SampleError("crc", "no"), "")
    assert "pass" not in sample.shard
    assert sample.shard.endswith("host/shards/0.tar")


def _payload(url: str) -> Payload:
    ones = np.ones(1, np.int64)
    return Payload(ShardRows(url, pa.chunked_array([["k"]]), ones, ones, ones, ones, {}), 0, b"")
