"""The recipe of DFN-2B is the real one, and dotted overrides reach all that a user must give."""

from pathlib import Path

from headrace.curation.recipe import load_recipe
from headrace.curation.select.steps import Decontaminate, NearDuplicates, TopFraction

RECIPE = Path(__file__).parents[2] / "examples" / "dfn2b.yaml"


def test_the_recipe_keeps_the_share_of_the_paper_and_its_order() -> None:
    recipe = load_recipe(RECIPE)
    steps = {type(step): place for place, step in enumerate(recipe.select)}
    cut = next(step for step in recipe.select if isinstance(step, TopFraction))
    assert (cut.fraction, cut.of, cut.score) == (0.15, "input", "clip_score")
    assert steps[Decontaminate] < steps[TopFraction] < steps[NearDuplicates]
    assert recipe.unsafe_images == "remove"
    assert recipe.build.blur_faces
    assert recipe.annotate.faces is not None
    assert recipe.annotate.faces.detector == "yunet"


def test_models_and_lists_are_given_by_overrides() -> None:
    recipe = load_recipe(
        RECIPE,
        [
            "job=s3://bucket/job",
            'input.urls=["a.parquet", "b.parquet"]',
            "annotate.clip.checkpoint=other.safetensors",
            "annotate.unsafe_image.model=other.onnx",
            "select.top_fraction.fraction=0.3",
        ],
    )
    assert recipe.job == "s3://bucket/job"
    assert recipe.input.urls == ("a.parquet", "b.parquet")
    assert recipe.annotate.clip is not None
    assert recipe.annotate.clip.checkpoint == "other.safetensors"
    assert next(step for step in recipe.select if isinstance(step, TopFraction)).fraction == 0.3
