"""Features on disk: committed in pieces, checked, read without being held, and never of something else."""

import dataclasses
import hashlib
import json
import logging
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.lease import only_writer
from headrace.train.evaluate import feature_cache
from headrace.train.evaluate.feature_cache import FeatureCache, cache_shape, open_cache
from headrace.train.evaluate.features import FeaturesConfig, dataset_features, iterate_features
from headrace.train.evaluate.trunk import FrozenTrunk, open_trunk
from headrace.train.models.vit import Vit
from headrace.train.parallel.ranks import ALONE, Ranks

CONFIG = FeaturesConfig(layers=(0, 1), images_per_batch=8)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "MAX_PIECE_ROWS", 16)


@pytest.fixture(scope="module")
def trunk(trained: Path) -> FrozenTrunk:
    return open_trunk(trained)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places that went through the trunk, in order."""
    places: list[int] = []

    def counted(*given: Any, **named: Any) -> Iterator[Any]:
        for rows in iterate_features(*given, **named):
            places.extend(rows.place_B.tolist())
            yield rows

    monkeypatch.setattr(feature_cache, "iterate_features", counted)
    return places


def read_all(cache: FeatureCache, samples: int = 96) -> torch.Tensor:
    return cache.read(np.arange(samples))[0]


def test_what_is_read_is_what_the_trunk_gave(trunk: FrozenTrunk, pictures: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, more_layers=((0,), (1,)))
    cache = open_cache(tmp_path, trunk, pictures, config, ALONE)
    held = dataset_features(trunk, pictures, config=config)
    places = np.array([5, 95, 0, 40, 41])
    for read, expected in zip(cache.read(places), held.sets, strict=True):
        assert torch.equal(read, expected[torch.from_numpy(places)])
    assert cache.has_N.all()
    assert cache.own(places).tolist() == places.tolist()


def test_a_second_opening_runs_no_trunk(
    trunk: FrozenTrunk, pictures: str, tmp_path: Path, done: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    first = open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)
    assert done == list(range(96))
    assert f"{96 * 16 * 16 * 2:,} bytes of features" in caplog.text
    assert torch.equal(read_all(open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)), read_all(first))
    assert done == list(range(96))


@pytest.mark.parametrize("killed_at", ["features", "piece", "record"])
def test_a_kill_loses_the_piece_it_was_at_and_nothing_else(
    trunk: FrozenTrunk, pictures: str, tmp_path: Path, done: list[int], *, killed_at: str
) -> None:
    """At any of three moments in the third piece; places 0..31 are in the first two."""
    whole = read_all(open_cache(tmp_path / "whole", trunk, pictures, CONFIG, ALONE))
    done.clear()
    target = {"features": "as_half", "piece": "atomic_file", "record": "write_atomic"}[killed_at]
    act, calls = getattr(feature_cache, target), []

    def dying(*given: Any) -> Any:
        calls.append(given)
        # Of features two batches a piece, of records one more in front: features.json.
        if len(calls) > {"features": 4, "piece": 2, "record": 3}[killed_at]:
            raise KeyboardInterrupt
        return act(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, target, dying)
        with pytest.raises(KeyboardInterrupt):
            open_cache(tmp_path / "cut", trunk, pictures, CONFIG, ALONE)
    done.clear()
    (folder,) = (tmp_path / "cut").iterdir()
    (folder / ".00000002.f16.x.tmp").write_bytes(b"left by kill -9")
    assert torch.equal(read_all(open_cache(tmp_path / "cut", trunk, pictures, CONFIG, ALONE)), whole)
    assert done == list(range(32, 96))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("harm", ["a byte", "cut", "gone"])
def test_a_piece_that_is_not_what_was_written_is_made_anew(
    trunk: FrozenTrunk, pictures: str, tmp_path: Path, done: list[int], caplog: pytest.LogCaptureFixture, *, harm: str
) -> None:
    whole = read_all(open_cache(tmp_path, trunk, pictures, CONFIG, ALONE))
    done.clear()
    (piece,) = tmp_path.glob("*/00000003.f16")
    data = bytearray(piece.read_bytes())
    data[100] ^= 1
    if harm == "gone":
        piece.unlink()
    else:
        piece.write_bytes(data if harm == "a byte" else data[:100])
    assert torch.equal(read_all(open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)), whole)
    assert done == list(range(48, 64))
    assert f"{piece}: " in caplog.text


def test_other_weights_pictures_blocks_or_cuts_have_another_cache(
    trunk: FrozenTrunk, trained: Path, pictures: str, other_pictures: str, tmp_path: Path
) -> None:
    fresh = open_trunk(trained, untrained=True)
    for of, url, changes in (
        (trunk, pictures, {}),
        (fresh, pictures, {}),
        (trunk, other_pictures, {}),
        (trunk, pictures, {"layers": (1,)}),
        (trunk, pictures, {"pooled": True}),
        (trunk, pictures, {"center_fraction": 0.875}),
        (trunk, pictures, {"interpolation": "bicubic"}),
        (trunk, pictures, {"samples": 20}),
        (trunk, pictures, {"more_layers": ((0,),)}),
    ):
        open_cache(tmp_path, of, url, dataclasses.replace(CONFIG, **changes), ALONE)
    assert len(list(tmp_path.iterdir())) == 9
    facts = [json.loads((folder / "features.json").read_text()) for folder in tmp_path.iterdir()]
    assert {fact["weights"] for fact in facts} == {trunk.digest(), fresh.digest()}


@pytest.mark.parametrize("change", [{"heads": 4}, {"norm_eps": 1e-2}])
def test_the_same_weights_in_another_shape_are_another_trunk(trunk: FrozenTrunk, change: dict[str, float]) -> None:
    """They have the same tensors and other features, as fresh weights of two configs with one seed."""
    assert isinstance(trunk.encoder, Vit)
    other = Vit(dataclasses.replace(trunk.encoder.config, **change))  # type: ignore[arg-type]  # of two types
    other.load_state_dict(trunk.encoder.state_dict())
    images = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    reshaped = dataclasses.replace(trunk, encoder=other)
    assert not torch.allclose(reshaped.means(images, [(1,)])[0], trunk.means(images, [(1,)])[0], atol=1e-4)
    assert reshaped.digest() != trunk.digest()


def test_a_copy_of_the_dataset_elsewhere_has_the_same_cache(
    trunk: FrozenTrunk, pictures: str, tmp_path: Path, done: list[int]
) -> None:
    open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)
    (tmp_path / "link").symlink_to(pictures)
    open_cache(tmp_path, trunk, str(tmp_path / "link"), CONFIG, ALONE)
    assert len(done) == 96


def test_a_disk_without_the_room_is_refused_before_the_trunk_runs(
    trunk: FrozenTrunk, pictures: str, tmp_path: Path, done: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage(0, 0, 40_000))
    with pytest.raises(ValueError, match=r"take 49,152 bytes more, 40,000 are free there; name another folder"):
        open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)
    assert not done


def test_many_commands_read_a_cache_and_one_writes_it(trunk: FrozenTrunk, pictures: str, tmp_path: Path) -> None:
    whole = read_all(open_cache(tmp_path, trunk, pictures, CONFIG, ALONE))
    (folder,) = tmp_path.iterdir()
    with only_writer(str(folder)):
        assert torch.equal(read_all(open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)), whole)
        (folder / "00000002.json").unlink()
        with pytest.raises(ValueError, match="is being written by another process"):
            open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)


@pytest.mark.parametrize(
    ("row", "samples", "batch", "piece", "pieces"),
    [((1, 4096), 1_281_167, 256, 16, 80_073), ((16, 16), 96, 8, 16, 6), ((1, 256, 4096), 1000, 256, 256, 4)],
)
def test_pieces_are_whole_batches(row: tuple[int, ...], samples: int, batch: int, piece: int, pieces: int) -> None:
    shape = cache_shape(row, samples, min(batch, piece))
    assert (shape.piece_rows, shape.num_pieces) == (max(16, piece), pieces)
    assert shape.places(shape.num_pieces - 1).stop == samples


def test_each_process_makes_and_reads_a_part(trunk: FrozenTrunk, pictures: str, tmp_path: Path) -> None:
    shape = cache_shape((1, 16, 16), 96, 8)
    shares = [feature_cache.share(shape.num_pieces, r, 4) for r in range(4)]
    assert [piece for share in shares for piece in share] == list(range(6))
    cache = open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)
    places = np.arange(10)
    parts = [
        FeatureCache(cache.folder, shape, cache.has_N, Ranks(rank=r, size=3, device=torch.device("cpu"))).own(places)
        for r in range(3)
    ]
    assert sorted(np.concatenate(parts).tolist()) == list(range(10))


def test_the_sum_of_a_piece_is_beside_it(trunk: FrozenTrunk, pictures: str, tmp_path: Path) -> None:
    open_cache(tmp_path, trunk, pictures, CONFIG, ALONE)
    for piece in tmp_path.glob("*/*.f16"):
        record = json.loads(piece.with_suffix(".json").read_text())
        assert record == {"sha256": hashlib.sha256(piece.read_bytes()).hexdigest(), "damaged": []}
