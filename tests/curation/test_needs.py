"""What later stages need is looked for before the first one starts."""

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.config import build_config
from headrace.curation import needs
from headrace.curation.annotate.annotators.clip import ClipScore
from headrace.curation.recipe import Recipe

STAGES = ("fetch", "annotate", "select", "build", "report")


def _recipe(folder: Path, **parts: object) -> Recipe:
    known = {"annotate": {"faces": {"detector": "haar", "accept_weak": True}}, "input": {"urls": ["list.csv"]}}
    return build_config(Recipe, {"job": str(folder / "job"), "unsafe_images": "off", **known, **parts})


def test_a_model_file_that_is_not_there_stops_before_the_fetch(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, annotate={"faces": {"detector": "yunet", "model": str(tmp_path / "none.onnx")}})
    with pytest.raises(ValueError, match=r"none\.onnx cannot be read"):
        needs.check_needs(recipe, STAGES)
    needs.check_needs(recipe, ("fetch",))


@pytest.mark.parametrize("key", ["faces", "regions", "unsafe_image"])
def test_a_file_that_is_no_model_stops_before_the_fetch(tmp_path: Path, key: str) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    faces = {"faces": {"detector": "haar", "accept_weak": True}}
    recipe = _recipe(tmp_path, annotate={**faces, key: {"model": str(tmp_path / "noise.onnx")}})
    with pytest.raises(ValueError, match=rf"noise\.onnx does not load: .*check annotate\.{key}\.model") as why:
        needs.check_needs(recipe, STAGES)
    assert "\n" not in str(why.value)


def test_a_known_detector_that_was_not_got_stops_before_the_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_MODELS", str(tmp_path / "models"))
    with pytest.raises(ValueError, match=r"centerface is not on this machine .*run: headrace models get centerface"):
        needs.check_needs(_recipe(tmp_path, annotate={}), STAGES)
    needs.check_needs(_recipe(tmp_path, annotate={}), ("fetch",))


def test_an_evaluation_set_that_is_not_there_stops_before_the_fetch(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    sets = [{"name": "held-out", "url": str(tmp_path)}, {"name": "coco", "url": str(tmp_path / "none")}]
    recipe = _recipe(tmp_path, select=[{"step": "decontaminate", "against": sets}])
    with pytest.raises(ValueError, match=r"evaluation set 'coco': no such file or folder: .*none"):
        needs.check_needs(recipe, STAGES)
    needs.check_needs(recipe, ("fetch", "annotate"))


def test_evaluation_by_the_embeddings_of_another_model_stops_before_the_fetch(tmp_path: Path) -> None:
    for package in ("faiss", "onnxruntime"):
        pytest.importorskip(package)
    for name in ("a.onnx", "same.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"b" if name == "b.onnx" else b"a")
    (tmp_path / "a.jpg").write_bytes(b"")

    def check(model: str, **annotate: object) -> None:
        by_embedding = {"model": {"model": str(tmp_path / model)}, "threshold": 0.5}
        step = {"step": "decontaminate", "against": [{"name": "held-out", "url": str(tmp_path)}]}
        annotators = {"faces": {"detector": "haar", "accept_weak": True}, **annotate}
        recipe = _recipe(tmp_path, annotate=annotators, select=[{**step, "by_embedding": by_embedding}])
        needs.check_needs(recipe, ("select",))

    made = {"copy_embedding": {"model": str(tmp_path / "a.onnx")}}
    for other in ({}, made):
        with pytest.raises(ValueError, match=r"by_embedding\.model is not the model of annotate\.copy_embedding"):
            check("b.onnx", **other)
    check("same.onnx", **made)


def test_a_missing_package_stops_before_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path, annotate={"clip": {"model": "m.json", "checkpoint": "m.safetensors"}})
    monkeypatch.setattr(ClipScore, "packages", ("no_such_package",))
    with pytest.raises(ModuleNotFoundError) as stopped:
        needs.check_needs(recipe, STAGES)
    assert stopped.value.name == "no_such_package"


@pytest.mark.parametrize("kind", ["empty folder", "folder of texts", "parquet without images", "empty tar"])
def test_an_evaluation_set_without_an_image_stops_before_the_fetch(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    if kind == "folder of texts":
        (folder / "a.txt").write_text("no image")
    elif kind == "parquet without images":
        pq.write_table(pa.table({"x": [1]}), folder / "a.parquet")
    elif kind == "empty tar":
        with tarfile.open(folder / "a.tar", "w"):
            pass
    recipe = _recipe(tmp_path, select=[{"step": "decontaminate", "against": [{"name": "coco", "url": str(folder)}]}])
    with pytest.raises(ValueError, match=r"evaluation set 'coco': ") as caught:
        needs.check_needs(recipe, STAGES)
    assert "\n" not in str(caught.value)
