"""Validation with other prefixes than training's, and its losses place by place."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.pipeline import open_stream
from headrace.train.config import RunConfig, load_run, run_digest
from headrace.train.evaluate.passes import same_reading
from headrace.train.evaluate.validation import losses_by_place, validation_values
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.objectives.build import build_objective
from headrace.train.optim.ema import EmaConfig
from headrace.train.parallel.ranks import ALONE
from headrace.train.runs.metrics import read_metrics

SIZE = {"model": "tiny", "patch": 4, "width": 16, "depth": 1, "heads": 2, "head_width": 16, "head_depth": 1}
PATCHES = 16


@pytest.fixture
def config(run_file: Callable[..., Path], other_pictures: str) -> Callable[..., RunConfig]:
    """Return a function that makes a run with changes of its validation and its objective."""

    def make(objective: dict[str, Any] | None = None, **validation: Any) -> RunConfig:
        kind = {"kind": "aim", **SIZE, **(objective or {})}
        return load_run(run_file(objective=kind, validation={"dataset": other_pictures, "every": 1, **validation}))

    return make


def built(run: RunConfig) -> Any:
    return build_objective(run.objective, image_size=run.mixture.image_size, seed=run.seed)


def pictures_of(run: RunConfig) -> list[Any]:
    """The batches of a validation, read once more."""
    assert run.validation is not None
    mixture = same_reading(run.mixture, run.validation.dataset, interpolation=run.validation.interpolation)
    stream = open_stream(mixture, global_batch=run.global_batch, once=True)
    with contextlib.closing(stream):
        return list(stream)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["causal", 1, 7, 15])
def test_a_fixed_prefix_is_that_of_every_picture(config: Callable[..., RunConfig], prefix: str | int) -> None:
    """Summed picture by picture, patch by patch; a causal one predicts all patches but the first, and is never NaN."""
    run = config(prefix=prefix, by_place=True)
    objective = built(run)
    values = validation_values(objective, run, ALONE)
    places = losses_by_place(objective, run, ALONE)
    first = 1 if prefix == "causal" else int(prefix)
    sums, terms = 0.0, 0
    for batch in pictures_of(run):
        for row in range(len(batch.position)):
            if batch.valid[row]:
                objective.fix_prefix(first)
                sums += float(objective(batch.rows(slice(row, row + 1)))[0])
                terms += PATCHES - first
    assert values["loss"] == pytest.approx(sums / terms, rel=1e-5)
    assert places["terms"] == [0] * first + [45] * (PATCHES - first)
    assert places["losses"][:first] == [None] * first
    shown = [mean for mean in places["losses"] if mean is not None]
    assert sum(shown) / len(shown) == pytest.approx(values["loss"], rel=1e-6)


@torch.no_grad()
def test_a_prefix_of_validation_is_not_that_of_training(config: Callable[..., RunConfig]) -> None:
    run = config(prefix="causal")
    objective = built(run)
    assert isinstance(objective, Aim)
    batch = pictures_of(run)[0]
    before = objective.prefixes(batch).tolist()
    validation_values(objective, run, ALONE)
    assert objective.prefixes(batch).tolist() == before
    assert len(set(before)) > 1


@torch.no_grad()
@pytest.mark.parametrize("kind", [{}, {"order": "spiral"}, {"attention": "causal"}, {"kind": "masked"}])
def test_losses_by_place_are_the_loss_apart(config: Callable[..., RunConfig], kind: dict[str, Any]) -> None:
    run = config(kind, by_place=True)
    objective = built(run)
    loss = validation_values(objective, run, ALONE)["loss"]
    places = losses_by_place(objective, run, ALONE)
    pairs = [(mean, count) for mean, count in zip(places["losses"], places["terms"], strict=True) if count]
    assert sum(mean * count for mean, count in pairs) / sum(count for _, count in pairs) == pytest.approx(loss)  # type: ignore[operator]
    assert len(places["terms"]) == PATCHES
    # A spiral ends in the corner at the top left, a raster at the bottom right: all of the last are predicted.
    assert places["terms"][-1] == 45 or "kind" in kind


def test_a_run_writes_them_beside_each_validation_also_where_it_was_killed_between(
    config: Callable[..., RunConfig],
) -> None:
    run = dataclasses.replace(config(by_place=True, samples=20), steps=2, log_every=10)
    train(run)
    file = Path(run.out) / "metrics.jsonl"
    lines = [line for line in read_metrics(file) if line["event"] != "train"]
    assert [(line["event"], line["step"]) for line in lines] == [
        (event, step) for step in (0, 1, 2) for event in ("validation", "loss_by_place")
    ]
    whole = file.read_text()
    file.write_text("".join(line + "\n" for line in whole.splitlines()[:-1]))
    train(run)
    assert [line for line in read_metrics(file) if line["event"] != "train"] == lines


def test_they_are_those_of_the_weights_where_the_run_keeps_an_average(config: Callable[..., RunConfig]) -> None:
    train(dataclasses.replace(run := config(by_place=True), steps=3, ema=EmaConfig(decay=0.5)))
    lines = read_metrics(Path(run.out) / "metrics.jsonl")
    validated, places = ([line for line in lines if line["event"] == name] for name in ("validation", "loss_by_place"))
    assert validated[-1]["loss"] != pytest.approx(validated[-1]["ema_loss"], rel=1e-3)
    for line, of_places in zip(validated, places, strict=True):
        pairs = [pair for pair in zip(of_places["losses"], of_places["terms"], strict=True) if pair[1]]
        assert line["loss"] == pytest.approx(sum(a * b for a, b in pairs) / sum(b for _, b in pairs), rel=1e-5)


def test_crops_may_be_resized_as_published(config: Callable[..., RunConfig]) -> None:
    """AIM's evaluation is Resize(256) and CenterCrop(224), bicubic."""
    assert same_reading(
        config().mixture, "u", center_fraction=0.875, interpolation="bicubic"
    ).augment.interpolation == ("bicubic")
    losses = []
    for interpolation in ("bilinear", "bicubic"):
        run = config({"targets": "pixels"}, interpolation=interpolation, center_fraction=0.875)
        losses.append(validation_values(built(run), run, ALONE)["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize(
    ("objective", "validation", "message"),
    [
        ({}, {"prefix": 0}, r"validation\.prefix must be 1\.\.15, as a picture has 16 patches, got 0"),
        ({}, {"prefix": 16}, r"validation\.prefix must be 1\.\.15"),
        ({}, {"prefix": "none"}, r"validation: prefix must be random, causal or a number of patches, got 'none'"),
        ({"kind": "masked"}, {"prefix": "causal"}, r"validation\.prefix is for aim, and this is masked; leave it out"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(
    config: Callable[..., RunConfig], objective: dict[str, Any], validation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(objective, **validation)


def test_places_of_an_objective_without_them_are_refused(run_file: Callable[..., Path], other_pictures: str) -> None:
    validation = {"dataset": other_pictures, "every": 1, "by_place": True}
    path = run_file(objective={"kind": "supervised", "num_classes": 3, "patch": 4}, validation=validation)
    with pytest.raises(ValueError, match=r"validation\.by_place is for aim and masked, and this is supervised"):
        load_run(path)


def test_an_option_is_in_the_digest_where_it_plays_a_part(config: Callable[..., RunConfig]) -> None:
    digests = {run_digest(config(change)) for change in ({}, {"order": "spiral"}, {"targets": "pixels"})}
    assert len(digests) == 3
    assert run_digest(config({"order": "raster", "norm_eps": 1e-6})) == run_digest(config())
