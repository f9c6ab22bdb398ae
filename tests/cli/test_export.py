"""`headrace export` says what it wrote and how to load it, and answers a mistake with one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    from headrace.train.models.vit import Vit, VitConfig
    from headrace.train.runs.released import released_facts

    shape = VitConfig(image_size=16, patch=4, width=16, depth=2, heads=2)
    folder = tmp_path / "released"
    folder.mkdir()
    torch.save(Vit(shape).state_dict(), folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(released_facts(shape)))
    return folder


def test_it_says_what_was_written_and_how_to_load_it(run: Run, released: Path, tmp_path: Path) -> None:
    code, text = run("export", released, "--format", "timm", "--out", tmp_path / "timm")
    assert code == 0
    assert f'timm.create_model("local-dir:{tmp_path}/timm", pretrained=True)' in text.replace("\n", "")
    code, text = run("export", tmp_path / "timm", "--format", "ml-aim", "--out", tmp_path / "b", "--json")
    assert (code, json.loads(text)["tensors"]) == (0, 29)


def test_a_dry_run_writes_nothing(run: Run, released: Path, tmp_path: Path) -> None:
    code, text = run("export", released, "--out", tmp_path / "b", "--dry-run")
    assert (code, "safetensors: one file under our names" in text) == (0, True)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "onnx"), "known: safetensors, torch, ml-aim, timm, torchvision, open_clip"),
        (("--format", "open_clip"), "an objective aim has no towers of open_clip's"),
        (("--dtype", "int8"), "dtype: unknown 'int8'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(
    run: Run, released: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, text = run("export", released, "--out", tmp_path / "out", *options)
    assert (code, text.startswith("headrace: "), message in text) == (1, True, True), text
    assert not (tmp_path / "out").exists()


def test_nothing_to_export_is_one_line(run: Run, tmp_path: Path) -> None:
    code, text = run("export", tmp_path / "nothing", "--out", tmp_path / "out")
    assert (code, "neither a run folder with checkpoints" in text) == (1, True)
