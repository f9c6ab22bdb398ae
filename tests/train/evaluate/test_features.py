"""A pass gives every whole sample once, in any number of shares, and holds a batch."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.pipeline.augment.config import Interpolation
from headrace.shards.dataset import open_dataset
from headrace.train.config import load_run
from headrace.train.evaluate.features import FeaturesConfig, dataset_features, iterate_features, share_of
from headrace.train.evaluate.trunk import FrozenTrunk, means_of_blocks, open_trunk
from headrace.train.loop import train
from headrace.train.models.vit import Vit, VitConfig
from headrace.train.parallel.ranks import ALONE, Ranks

CONFIG = FeaturesConfig(layers=(0, 1), images_per_batch=8)


@pytest.fixture(scope="module")
def trunk(trained: Path) -> FrozenTrunk:
    return open_trunk(trained)


def of_rank(rank: int, size: int) -> Ranks:
    return Ranks(rank=rank, size=size, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_ranks_together_give_every_place_once(trunk: FrozenTrunk, other_pictures: str, size: int) -> None:
    places: list[int] = []
    for rank in range(size):
        for rows in iterate_features(trunk, other_pictures, CONFIG, of_rank(rank, size)):
            assert len(rows.tokens) == len(rows.key) == len(rows.label_B) <= 8
            assert rows.label_B.tolist() == [(1000 + place) % 3 for place in rows.place_B]
            places += rows.place_B.tolist()
    assert places == list(range(45))


@pytest.mark.parametrize(("total", "ranks", "batch"), [(45, 2, 8), (45, 7, 8), (3, 4, 8), (0, 2, 8), (64, 3, 1)])
def test_shares_are_consecutive_and_begin_at_whole_batches(total: int, ranks: int, batch: int) -> None:
    shares = [share_of(total, batch, of_rank(rank, ranks)) for rank in range(ranks)]
    assert [place for share in shares for place in share] == list(range(total))
    assert all(share.start % batch == 0 for share in shares if share)


def test_a_part_of_the_pass_is_done_alone(trunk: FrozenTrunk, pictures: str) -> None:
    whole = dataset_features(trunk, pictures, config=CONFIG)
    rows = list(iterate_features(trunk, pictures, CONFIG, part=range(40, 61)))
    assert [place for part in rows for place in part.place_B] == list(range(40, 61))
    tokens = torch.cat([part.tokens for part in rows])
    torch.testing.assert_close(tokens.half(), whole.tokens_NLD[40:61], atol=2e-3, rtol=2e-3)


def test_several_sets_of_blocks_and_averages_over_tokens_come_of_one_pass(trunk: FrozenTrunk, pictures: str) -> None:
    both = replace(CONFIG, more_layers=((0,), (1,)))
    tokens = next(iterate_features(trunk, pictures, both))
    mean, first, second = tokens.sets
    torch.testing.assert_close(mean, (first + second) / 2)
    pooled = next(iterate_features(trunk, pictures, replace(both, pooled=True)))
    for of_tokens, average in zip(tokens.sets, pooled.sets, strict=True):
        torch.testing.assert_close(average, of_tokens.mean(dim=1))


def test_blocks_behind_the_last_that_is_asked_for_are_not_run() -> None:
    vit = Vit(VitConfig(image_size=8, patch=4, width=16, depth=3, heads=2))
    ran = []
    vit.trunk.blocks[2].register_forward_hook(lambda *_: ran.append(2))
    means_of_blocks(vit, torch.zeros(1, 3, 8, 8), ((0,), (0, 1)))
    assert not ran
    means_of_blocks(vit, torch.zeros(1, 3, 8, 8), ((0,), (0, 2)))
    assert ran == [2]


def test_a_damaged_sample_is_left_out_and_named(
    trunk: FrozenTrunk, pictures: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = shutil.copytree(pictures, tmp_path / "damaged")
    dataset = open_dataset(str(damaged))
    offset, size = (dataset.index(0).column(name)[7].as_py() for name in ("offset", "size"))
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    places = [place for rows in iterate_features(trunk, str(damaged), CONFIG) for place in rows.place_B]
    assert places == [place for place in range(96) if place != 7]
    assert "1 damaged samples of 96 are left out: '000007'" in caplog.text


def test_weights_that_have_diverged_are_refused(run_file: Callable[..., Path], pictures: str) -> None:
    trunk = open_trunk(train(load_run(run_file(steps=1, validation=None))).out)
    next(trunk.encoder.parameters()).fill_(np.inf)
    with pytest.raises(ValueError, match=r"features are not finite; the checkpoint .* has diverged"):
        list(iterate_features(trunk, pictures, CONFIG))


def test_the_digest_of_a_trunk_is_that_of_its_values(run_file: Callable[..., Path]) -> None:
    out = train(load_run(run_file(steps=1, validation=None))).out
    first, again, fresh = open_trunk(out), open_trunk(out), open_trunk(out, untrained=True)
    assert first.digest() == again.digest() != fresh.digest()
    assert (first.step, fresh.step, first.image_size) == (1, 0, 16)
    assert not any(parameter.requires_grad for parameter in first.encoder.parameters())
    next(again.encoder.parameters()).view(-1)[0] += 1e-3
    assert again.digest() != first.digest()


def test_pictures_are_resized_as_asked_for(trunk: FrozenTrunk, pictures: str) -> None:
    def features(interpolation: Interpolation) -> torch.Tensor:
        config = FeaturesConfig(layers=(0, 1), interpolation=interpolation)
        return torch.cat([rows.sets[0] for rows in iterate_features(trunk, pictures, config, ALONE)])

    assert torch.equal(features("bicubic"), features("bicubic"))
    assert not torch.equal(features("bicubic"), features("bilinear"))
