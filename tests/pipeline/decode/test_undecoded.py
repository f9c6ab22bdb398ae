"""`decoder: none`: the bytes as they lie in the shard, in the same order, behind the same gate."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.pipeline import Batch, Mixture, Sample, Source, View, open_stream
from headrace.shards.dataset import open_dataset
from headrace.shards.write import Sample as Written
from headrace.shards.write import finish_dataset, write_shard


@pytest.fixture
def undecoded(mixture: Mixture) -> Mixture:
    return dataclasses.replace(mixture, decoder="none")


def images_of(url: str) -> dict[str, bytes]:
    """Return the bytes of every image of a dataset by key, read by the index alone."""
    dataset = open_dataset(url)
    found = {}
    for shard in range(len(dataset.shards)):
        tar = Path(dataset.tar_url(shard)).read_bytes()
        for row in dataset.index(shard).to_pylist():
            found[row["key"]] = tar[row["offset"] : row["offset"] + row["size"]]
    return found


def rows_of(batch: Batch) -> dict[int, tuple[object, ...]]:
    return {
        int(position): (key, int(source), bool(valid), data)
        for position, key, source, valid, data in zip(
            batch.position, batch.key, batch.source, batch.valid, batch.data, strict=True
        )
    }


def test_a_batch_has_the_bytes_of_its_samples_in_the_same_order(undecoded: Mixture, mixture: Mixture) -> None:
    stored = [images_of(source.url) for source in mixture.sources]
    with (
        open_stream(undecoded, global_batch=8, columns=["label"]) as stream,
        open_stream(mixture, global_batch=8, columns=["label"]) as plain,
    ):
        for _ in range(10):
            batch, decoded = next(stream), next(plain)
            assert batch.key == decoded.key
            assert np.array_equal(batch.columns["label"], decoded.columns["label"])
            assert batch.data == [stored[source][key] for source, key in zip(batch.source, batch.key, strict=True)]
            assert (batch.images.shape, batch.images.dtype) == ((8, 0, 0, 3), np.uint8)
            assert batch.views[0] is batch.images
            assert len(batch.views) == 1
            assert decoded.data == []
            parts = batch.split(3)
            assert [data for part in parts for data in part.data] == batch.data
            assert [len(part.images) for part in parts] == [3, 3, 2]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("once", [False, True])
def test_any_world_size_gives_the_same_bytes(undecoded: Mixture, world_size: int, once: bool) -> None:
    def taken(ranks: int) -> dict[int, tuple[object, ...]]:
        found = {}
        for rank in range(ranks):
            with open_stream(undecoded, global_batch=8, rank=rank, world_size=ranks, once=once) as stream:
                for _, batch in zip(range(8), stream, strict=False):
                    found.update(rows_of(batch))
        return found

    assert taken(world_size) == taken(1)
    if once:
        rows = list(taken(1).values())
        assert sum(bool(row[2]) for row in rows) == 64
        assert all(bool(row[3]) == row[2] for row in rows)


def test_resume_gives_the_same_bytes(undecoded: Mixture) -> None:
    with open_stream(undecoded, global_batch=8) as stream:
        for _ in range(3):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        rest = [next(stream).data for _ in range(3)]
    with open_stream(dataclasses.replace(undecoded, image_size=99), global_batch=8) as stream:
        stream.load_state_dict(state)  # a size of pictures means nothing here
        assert [next(stream).data for _ in range(3)] == rest
    with (
        pytest.raises(ValueError, match="decoder was 'none', this stream has 'turbo'"),
        open_stream(dataclasses.replace(undecoded, decoder="turbo"), global_batch=8) as stream,
    ):
        stream.load_state_dict(state)


def _encode(number: int, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(sink, kind, **options)
    return sink.getvalue()


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "jpeg": lambda data: data[: len(data) // 2],
    "png": lambda data: data[:-20],
    "webp": lambda data: data[:-20],
}


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kind", list(FAULTS))
def test_images_that_are_cut_are_damaged_without_a_decoder(tmp_path: Path, kind: str, once: bool) -> None:
    """No checksum tells here: the shard was written so. A plain JPEG's cut end is otherwise its decoder's to see."""
    whole = [_encode(number, kind) for number in range(12)]
    given = [FAULTS[kind](data) if number == 5 else data for number, data in enumerate(whole)]
    extension = {"jpeg": "jpg"}.get(kind, kind)
    write_shard(str(tmp_path / "data"), "0", [Written(f"k{n:02d}", data, extension) for n, data in enumerate(given)])
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    mixture = Mixture(
        sources=(Source(name="s", url=str(tmp_path / "data")),), decoder="none", lanes=1, index_cache="none",
        quarantine=str(tmp_path / "bad.jsonl"), max_bad_fraction=0.5,
    )  # fmt: skip
    with open_stream(mixture, global_batch=4, once=once) as stream:
        batches = [next(stream) for _ in range(3)]
        assert stream.bad_samples == {"decode": 1}
    rows = [row for batch in batches for row in zip(batch.key, batch.data, batch.valid, strict=True)]
    line = json.loads((tmp_path / "bad.jsonl").read_text())
    assert (line["key"], bool(line["replaced_by"])) == ("k05", not once)
    if once:
        assert rows[5] == ("", b"", False)
        assert [row[1] for number, row in enumerate(rows) if number != 5] == whole[:5] + whole[6:]
    else:
        assert "k05" not in [row[0] for row in rows]
        assert all(data == whole[int(key[1:])] for key, data, _ in rows)


def test_the_other_gates_hold_too(tmp_path: Path, mixture: Mixture, undecoded: Mixture) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(mixture.sources[1].url, url)
    dataset = open_dataset(url)
    row = dataset.index(0).to_pylist()[2]
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 0xFF
    tar.write_bytes(data)
    one = dataclasses.replace(
        undecoded, sources=(dataclasses.replace(mixture.sources[1], url=url),), max_bad_fraction=0.9
    )
    with open_stream(one, global_batch=8, once=True) as stream:
        assert sum(int(batch.valid.sum()) for batch in stream) == 18
        assert stream.bad_samples == {"crc": 1}
    small = dataclasses.replace(one, max_pixels=100, max_bad_fraction=1.0, max_bad_consecutive=1000)
    with open_stream(small, global_batch=8, once=True) as stream:
        assert not any(batch.valid.any() for batch in stream)
        assert stream.bad_samples == {"crc": 1, "decode": 18}


def test_a_function_gets_the_bytes_and_no_pixels(undecoded: Mixture) -> None:
    def decode(sample: Sample, _: np.random.Generator) -> dict[str, Any]:
        assert sample.views == ()
        with pytest.raises(ValueError, match="with decoder: none its image is in `data`"):
            _ = sample.image
        return {"pixels": np.asarray(Image.open(io.BytesIO(sample.data)).resize((5, 4))), "bytes": len(sample.data)}

    for once in (False, True):
        with open_stream(undecoded, global_batch=8, map=decode, once=once) as stream:
            for _, batch in zip(range(8), stream, strict=False):
                columns: dict[str, Any] = batch.columns
                assert (columns["pixels"].shape, columns["pixels"].dtype) == ((8, 4, 5, 3), np.uint8)
                assert columns["bytes"][batch.valid].tolist() == [len(data) for data in batch.data if data]


def test_bytes_have_no_views(undecoded: Mixture) -> None:
    with pytest.raises(ValueError, match="views: decoder none delivers bytes"):
        dataclasses.replace(undecoded, views=(View(count=2),))


def test_memory_holds_the_bytes_of_few_batches(tmp_path: Path) -> None:
    """Bytes stay in memory until they are delivered: as many batches are kept ready as take AHEAD_BYTES of them."""
    from headrace.pipeline.pictures import PictureMaker
    from headrace.pipeline.prefetch import batches_ahead

    data = _encode(1, "png")
    write_shard(str(tmp_path), "0", [Written(f"k{n}", data, "png") for n in range(8)])
    finish_dataset(str(tmp_path), recipe_digest="test")
    mixture = Mixture(sources=(Source(name="s", url=str(tmp_path)),), decoder="none", lanes=1, index_cache="none")
    with open_stream(mixture, global_batch=4) as stream:
        next(stream)
        assert stream._reading is not None
        maker: PictureMaker = stream._reading.prefetcher._maker
        assert maker.bytes_per_item >= len(data)
    assert batches_ahead(1 << 30) == 2
