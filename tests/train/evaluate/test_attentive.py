"""The probe is the published one, sees the trunk without changing it, and decides nothing on the test set."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from headrace.shards.dataset import open_dataset
from headrace.train.config import load_run
from headrace.train.evaluate.features import FeaturesConfig, dataset_features, read_labels
from headrace.train.evaluate.feeds import split_rows
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probes import probe
from headrace.train.evaluate.trunk import END, mean_of_blocks, means_of_blocks, open_trunk, parse_layers
from headrace.train.loop import train
from headrace.train.models.backbones import BackboneConfig
from headrace.train.models.heads import AttentiveProbes
from headrace.train.models.vit import Vit, VitConfig
from headrace.train.runs.tensor_files import CONFIG_KEY
from headrace.train.runs.weights import read_weights


def plain_probe(probes: AttentiveProbes, number: int, tokens_BLD: torch.Tensor) -> torch.Tensor:
    """The probe as the paper writes it: normalise, keys and values of every token, one query, softmax, classify."""
    query, key, value, classifier = probes.parameters_of(number)
    flat = tokens_BLD.flatten(0, 1)
    x = (tokens_BLD - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-6).sqrt()
    outputs = []
    for head in range(probes.heads):
        part = slice(head * len(query) // probes.heads, (head + 1) * len(query) // probes.heads)
        keys, values = (x @ key.T)[..., part], (x @ value.T)[..., part]
        weights = torch.softmax(keys @ query[part] / (part.stop - part.start) ** 0.5, dim=1)
        outputs.append((weights[..., None] * values).sum(dim=1))
    return torch.cat(outputs, dim=1) @ classifier.T


@torch.no_grad()
def test_the_folded_probe_is_the_published_one() -> None:
    torch.manual_seed(0)
    probes = AttentiveProbes(width=12, heads=3, classes=5, num_probes=2)
    for parameter in probes.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    tokens = torch.randn(6, 7, 12) * 3 + 1
    logits = probes(tokens)
    assert logits.shape == (2, 6, 5)
    for number in range(2):
        torch.testing.assert_close(logits[number], plain_probe(probes, number, tokens), atol=1e-4, rtol=1e-4)


def test_a_probe_has_the_published_number_of_parameters() -> None:
    width, classes = 16, 10
    probes = AttentiveProbes(width=width, heads=4, classes=classes, num_probes=1)
    assert sum(p.numel() for p in probes.parameters()) == 2 * width**2 + width + classes * width
    assert isinstance(probes.norm, nn.BatchNorm1d)
    assert not probes.norm.affine


@torch.no_grad()
def test_features_are_the_mean_of_blocks_before_the_last_norm() -> None:
    torch.manual_seed(0)
    vit, images = Vit(VitConfig(image_size=8, patch=4, width=16, depth=3, heads=2)), torch.randn(2, 3, 8, 8)
    x = vit.preprocessor(images)
    outputs = []
    for block in vit.trunk.blocks:
        x = block(x, None)
        outputs.append(x)
    torch.testing.assert_close(mean_of_blocks(vit, images, (1, 2)), (outputs[1] + outputs[2]) / 2)


@pytest.mark.parametrize(
    ("text", "depth", "expected"),
    [
        ("last6", 24, (18, 19, 20, 21, 22, 23)),
        ("last6", 4, (0, 1, 2, 3)),
        ("last1", 4, (3,)),
        ("all", 3, (0, 1, 2)),
        ("14,12,13", 24, (12, 13, 14)),
        ("end", 4, END),
    ],
)
def test_layers_are_named_as_the_paper_counts_them(text: str, depth: int, expected: tuple[int, ...]) -> None:
    assert parse_layers(text, depth) == expected


@pytest.mark.parametrize("text", ["last0", "first3", "1,1", "4", "-1", ""])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected last6, all, end, or different numbers of 0\.\.3"):
        parse_layers(text, 4)


@pytest.mark.parametrize("pool", ["class_token", "mean"])
def test_the_end_of_an_encoder_is_what_it_makes_of_a_picture(pool: str) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(model="tiny", patch=8, width=32, depth=2, heads=2, pool=pool)  # type: ignore[arg-type]
    encoder, images = config.build(16).eval(), torch.randn(3, 3, 16, 16)
    blocks = list(encoder.block_outputs(images))
    end, first, again = means_of_blocks(encoder, images, (END, (0,), END), pooled=True)
    torch.testing.assert_close(first, encoder.pool(blocks[0]))
    torch.testing.assert_close(end, encoder.pool(encoder.get_submodule("norm")(blocks[1])))
    assert torch.equal(end, again)
    with pytest.raises(ValueError, match="layers end is one row an image"):
        FeaturesConfig(layers=END)


def test_the_held_out_rows_are_a_tenth_and_the_rest_is_kept() -> None:
    fit, held = split_rows(205, seed=3)
    assert len(held) == 20
    assert sorted([*fit, *held]) == list(range(205))
    assert not np.array_equal(held, split_rows(205, seed=4)[1])
    with pytest.raises(ValueError, match="at least 10 training samples"):
        split_rows(9, seed=0)


@pytest.fixture
def run(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file(steps=4, validation=None))).out


def test_features_stand_by_place_and_do_not_depend_on_batches(run: Path, pictures: str) -> None:
    trunk = open_trunk(run)
    config = FeaturesConfig(layers=(0, 1), memory_bytes=1 << 20)
    features = dataset_features(trunk, pictures, config=config)
    assert features.tokens_NLD.shape == (96, 16, 16)
    assert features.label_N.tolist() == [number % 3 for number in range(96)]
    few = dataset_features(trunk, pictures, config=replace(config, samples=10))
    torch.testing.assert_close(few.tokens_NLD, features.tokens_NLD[:10], atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match=r"take 49152 bytes, over memory_bytes 40000"):
        dataset_features(trunk, pictures, config=replace(config, memory_bytes=40000))


def test_damaged_samples_are_left_out_of_a_probe(
    run: Path, pictures: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Number 7 is damaged: its row was never written, so it must neither be fitted on nor be judged."""
    damaged = shutil.copytree(pictures, tmp_path / "damaged")
    dataset = open_dataset(str(damaged))
    offset, size = (dataset.index(0).column(name)[7].as_py() for name in ("offset", "size"))
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    trunk = open_trunk(run)
    config = FeaturesConfig(layers=(0,))
    whole, features = (dataset_features(trunk, url, config=config) for url in (pictures, str(damaged)))
    kept = [number for number in range(96) if number != 7]
    assert features.label_N.tolist() == [number % 3 for number in kept]
    torch.testing.assert_close(features.tokens_NLD, whole.tokens_NLD[kept], atol=2e-3, rtol=2e-3)
    assert "1 damaged samples of 96 are left out" in caplog.text
    result = probe(run, ProbeConfig(train=str(damaged), test=str(damaged), epochs=1, layers="last1"), device="cpu")
    assert (result["train_samples"], result["test_samples"]) == (95, 95)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["red", "blue"], "does not hold whole numbers"),
        (np.array([0.0, 0.5]), "does not hold whole numbers"),
        (np.array([0, -1]), r"a sample has no label \(1 of 2"),
        (np.array([-1, -1]), r"its samples have no label \(2 of 2"),
        (np.array([0, 10**12]), "label 1000000000000 is no class"),
    ],
)
def test_labels_that_are_no_classes_are_refused(column: list[object] | NDArray[np.generic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(column, np.array([True, True]), "data")


def test_a_probe_reads_colours_and_says_how(run: Path, pictures: str, other_pictures: str) -> None:
    config = ProbeConfig(train=pictures, test=other_pictures, epochs=12, images_per_batch=16, lrs=(1e-4, 0.02))
    result = probe(run, config, device="cpu")
    assert result["accuracy"] > 0.9
    assert (result["train_samples"], result["test_samples"], result["classes"]) == (96, 45, 3)
    assert (result["step"], result["blocks"]) == (4, [0, 1])
    assert [row["lr"] for row in result["by_lr"]] == [1e-4, 0.02]
    best = max(result["by_lr"], key=lambda row: row["holdout_accuracy"])
    assert (result["lr"], result["accuracy"]) == (best["lr"], best["test_accuracy"])
    assert result["protocol"] == {**dataclasses.asdict(config)}
    json.dumps(result)
    assert probe(run, config, device="cpu") == result  # to the last bit


def test_run_folder_checkpoint_and_export_hold_the_same_weights(run: Path) -> None:
    places = (run, run / "checkpoints" / "00000004", run / "model.safetensors")
    first, *others = (read_weights(place) for place in places)
    for other in others:
        assert (other.model, other.step) == (first.model, 4)
        assert other.tensors.keys() == first.tensors.keys()
        assert all(torch.equal(other.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_an_untrained_probe_has_other_weights_of_the_same_seed(run: Path, pictures: str, other_pictures: str) -> None:
    config = ProbeConfig(train=pictures, test=other_pictures, epochs=1, untrained=True, layers="last1")
    result = probe(run, config, device="cpu")
    assert (result["step"], result["blocks"]) == (0, [1])


@pytest.mark.parametrize("what", ["empty folder", "no safetensors", "foreign safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.safetensors"
    if what == "no safetensors":
        path.write_bytes(b"\x80\x05 not this")
    if what == "foreign safetensors":
        save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"neither a run folder|not a safetensors file|not exported by headrace"):
        read_weights(tmp_path if what == "empty folder" else path)


def test_weights_are_read_although_other_keys_of_the_run_have_changed(run: Path) -> None:
    """A checkpoint of another version: a key of the mixture is gone since, one of the run is new."""
    path = run / "checkpoints" / "00000004" / "state.json"
    state = json.loads(path.read_text())
    state["config"]["mixture"]["forgotten"] = 1
    del state["config"]["log_every"]
    path.write_text(json.dumps(state))
    assert read_weights(run).model == read_weights(run / "model.safetensors").model
    state["config"]["objective"]["forgotten"] = 1
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"its config cannot be read.*objective\.forgotten"):
        read_weights(run)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("objective", "width"), 4_000_000, "the weights do not fit the model, first difference: "),
        (("objective", "depth"), 3, r"first difference: trunk\.blocks\.2\."),
        (("mixture", "image_size"), 4_000_000, r"image_size must be 1\.\.4096"),
    ],
)
def test_a_config_that_asks_for_more_than_its_weights_takes_no_memory(
    run: Path, tmp_path: Path, where: tuple[str, str], value: int, message: str
) -> None:
    """The model would be of terabytes: refused from the shapes, as a line and not as a failed allocation."""
    with safe_open(run / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()[CONFIG_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    config[where[0]][where[1]] = value
    save_file(tensors, tmp_path / "x.safetensors", metadata={CONFIG_KEY: json.dumps(config)})
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "x.safetensors")
