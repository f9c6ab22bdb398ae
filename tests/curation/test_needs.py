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
    whole = {"job": str(folder / "job"), "unsafe_images": "off", "input": {"urls": ["list.csv"]}, **parts}
    return build_config(Recipe, whole)


def test_a_model_file_that_is_not_there_stops_before_the_fetch(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, annotate={"faces": {"detector": "yunet", "model": str(tmp_path / "none.onnx")}})
    with pytest.raises(ValueError, match=r"none\.onnx cannot be read"):
        needs.check_needs(recipe, STAGES)
    needs.check_needs(recipe, ("fetch",))


def test_an_evaluation_set_that_is_not_there_stops_before_the_fetch(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    sets = [{"name": "held-out", "url": str(tmp_path)}, {"name": "coco", "url": str(tmp_path / "none")}]
    recipe = _recipe(tmp_path, select=[{"step": "decontaminate", "against": sets}])
    with pytest.raises(ValueError, match=r"evaluation set 'coco': no such file or folder: .*none"):
        needs.check_needs(recipe, STAGES)
    needs.check_needs(recipe, ("fetch", "annotate"))


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
