"""Formats, sizes, captions and labels of a dataset are what the recipe says; without these keys nothing changes."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace.config import build_config
from headrace.curation.build.config import BuildConfig, LabelsConfig, settings_of
from headrace.curation.build.labels import Labels
from headrace.curation.job import Job
from headrace.curation.needs import check_names
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.shards.dataset import open_dataset
from headrace.shards.images.header import read_header
from headrace.shards.payloads import read_payloads, read_sample
from headrace.shards.tar import scan_tar
from headrace.shards.verify import verify_dataset

MakeJob = Callable[..., Recipe]


def samples(recipe: Recipe) -> list[tuple[dict[str, Any], bytes, dict[str, bytes]]]:
    """Return (index row, image, other members by extension) of every sample."""
    dataset = open_dataset(Job(recipe.job).dataset)
    assert list(verify_dataset(dataset.url)) == []
    found = []
    for shard in range(len(dataset.shards)):
        members: dict[str, dict[str, bytes]] = {}
        for member in scan_tar(dataset.tar_url(shard)):
            key, _, extension = member.name.partition(".")
            span = [(member.offset, member.size)]
            members.setdefault(key, {})[extension] = read_payloads(dataset.tar_url(shard), span)[0]
        for number, row in enumerate(dataset.index(shard).to_pylist()):
            found.append((row, read_sample(dataset, shard, number), members[row["key"]]))
    return found


def test_settings_of_before_give_the_digests_of_before() -> None:
    before = "dataset blur_faces blur_regions jpeg_quality encoding upright failure_budget columns"
    assert list(settings_of(BuildConfig())) == before.split()
    assert settings_of(BuildConfig(longest_side=64))["longest_side"] == 64


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "png"])
def test_every_image_has_the_format_and_at_most_the_size_that_the_recipe_says(
    make_job: MakeJob, image_format: str
) -> None:
    recipe = make_job(format=image_format, longest_side=100, webp_quality=60)
    run_build(recipe)
    plain = make_job("plain")
    run_build(plain)
    before = {row["uid"]: (row, image) for row, image, _ in samples(plain)}
    seen = set()
    for row, image, _ in samples(recipe):
        old, untouched = before[row["uid"]]
        header = read_header(image)
        assert row["format"] == header.format == image_format
        width, height = old["width"], old["height"]
        scale = min(1, 100 / max(width, height))
        assert (row["width"], row["height"]) == (round(width * scale), round(height * scale))
        assert row["sha256"] == old["sha256"]  # of the bytes as fetched
        if scale == 1 and old["format"] == image_format and not row["faces_blurred"]:
            assert image == untouched  # what need not change keeps its bytes
        else:
            assert row["reencoded"]
        seen.add((scale == 1, old["format"] == image_format))
    assert {(True, False), (False, False)} <= seen


def test_the_shorter_side_is_brought_to_the_target_only_where_it_is_longer(make_job: MakeJob) -> None:
    recipe = make_job(shortest_side=64, jpeg_quality=80)
    run_build(recipe)
    assert {min(row["width"], row["height"]) for row, _, _ in samples(recipe)} == {64}
    recipe = make_job("as_they_are", shortest_side=4000)
    run_build(recipe)
    assert {min(row["width"], row["height"]) for row, _, _ in samples(recipe)} == {72}


def test_the_caption_is_of_the_first_column_that_has_one_and_the_others_are_kept(make_job: MakeJob) -> None:
    recipe = make_job(caption=("decode_error", "source", "caption"))
    run_build(recipe)
    for row, _, members in samples(recipe):
        assert row["caption"] == row["source"] == members["txt"].decode()
        assert (row["caption_from"], row["caption_listed"][:9]) == ("source", "a picture")
        assert json.loads(members["json"])["caption_listed"] == row["caption_listed"]


def test_names_become_labels_by_their_place_among_the_classes(make_job: MakeJob) -> None:
    recipe = make_job(labels=LabelsConfig(column="source"))
    run_build(recipe)
    assert open_dataset(Job(recipe.job).dataset).classes == ("source-0", "source-1")
    for row, _, members in samples(recipe):
        assert members["cls"].decode() == str(row["label"])
    given = make_job("given", labels=LabelsConfig(column="source", classes=("source-1", "source-0")))
    run_build(given)
    assert [row["label"] for row, *_ in samples(given)] == [1 - row["label"] for row, *_ in samples(recipe)]
    unknown = make_job("unknown", failure_budget=1.0, labels=LabelsConfig(column="source", classes=("source-1",)))
    summary = run_build(unknown)
    assert 0 < summary.num_failed < summary.num_failed + summary.num_samples
    with pytest.raises(ValueError, match="aspect is of type float"):
        run_build(make_job("wrong", labels=LabelsConfig(column="aspect")))


def test_several_labels_stand_in_the_index_and_the_json(make_job: MakeJob) -> None:
    recipe = make_job(labels=LabelsConfig(column="source", separator="-"))
    run_build(recipe)
    assert open_dataset(Job(recipe.job).dataset).classes == ("0", "1", "source")
    for row, _, members in samples(recipe):
        assert row["labels"] in ([0, 2], [1, 2])
        assert json.loads(members["json"])["labels"] == row["labels"]
        assert row["label"] is None
        assert "cls" not in members


@pytest.mark.parametrize(
    ("value", "several", "expected"),
    [
        (None, False, {"label": None}),
        (7, False, {"label": 7}),
        ([3, 1, 3], True, {"label": None, "labels": [1, 3]}),
        (None, True, {"label": None, "labels": None}),
        (["b", " a ", ""], True, {"label": None, "labels": [0, 1]}),
    ],
)
def test_numbers_names_and_lists_of_them_are_labels(value: Any, several: bool, expected: dict[str, Any]) -> None:
    assert Labels(LabelsConfig(column="x"), ("a", "b"), several).columns(value) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"longest_side": 512, "shortest_side": 256}, "give one of them"),
        ({"longest_side": 5}, r"longest_side must be 0 or 16\.\.16383"),
        ({"format": "avif"}, "format"),
        ({"webp_quality": 101}, "webp_quality"),
        ({"caption": []}, "caption must name columns"),
        ({"labels": {"classes": ["a"]}}, "need a column"),
        ({"labels": {"column": "x", "classes": ["a", "a"]}}, "twice"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_recipe_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(BuildConfig, settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ({"caption": ("alt", "caption")}, "build.caption: nothing makes 'alt'"),
        ({"caption": ("capton",)}, r"build.caption: nothing makes 'capton'.*; did you mean 'caption'\? known columns"),
        ({"labels": LabelsConfig(column="cls")}, "build.labels.column: nothing makes 'cls'"),
        ({"labels": LabelsConfig(column="face_boxes")}, "face_boxes is of type"),
        ({"columns": ("caption_listed",), "caption": ("uid",)}, "a column 'caption_listed' of its own"),
    ],
)
def test_columns_that_nothing_makes_are_refused_before_the_fetch(
    make_job: MakeJob, build: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_names(make_job(**build), ("fetch", "annotate", "select", "build"))
