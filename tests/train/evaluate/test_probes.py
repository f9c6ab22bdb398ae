"""A probe of any size: in memory, out of a cache, through the trunk; in one process or two; killed or not."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headrace.shards.dataset import open_dataset
from headrace.train.evaluate import probes as probes_module
from headrace.train.evaluate.features import FeaturesConfig
from headrace.train.evaluate.feeds import split_rows
from headrace.train.evaluate.fit import Fit, FitFile
from headrace.train.evaluate.labels import read_dataset_labels
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probes import PROBES, probe
from headrace.train.evaluate.trunk import FrozenTrunk, open_trunk
from headrace.train.evaluate.trunk_feed import TrunkFeed, places_of, positions_per_step
from headrace.train.parallel.ranks import ALONE

PLACES = ["memory", "cache", "trunk"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
# Fits the three probes it is given, and leaves their results and their last states in a folder.
PROGRAM = """
import json, sys
from pathlib import Path
from headrace.train.evaluate.fit import FitFile
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probes import probe
from headrace.train.parallel.ranks import join_ranks

FitFile.remove = lambda *_: None
checkpoint, out, given = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
with join_ranks("cpu") as ranks:
    for place, (fields, cache) in given.items():
        fields |= {name: tuple(fields[name]) for name in ("lrs", "weight_decays")}
        work = out / place
        work.mkdir(parents=True, exist_ok=True)
        result = probe(checkpoint, ProbeConfig(**fields), cache=cache and Path(cache), work=work, ranks=ranks)
        (work / str(ranks.rank)).write_text(json.dumps(result))
"""


@pytest.fixture
def config(pictures: str, other_pictures: str) -> ProbeConfig:
    return ProbeConfig(
        train=pictures, test=other_pictures, epochs=12, images_per_batch=16, lrs=(1e-3, 0.02), images_per_forward=8
    )


def of_place(config: ProbeConfig, place: str, folder: Path) -> tuple[ProbeConfig, Path | None]:
    """Return the config and the cache with which features come from there."""
    few = dataclasses.replace(config, memory_bytes=1000)
    return (config if place == "memory" else few), (folder / "cache" if place == "cache" else None)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("accuracy", "lr", "by_lr", "classes", "train_samples", "test_samples")}


@pytest.mark.parametrize("head", ["attentive", "linear"])
def test_a_cache_gives_bitwise_what_memory_gives(trained: Path, config: ProbeConfig, tmp_path: Path, head: str) -> None:
    config = dataclasses.replace(config, head=head)
    held = probe(trained, config, device="cpu")
    cached = probe(trained, config, device="cpu", cache=tmp_path / "cache")
    assert (held["features"], cached["features"]) == ("memory", "cache")
    assert numbers(held) == numbers(cached)
    assert held["accuracy"] > 0.7


@pytest.mark.parametrize("head", ["attentive", "linear"])
def test_what_does_not_fit_into_memory_goes_through_the_trunk_and_learns_as_much(
    trained: Path, config: ProbeConfig, head: str
) -> None:
    config = dataclasses.replace(config, head=head)
    held = probe(trained, config, device="cpu")
    streamed = probe(trained, dataclasses.replace(config, memory_bytes=1000), device="cpu")
    assert streamed["features"] == "trunk"
    assert (streamed["train_samples"], streamed["test_samples"], streamed["classes"]) == (96, 45, 3)
    assert streamed["accuracy"] > held["accuracy"] - 0.15


def test_crops_of_each_epoch_go_through_the_trunk(trained: Path, config: ProbeConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, augment="aim", epochs=3)
    assert probe(trained, config, device="cpu")["features"] == "trunk"
    with pytest.raises(ValueError, match="augment aim sees other crops in every epoch, which no cache holds"):
        probe(trained, config, device="cpu", cache=tmp_path)


def test_a_sweep_over_depth_is_a_probe_of_each_block(trained: Path, config: ProbeConfig) -> None:
    config = dataclasses.replace(config, head="linear", epochs=3, layers="0,1")
    swept = probe(trained, dataclasses.replace(config, sweep_depth=True), device="cpu")
    assert numbers(swept) == numbers(probe(trained, config, device="cpu"))
    assert [row["blocks"] for row in swept["by_depth"]] == [[0], [1]]
    for row in swept["by_depth"]:
        alone = probe(trained, dataclasses.replace(config, layers=str(row["blocks"][0])), device="cpu")
        assert (row["test_accuracy"], row["lr"]) == (alone["accuracy"], alone["lr"])


def test_rates_and_decays_are_fitted_in_one_pass_and_chosen_on_held_out_samples(
    trained: Path, config: ProbeConfig
) -> None:
    config = dataclasses.replace(config, epochs=2, lrs=(1e-4, 0.02), weight_decays=(0.05, 0.1))
    result = probe(trained, config, device="cpu")
    settings = [(row["lr"], row["weight_decay"]) for row in result["by_lr"]]
    assert settings == [(1e-4, 0.05), (0.02, 0.05), (1e-4, 0.1), (0.02, 0.1)]
    best = max(result["by_lr"], key=lambda row: row["holdout_accuracy"])
    assert (result["lr"], result["weight_decay"], result["accuracy"]) == (
        best["lr"],
        best["weight_decay"],
        best["test_accuracy"],
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_fit_that_was_stopped_goes_on_to_bitwise_the_same_result(
    trained: Path, config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, place: str, stop_at: int
) -> None:
    config, cache = of_place(dataclasses.replace(config, epochs=3), place, tmp_path)
    whole = probe(trained, config, device="cpu", cache=cache)
    save, saves = FitFile.save_when_due, []

    def stopping(self: FitFile, fit: Fit) -> None:
        save(self, fit)
        saves.append(fit.step)
        if len(saves) == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FitFile, "save_when_due", stopping)
        with pytest.raises(KeyboardInterrupt):
            probe(trained, config, device="cpu", cache=cache, work=tmp_path / "work")
    steps: list[int] = []
    take = Fit.take_step
    monkeypatch.setattr(Fit, "take_step", lambda self, batch: (steps.append(self.step), take(self, batch)))
    again = probe(trained, config, device="cpu", cache=cache, work=tmp_path / "work")
    assert again == whole
    per_epoch = steps[-1] // 3 + 1
    assert steps[0] == stop_at // per_epoch * per_epoch  # no epoch that was whole is done again
    assert list((tmp_path / "work").iterdir()) == []


def test_another_probe_does_not_go_on_where_this_one_was(
    trained: Path, config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(FitFile, "remove", lambda *_: None)
        probe(trained, config, device="cpu", work=tmp_path)
        probe(trained, dataclasses.replace(config, seed=1), device="cpu", work=tmp_path)
        probe(trained, dataclasses.replace(config, untrained=True), device="cpu", work=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_two_processes_fit_what_one_does(trained: Path, config: ProbeConfig, tmp_path: Path) -> None:
    """In each place of features: the same weights, moments and statistics, and the same accuracies."""
    config = dataclasses.replace(config, epochs=3, sweep_depth=True)
    given = {}
    for place in PLACES:
        of_it, cache = of_place(config, place, tmp_path)
        given[place] = (dataclasses.asdict(of_it), None if cache is None else str(cache))
    for processes in (1, 2):
        command = [sys.executable, "-c", PROGRAM, str(trained), str(tmp_path / str(processes)), json.dumps(given)]
        if processes > 1:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command = [*launcher, "--no-python", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-3000:]
    for place in PLACES:
        one, two = tmp_path / "1" / place, tmp_path / "2" / place
        alone, first, second = (json.loads(path.read_text()) for path in (one / "0", two / "0", two / "1"))
        assert first == second
        assert {**first, "by_lr": 0, "by_depth": 0} == {**alone, "by_lr": 0, "by_depth": 0}
        (state,), (other,) = (list(folder.glob("*.safetensors")) for folder in (one, two))
        assert state.name == other.name  # so either goes on where the other was
        tensors = load_file(other)
        for name, tensor in load_file(state).items():
            torch.testing.assert_close(tensors[name], tensor, atol=2e-4, rtol=1e-3, msg=f"{place} {name}")


@pytest.fixture
def feed(trained: Path, config: ProbeConfig) -> tuple[TrunkFeed, FrozenTrunk]:
    trunk = open_trunk(trained)
    return TrunkFeed(
        trunk,
        read_dataset_labels(config.train),
        dataclasses.replace(config, augment="crops"),
        features=FeaturesConfig(layers=(0, 1), images_per_batch=8),
        ranks=ALONE,
    ), trunk


def test_the_trunk_sees_each_fit_sample_once_an_epoch_and_no_held_out_one(
    feed: tuple[TrunkFeed, FrozenTrunk], config: ProbeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def kept(*given: Any) -> np.ndarray:
        places = places_of(*given)
        seen.extend(places.tolist())
        return places

    monkeypatch.setattr("headrace.train.evaluate.trunk_feed.places_of", kept)
    fit, held = split_rows(96, config.seed)
    sizes = [len(batch.label_B) for batch in feed[0].batches(0, 12)]
    assert sorted(seen[:96]) == list(range(96))
    assert sum(sizes) == sum(place in set(fit) for place in seen)
    assert {place for rows in feed[0].held() for place in rows[1]} == set(held)
    assert np.mean(sizes) == pytest.approx(config.images_per_batch, rel=0.15)


def test_each_epoch_of_the_trunk_has_other_crops(feed: tuple[TrunkFeed, FrozenTrunk]) -> None:
    steps = feed[0].steps_per_epoch
    batches = list(feed[0].batches(0, 2 * steps))
    again = next(feed[0].batches(steps, steps + 1))
    assert torch.equal(again.sets[0], batches[steps].sets[0])
    assert torch.equal(again.label_B, batches[steps].label_B)
    first, second = (torch.cat([x.sets[0] for x in part]).mean() for part in (batches[:steps], batches[steps:]))
    assert first != second


@pytest.mark.parametrize(
    ("images", "used", "expected"),
    [(1024, 1_153_050, (1136, 1)), (16, 1_153_050, (16, 1)), (1, 1_153_050, (16, 1)), (512, 4_500, (1024, 143))],
)
def test_a_step_reads_as_many_positions_as_hold_its_images(images: int, used: int, expected: tuple[int, int]) -> None:
    """Of few samples among many no more pictures are held at once."""
    assert positions_per_step(images, used=used, total=1_281_167, lanes=16) == expected


def test_few_samples_of_a_large_dataset_come_in_steps_of_several_batches(trained: Path, config: ProbeConfig) -> None:
    config = dataclasses.replace(config, samples=20, images_per_batch=8, memory_bytes=1000, epochs=4)
    feed = TrunkFeed(
        open_trunk(trained),
        read_dataset_labels(config.train, config.samples),
        config,
        features=FeaturesConfig(layers=(0,), samples=20, images_per_batch=8),
        ranks=ALONE,
    )
    steps = list(feed.batches(0, 4))
    assert sum(len(step.label_B) for step in steps) == pytest.approx(4 * 8, abs=8)
    again = next(feed.batches(3, 4))
    assert torch.equal(again.sets[0], steps[3].sets[0])
    assert probe(trained, config, device="cpu")["train_samples"] == 20


@pytest.mark.parametrize("place", PLACES)
def test_damaged_samples_are_neither_fitted_on_nor_judged(
    trained: Path, config: ProbeConfig, pictures: str, tmp_path: Path, place: str
) -> None:
    damaged = shutil.copytree(pictures, tmp_path / "damaged")
    dataset = open_dataset(str(damaged))
    offset, size = (dataset.index(0).column(name)[7].as_py() for name in ("offset", "size"))
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    config, cache = of_place(
        dataclasses.replace(config, epochs=2, test=str(damaged), train=str(damaged)), place, tmp_path
    )
    result = probe(trained, config, device="cpu", cache=cache)
    assert result["test_samples"] == 95
    assert result["train_samples"] == (96 if place == "trunk" else 95)


def test_a_sample_that_stands_in_for_a_damaged_one_is_left_out(
    trained: Path, config: ProbeConfig, pictures: str, tmp_path: Path
) -> None:
    """It may be a held-out one, and the batch does not say which it is."""
    damaged = shutil.copytree(pictures, tmp_path / "damaged")
    dataset = open_dataset(str(damaged))
    offset, size = (dataset.index(0).column(name)[7].as_py() for name in ("offset", "size"))
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    config = dataclasses.replace(config, train=str(damaged))
    feed = TrunkFeed(
        open_trunk(trained),
        read_dataset_labels(str(damaged)),
        config,
        features=FeaturesConfig(layers=(0,), images_per_batch=8),
        ranks=ALONE,
    )
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        kept = lambda *given: (seen.extend(found := places_of(*given)), found)[1]  # noqa: E731
        patch.setattr("headrace.train.evaluate.trunk_feed.places_of", kept)
        for batch in feed.batches(0, feed.steps_per_epoch):
            assert len(batch.label_B) > 0
    assert 7 not in seen
    assert seen.count(-1) == 1


def test_a_test_set_with_more_classes_is_refused_before_the_fit(
    trained: Path, config: ProbeConfig, write_dataset: Any, tmp_path: Path
) -> None:
    more = write_dataset(tmp_path / "more", samples=12, change=lambda n, row: {**row, "label": n})
    with pytest.raises(ValueError, match=r"label 3 of sample 3: the head has classes 0\.\.2"):
        probe(trained, dataclasses.replace(config, test=more), device="cpu")
    with pytest.raises(ValueError, match="head: unknown 'x'; known: attentive, linear"):
        probe(trained, dataclasses.replace(config, head="x"), device="cpu")
    with pytest.raises(ValueError, match="have an attentive head, --head is linear"):
        probe(trained, dataclasses.replace(config, head="linear"), device="cpu", export=tmp_path / "x")


def test_a_result_has_no_secrets(trained: Path, config: ProbeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = probes_module.probe_labels(config)
    monkeypatch.setattr(probes_module, "probe_labels", lambda _: labels)
    monkeypatch.setitem(PROBES, "linear", lambda _: {"accuracy": 1.0})
    told = probe(trained, dataclasses.replace(config, head="linear", train="https://me:secret@host/data"), device="cpu")
    assert told["protocol"]["train"] == "https://me:***@host/data"
    assert told["protocol"]["test"] == config.test


def test_a_head_of_the_table_gets_the_trunk_the_labels_and_the_ranks(
    trained: Path, config: ProbeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(task: probes_module.ProbeTask) -> dict[str, Any]:
        assert task.ranks.size == 1
        return {"accuracy": 0.5, "images": [len(task.train), len(task.test)], "layers": task.layers}

    monkeypatch.setitem(PROBES, "counting", counting)
    result = probe(trained, dataclasses.replace(config, head="counting"), device="cpu")
    assert (result["accuracy"], result["images"], result["blocks"]) == (0.5, [96, 45], [0, 1])
