"""img2dataset's command lines become recipes; no flag is dropped without a word."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.curation.fetch.img2dataset.flags import DEFAULTS, MAPPINGS, map_flags, parse_flags
from headrace.curation.recipe import load_recipe
from headrace.curation.stages import recipe_of_img2dataset

DATACOMP = (
    "img2dataset --url_list meta --output_folder shards --processes_count 16 --thread_count 128 --image_size 512 "
    "--resize_mode keep_ratio_largest --resize_only_if_bigger True --encode_format jpg --output_format webdataset "
    "--input_format parquet --url_col url --caption_col text --bbox_col face_bboxes --number_sample_per_shard 10000 "
    "--oom_shard_count 8 --retries 2 --enable_wandb False --save_additional_columns '[\"uid\"]'"
)


def test_every_flag_of_img2dataset_is_known_with_its_default() -> None:
    found = importlib.util.find_spec("img2dataset")
    if found is not None and found.origin is not None:  # its source, as importing it takes seconds
        tree = ast.parse((Path(found.origin).parent / "main.py").read_text())
        download = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "download")
        names = [argument.arg for argument in download.args.args]
        values = [ast.unparse(value) for value in download.args.defaults]
        told = dict(zip(names[-len(values) :], values, strict=True))
        own = {name: "float('inf')" if value == float("inf") else repr(value) for name, value in DEFAULTS.items()}
        assert {"url_list": "None", **told} == own
    assert set(MAPPINGS) == set(DEFAULTS)


UNLIKE = {
    "url_list": "other.csv",
    "output_folder": "elsewhere",
    "image_size": 300,
    "processes_count": 3,
    "resize_mode": "keep_ratio",
    "resize_only_if_bigger": True,
    "upscale_interpolation": "cubic",
    "downscale_interpolation": "linear",
    "encode_quality": 80,
    "encode_format": "webp",
    "skip_reencode": False,
    "output_format": "tfrecord",
    "input_format": "csv",
    "url_col": "U",
    "caption_col": "C",
    "bbox_col": "B",
    "thread_count": 9,
    "number_sample_per_shard": 50,
    "extract_exif": False,
    "save_additional_columns": ["a", "b"],
    "timeout": 3,
    "enable_wandb": True,
    "wandb_project": "mine",
    "oom_shard_count": 6,
    "compute_hash": "md5",
    "verify_hash": ["m", "md5"],
    "distributor": "ray",
    "subjob_size": 5,
    "retries": 4,
    "disable_all_reencoding": True,
    "min_image_size": 20,
    "max_image_area": 1e6,
    "max_aspect_ratio": 3,
    "incremental_mode": "extend",
    "max_shard_retry": 2,
    "user_agent_token": "me",
    "disallowed_header_directives": [],
}


@pytest.mark.parametrize("flag", sorted(DEFAULTS))
def test_a_flag_changes_the_recipe_or_is_named_with_the_reason(flag: str) -> None:
    base: dict[str, Any] = {"url_list": "list.csv", "input_format": "csv"}
    before, after = map_flags(base), map_flags({**base, flag: UNLIKE[flag]})
    if flag == "input_format":
        before = map_flags({**base, flag: "txt"})
    if flag == "output_folder":
        assert "job: elsewhere" in recipe_of_img2dataset("list.csv --output_folder elsewhere")
        return
    parts = [(mapped.input, mapped.fetch, mapped.engine) for mapped in (before, after)]
    assert parts[0] != parts[1] or flag in after.notes, flag


def test_the_command_of_datacomp_is_a_recipe_that_loads(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["fetch", "--from-img2dataset", DATACOMP])
    assert told.exit_code == 0, told.output
    (tmp_path / "recipe.yaml").write_text(told.output)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.job, recipe.input.urls, recipe.input.format) == ("shards", ("meta",), "parquet")
    assert (recipe.input.caption_column, recipe.input.bbox_column, recipe.input.columns) == (
        "text", "face_bboxes", ()
    )  # fmt: skip
    fetch = recipe.fetch
    assert (fetch.resize, fetch.image_size, fetch.resize_only_if_bigger) == ("keep_ratio_largest", 512, True)
    assert (fetch.concurrency, fetch.retries, fetch.exif, fetch.output_format) == (128, 2, True, "webdataset")
    assert recipe.engine.workers == 16
    for named in ("# --enable_wandb: not supported", "# --oom_shard_count: not supported", "# --bbox_col: sigma"):
        assert named in told.output


def test_values_are_read_as_fire_reads_them(tmp_path: Path) -> None:
    found = parse_flags(
        "a.txt --image-size=3 --noextract_exif --skip_reencode --save_additional_columns=[a,b] --timeout 2"
    )
    assert found == {
        "url_list": "a.txt",
        "image_size": 3,
        "extract_exif": False,
        "skip_reencode": True,
        "save_additional_columns": ["a", "b"],
        "timeout": 2,
    }
    assert parse_flags("--max_image_area inf")["max_image_area"] == float("inf")
    (tmp_path / "lists").mkdir()
    text = recipe_of_img2dataset(f"--url_list {tmp_path}/lists --input_format csv.gz")
    assert yaml.safe_load(text)["input"]["urls"] == [f"{tmp_path}/lists/*.csv.gz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--url_lst a", "unknown flag '--url_lst'"),
        ("--image_size 3", "url_list is missing"),
        ("a --image_size 3 --image_size 4", "given twice"),
        ("a --resize_mode twist", "resize_mode cannot be 'twist'"),
        ("a --output_format zip", "output_format cannot be 'zip'"),
        ("a --image_size big", "image_size"),
        ("a --compute_hash sha1", "compute_hash cannot be 'sha1'"),
        ("a --retries many", "retries cannot be 'many'"),
        ("a --verify_hash md5", "verify_hash"),
        ("a 'b", "No closing quotation"),
    ],
)
def test_what_img2dataset_would_not_take_is_one_line(arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of_img2dataset(arguments)
