"""A shuffled import: every input once, the same order for every kind of source, resumable, nothing left behind."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.shards.dataset import open_dataset
from headrace.shards.imports import shuffle
from headrace.shards.imports.run import ImportConfig, import_images, open_source
from headrace.shards.imports.shuffle import Spool, order_of
from headrace.shards.payloads import read_sample
from headrace.shards.verify import verify_dataset

Encode = Callable[..., bytes]


@pytest.fixture
def images(encode_image: Encode) -> list[bytes]:
    return [encode_image("png", (8, 8), seed=seed) for seed in range(23)]


def _sources(tmp_path: Path, images: list[bytes]) -> dict[str, Path]:
    folder, tar, parquet = tmp_path / "folder", tmp_path / "a.tar", tmp_path / "a.parquet"
    folder.mkdir()
    with tarfile.open(tar, "w") as file:
        for number, image in enumerate(images):
            (folder / f"{number:02d}.png").write_bytes(image)
            info = tarfile.TarInfo(f"{number:02d}.png")
            info.size = len(image)
            file.addfile(info, io.BytesIO(image))
    columns = {"image": images, "label": list(range(23)), "caption": [f"c{n}" for n in range(23)]}
    pq.write_table(
        pa.table({**columns, "tags": [["x"]] * 23, "score": [float(n) for n in range(23)]}), parquet, row_group_size=4
    )
    return {"folder": folder, "tar": tar, "parquet": parquet}


def _import(source: Path, out: Path, **settings: Any) -> list[bytes]:
    config = ImportConfig(samples_per_shard=5, **settings)
    import_images(open_source(str(source), config), str(out), config)
    dataset = open_dataset(str(out))
    return [
        read_sample(dataset, shard, row)
        for shard, entry in enumerate(dataset.shards)
        for row in range(entry.num_samples)
    ]


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_every_input_comes_once_in_the_order_of_the_seed(tmp_path: Path, images: list[bytes], kind: str) -> None:
    source = _sources(tmp_path, images)[kind]
    assert _import(source, tmp_path / "sorted") == images
    expected = [images[number] for number in order_of(23, 7)]
    assert _import(source, tmp_path / "seven", shuffle=7) == expected != images
    assert sorted(expected) == sorted(images)
    assert _import(source, tmp_path / "eight", shuffle=8) != expected
    assert list(verify_dataset(str(tmp_path / "seven"), decode=True)) == []
    assert not (tmp_path / "seven" / "spool").exists()


def test_what_stands_beside_the_images_goes_with_them(tmp_path: Path, images: list[bytes]) -> None:
    _import(_sources(tmp_path, images)["parquet"], tmp_path / "out", shuffle=1)
    dataset = open_dataset(str(tmp_path / "out"))
    rows = [row for shard in range(5) for row in dataset.index(shard).to_pylist()]
    order = [int(number) for number in order_of(23, 1)]
    assert [row["label"] for row in rows] == order
    assert [row["caption"] for row in rows] == [f"c{number}" for number in order]
    assert [row["score"] for row in rows] == [float(number) for number in order]
    assert [row["source"] for row in rows] == [f"a.parquet:{number}" for number in order]


def test_a_killed_run_goes_on_with_what_it_spread(
    tmp_path: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "INPUTS_PER_FILE", 6)
    source = _sources(tmp_path, images)["parquet"]
    _import(source, tmp_path / "whole", shuffle=2)
    real, spread = shuffle._spread, []

    def dies(fill: Any) -> None:
        if len(spread) == 2:
            raise OSError("full")
        spread.append(fill.first)
        real(fill)

    monkeypatch.setattr(shuffle, "_spread", dies)
    with pytest.raises(OSError, match="full"):
        _import(source, tmp_path / "out", shuffle=2)
    assert len(list((tmp_path / "out" / "spool").iterdir())) == 2
    monkeypatch.setattr(shuffle, "_spread", real)
    again = _import(source, tmp_path / "out", shuffle=2)
    assert again == [images[number] for number in order_of(23, 2)]
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_rejects_and_nulls_pass_through_the_spool(tmp_path: Path, images: list[bytes]) -> None:
    broken = [images[0], None, b"", b"junk", *images[1:5]]
    pq.write_table(pa.table({"image": pa.array(broken, pa.binary())}), tmp_path / "a.parquet")
    config = ImportConfig(shuffle=4)
    summary = import_images(open_source(str(tmp_path / "a.parquet"), config), str(tmp_path / "out"), config)
    assert (summary.num_samples, summary.rejects) == (5, {"empty": 1, "no-image": 1, "not-image": 1})


def test_a_finished_import_makes_no_spool(tmp_path: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    source = _sources(tmp_path, images)["parquet"]
    first = _import(source, tmp_path / "out", shuffle=2)
    monkeypatch.setattr(Spool, "fill", lambda *_: pytest.fail("filled again"))
    assert _import(source, tmp_path / "out", shuffle=2) == first
