"""`headrace verify`: one line for each damaged sample, and the exit code."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.shards.write import Sample, finish_dataset, write_shard

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    url = str(tmp_path / "dataset")
    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(sink, "PNG")
    for name in ("00000", "00001"):
        write_shard(url, name, [Sample(f"{name}{n}", sink.getvalue(), "png") for n in range(3)])
    finish_dataset(url, recipe_digest="r")
    return Path(url)


def test_a_whole_dataset(run: Run, dataset: Path) -> None:
    assert run("verify", "-q", dataset) == (0, "whole: 2 shards, 6 samples\n")
    assert "next: headrace new mixture mixture.yaml\n" in run("verify", dataset)[1]


def test_damage_is_named_and_counted(run: Run, dataset: Path) -> None:
    tar = dataset / "shards" / "00001.tar"
    data = bytearray(tar.read_bytes())
    place = data.index(b"IDAT")
    data[place] ^= 1
    tar.write_bytes(data)
    code, text = run("verify", dataset)
    lines = text.splitlines()
    assert code == 1
    assert lines[0].startswith("00001 sample '000010' at byte ")
    assert "crc32 is" in lines[0]
    assert "sha256 of the tar" in lines[1]
    assert lines[2] == "damage in 2 places of 2 shards, 6 samples"


def test_no_dataset_is_one_line(run: Run, tmp_path: Path) -> None:
    code, text = run("verify", tmp_path)
    assert (code, text) == (1, f"headrace: {tmp_path} is not a dataset: {tmp_path}/dataset.json is missing")


def test_json_is_one_object_with_every_damage(run: Run, dataset: Path) -> None:
    code, text = run("verify", "-q", dataset, "--json")
    assert (code, json.loads(text)["damages"]) == (0, [])
    (dataset / "shards" / "00001.tar").write_bytes(b"")
    code, text = run("verify", "-q", dataset, "--json")
    facts = json.loads(text)
    assert (code, facts["num_shards"], facts["num_samples"]) == (1, 2, 6)
    assert {damage["shard"] for damage in facts["damages"]} == {"00001"}
