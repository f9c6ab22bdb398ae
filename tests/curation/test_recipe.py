"""Promises of the recipe as a whole."""

from pathlib import Path
from typing import Any

import pytest

from headrace.config import build_config
from headrace.curation.annotate.annotators.faces import FacesConfig
from headrace.curation.recipe import Recipe, load_recipe, recipe_text

SAFE: dict[str, Any] = {
    "job": "job",
    "unsafe_images": "off",
    "input": {"urls": ["list.csv"]},
}


def _recipe(**changes: Any) -> Recipe:
    return build_config(Recipe, {**SAFE, **changes})


def test_the_recipe_as_understood_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = _recipe(
        select=[
            {"step": "rule", "name": "side", "keep": "image_width > 3"},
            {"step": "top_fraction", "score": "a", "fraction": 0.15},
        ]
    )
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"select": [{"step": "unsafe"}]},
        {"annotate": {"unsafe_image": {"model": "m.onnx"}}},
        {
            "annotate": {"unsafe_image": {"model": "m.onnx"}},
            "select": [{"step": "unsafe", "image_threshold": None}],
        },
    ],
)
def test_a_promise_to_remove_unsafe_images_that_cannot_be_kept_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"promises to remove unsafe images.*unsafe_images: off"):
        _recipe(unsafe_images="remove", **changes)


def test_a_recipe_with_model_and_step_may_promise() -> None:
    changes = {"annotate": {"unsafe_image": {"model": "m.onnx"}}, "select": [{"step": "unsafe"}]}
    assert _recipe(unsafe_images="remove", **changes).unsafe_images == "remove"


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), 1.01, -0.1])
def test_a_threshold_that_no_score_can_reach_is_refused(threshold: float) -> None:
    for name in ("image_threshold", "text_threshold"):
        with pytest.raises(ValueError, match=rf"{name}(: input should be a finite number| must be 0 to 1)"):
            _recipe(select=[{"step": "unsafe", name: threshold}])


def test_a_key_at_its_old_place_is_read_and_refused_at_both() -> None:
    old = _recipe(build={"samples_per_shard": 7, "shuffle_window": 2})
    assert old == _recipe(placement={"samples_per_shard": 7, "shuffle_window": 2})
    with pytest.raises(ValueError, match=r"build.samples_per_shard is placement.samples_per_shard now, and both"):
        _recipe(build={"samples_per_shard": 7}, placement={"samples_per_shard": 7})
    with pytest.raises(ValueError, match=r"placement: samples_per_shard must be 1..1000000, got 0"):
        _recipe(build={"samples_per_shard": 0})


def test_blurring_without_finding_faces_is_refused() -> None:
    with pytest.raises(ValueError, match="no faces would be found"):
        _recipe(annotate={"faces": None})
    assert not _recipe(annotate={"faces": None}, build={"blur_faces": False}).build.blur_faces


def test_faces_are_found_and_blurred_unless_the_recipe_says_otherwise() -> None:
    assert _recipe().annotate.faces == FacesConfig(detector="centerface")
    assert _recipe().build.blur_faces


def test_a_promise_to_blur_faces_does_not_stand_on_a_weak_detector_unless_it_says_so() -> None:
    faces = {"detector": "haar"}
    with pytest.raises(ValueError, match=r"promises blurred faces.*models get centerface.*accept_weak: true") as why:
        _recipe(annotate={"faces": faces})
    assert "\n" not in str(why.value)
    for parts in (
        {"annotate": {"faces": {**faces, "accept_weak": True}}},
        {"annotate": {"faces": faces}, "build": {"blur_faces": False}},
        {"annotate": {"faces": {"detector": "yunet", "model": "faces.onnx"}}},
    ):
        assert _recipe(**parts).annotate.faces is not None


@pytest.mark.parametrize("job", ["", " ", "/"])
def test_a_job_that_would_be_the_root_of_the_machine_is_refused(job: str) -> None:
    with pytest.raises(ValueError, match="job must name a folder"):
        _recipe(job=job)


def test_steps_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="'unsafe' is empty or taken"):
        _recipe(select=[{"step": "unsafe"}, {"step": "unsafe"}])


def test_a_job_that_worker_processes_cannot_see_is_refused() -> None:
    with pytest.raises(ValueError, match="memory://job is seen by one process only"):
        _recipe(job="memory://job")
    assert _recipe(job="memory://job", engine={"executor": "inline"}).job == "memory://job"
