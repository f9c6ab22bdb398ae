"""The stage: what is written, what is not written again, what a worker or a batch may not change."""

import hashlib
import os
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.curation.annotate import batches as batches_module
from headrace.curation.annotate.annotators import ANNOTATORS
from headrace.curation.annotate.annotators.faces import FacesConfig
from headrace.curation.annotate.annotators.unsafe_text import UnsafeTextConfig
from headrace.curation.annotate.config import AnnotateConfig, annotate_config
from headrace.curation.annotate.tables import annotation_folders, open_annotation
from headrace.curation.annotate.unit import AnnotateUnit, annotate_shard
from headrace.curation.job import Job
from headrace.curation.stages import annotate as run_annotate
from headrace.curation.stages import plan_annotate
from headrace.shards.errors import ShardError

# Columns of docs/architecture.md.
CONTRACT = {
    "image": [
        *("image_width", "image_height", "aspect", "image_format", "orientation", "decode_error"),
        *("entropy", "mean_brightness", "greyscale", "single_colour", "has_alpha", "num_frames"),
        *("chroma_sampling", "bytes_per_pixel", "known_placeholder"),
    ],
    "hashes": ["sha256", "pdq", "pdq_trimmed", "pdq_centre", "pdq_quality"],
    "hash_variants": [
        *("pdq_mirrored", "pdq_trimmed_mirrored", "pdq_centre_mirrored"),
        *(f"pdq_crop_{number}" for number in range(9)),
        *(f"pdq_turn_{number}" for number in range(4)),
    ],
    "quality": [
        *("file_bytes", "content_width", "content_height", "border"),
        *("colourfulness", "sharpness", "encoded_quality", "picture_quality", "earlier_quality"),
        *("moved_since", "fine_detail"),
    ],
    "caption": [
        *("caption_chars", "caption_words", "caption_emails", "caption_phones", "caption_urls", "caption_repetition")
    ],
    "caption_minhash": ["caption_minhash"],
    "language": ["language", "language_score"],
    "clip": ["clip_score", "clip_embedding"],
    "aesthetic": ["aesthetic_score"],
    "copy_embedding": ["copy_embedding"],
    "unsafe_text": ["unsafe_text_score", "unsafe_text_words"],
    "unsafe_image": ["unsafe_image_score"],
    "faces": ["num_faces", "face_boxes", "face_scores"],
    "regions": ["num_regions", "region_boxes", "region_scores", "region_labels"],
    "c2pa": ["c2pa_training", "c2pa_evidence", "c2pa_error"],
}
MORE = {"unsafe_text": UnsafeTextConfig()}
FULL = {**MORE, "faces": FacesConfig(detector="haar")}


def read_annotations(job: Job, config: AnnotateConfig, shard: str) -> pa.Table:
    """Return `key` and the columns of every annotator for one raw shard."""
    columns = {}
    for folder in annotation_folders(config, job).values():
        table = open_annotation(folder, shard).read()
        assert columns.setdefault("key", table["key"]).equals(table["key"])
        columns |= {name: table[name] for name in table.column_names}
    return pa.table(columns)


def test_columns_are_those_of_the_contract():
    assert {name: annotator.columns.names for name, annotator in ANNOTATORS.items()} == CONTRACT
    assert all(name == annotator.name for name, annotator in ANNOTATORS.items())


def test_every_fetched_row_has_a_row_in_raw_order(make_recipe):
    recipe = make_recipe(**FULL)
    summary = run_annotate(recipe)
    assert (summary.shards, summary.samples, summary.tables_written) == (3, 27, 18)
    assert summary.decode_errors == {"bomb": 3, "not-image": 3, "truncated": 3}
    assert str(summary).startswith("27 samples in 3 shards, 18 tables written; 9 images do not decode")
    table = read_annotations(Job(recipe.job), recipe.annotate, "00001")
    assert table.column("key").to_pylist() == [f"00001{place:04d}" for place in (0, 1, 3, 4, 5, 6, 7, 8, 9)]
    rows = {row["key"][-1]: row for row in table.to_pylist()}
    assert [rows[place]["decode_error"].partition(":")[0] for place in "345"] == ["truncated", "not-image", "bomb"]
    for place in "345":
        kept = (
            "key",
            "sha256",
            "decode_error",
            *CONTRACT["caption"],
            "unsafe_text_score",
            "unsafe_text_words",
        )
        assert {name for name, value in rows[place].items() if value is not None} == set(kept)
    assert rows["6"]["image_format"] == "png"
    assert (rows["6"]["image_width"], rows["6"]["image_height"]) == (144, 80)
    assert rows["6"]["aspect"] == pytest.approx(1.8)
    assert rows["7"]["caption_chars"] is None
    assert rows["0"]["caption_words"] == 3


def test_a_missing_sha256_is_computed_from_the_stored_bytes(make_recipe):
    from headrace.shards.payloads import read_payloads
    from headrace.shards.tar import scan_tar

    recipe = make_recipe(shards=1)
    run_annotate(recipe)
    url = f"{recipe.job}/raw/00000.tar"
    (member,) = [member for member in scan_tar(url) if member.name == "000000008.jpg"]
    (data,) = read_payloads(url, [(member.offset, member.size)])
    rows = read_annotations(Job(recipe.job), recipe.annotate, "00000").to_pylist()
    assert rows[-2]["key"] == "000000008"
    assert rows[-2]["sha256"] == hashlib.sha256(data).hexdigest()


def test_images_and_decode_errors_are_counted_while_a_shard_is_done(make_recipe):
    recipe = make_recipe(shards=2, workers=2)
    seen = []
    summary = run_annotate(recipe, on_progress=seen.append)
    assert seen[-1].counts == {"images": summary.samples}
    assert seen[-1].expected == {"images": summary.samples}
    assert seen[-1].failures == summary.decode_errors != {}


def test_a_second_run_writes_nothing(make_recipe, annotation_files):
    recipe = make_recipe()
    run_annotate(recipe)
    before = annotation_files(recipe)
    assert run_annotate(recipe).tables_written == 0
    assert annotation_files(recipe) == before
    assert all(": 0 of 3 shards" in line for line in plan_annotate(recipe))


def test_what_a_lost_machine_left_is_gone_at_the_end(make_recipe, annotation_files):
    recipe = make_recipe("lost")

    def lose(_) -> None:
        for folder in Path(recipe.job, "annotations").iterdir():
            (folder / ".00000.parquet.lost.tmp").write_bytes(b"half")
            (folder / "commits").mkdir(exist_ok=True)
            (folder / "commits" / ".00000.json.lost.tmp").write_bytes(b"half")

    run_annotate(recipe, on_progress=lose)
    run_annotate(whole := make_recipe("whole"))
    assert annotation_files(recipe) == annotation_files(whole)


def test_a_new_annotator_leaves_the_old_tables_alone(make_recipe, annotation_files):
    recipe = make_recipe()
    run_annotate(recipe)
    before = annotation_files(recipe)
    root = Path(recipe.job, "annotations")
    times = {name: (root / name).stat().st_mtime_ns for name in before}
    more = make_recipe(**FULL)
    assert [line.split(" in ")[0] for line in plan_annotate(more)] == [
        "image: 0 of 3 shards to do",
        "hashes: 0 of 3 shards to do",
        "quality: 0 of 3 shards to do",
        "caption: 0 of 3 shards to do",
        "unsafe_text: 3 of 3 shards to do",
        "faces: 3 of 3 shards to do",
    ]
    assert run_annotate(more).tables_written == 6
    after = annotation_files(more)
    assert {name: after[name] for name in before} == before
    assert {name: (root / name).stat().st_mtime_ns for name in before} == times


@pytest.mark.parametrize("name", [name for name, kind in ANNOTATORS.items() if kind.earlier])
def test_a_job_goes_on_with_the_tables_of_an_earlier_version(name, make_recipe, annotation_files, monkeypatch):
    kind = ANNOTATORS[name]
    columns = kind.earlier[max(kind.earlier)]
    with monkeypatch.context() as patch:
        # As the headrace of that time was: it knew that version only, and these columns.
        patch.setattr(kind, "version", max(kind.earlier))
        patch.setattr(kind, "earlier", {})
        patch.setattr(kind, "columns", pa.schema([kind.columns.field(column) for column in columns]))
        run_annotate(make_recipe(shards=2, **MORE))
        before = annotation_files(make_recipe(shards=2, **MORE))
    recipe = make_recipe(shards=2, **MORE)
    assert all(": 0 of 2 shards" in line for line in plan_annotate(recipe))
    assert run_annotate(recipe).tables_written == 0
    assert annotation_files(recipe) == before
    grown = make_recipe(shards=3, **MORE)
    assert run_annotate(grown).tables_written == len(annotation_folders(grown.annotate, Job(grown.job)))
    folder = annotation_folders(grown.annotate, Job(grown.job))[name]
    assert [field.name for field in open_annotation(folder, "00002").schema] == ["key", *columns]
    assert any(f"as version {max(kind.earlier)} had it" in line for line in plan_annotate(grown))
    # Without them it is made anew, with every column.
    import shutil

    shutil.rmtree(folder)
    assert run_annotate(grown).tables_written == 3
    newest = annotation_folders(grown.annotate, Job(grown.job))[name]
    assert [field.name for field in open_annotation(newest, "00002").schema] == ["key", *kind.columns.names]


def test_new_raw_shards_are_all_that_is_done(make_recipe, annotation_files):
    recipe = make_recipe(shards=2)
    run_annotate(recipe)
    before = annotation_files(recipe)
    grown = make_recipe(shards=3)
    assert run_annotate(grown).tables_written == 4
    after = annotation_files(grown)
    assert {name: after[name] for name in before} == before


def test_other_settings_have_another_folder(make_recipe, tmp_path):
    (tmp_path / "words.txt").write_text("scene\n")
    recipe = make_recipe(shards=1, unsafe_text=UnsafeTextConfig())
    other = make_recipe(shards=1, unsafe_text=UnsafeTextConfig(lexicon=str(tmp_path / "words.txt")))
    run_annotate(recipe)
    assert run_annotate(other).tables_written == 1
    job = Job(recipe.job)
    for config, score in ((recipe.annotate, 0.0), (other.annotate, 0.5)):
        assert read_annotations(job, config, "00000").column("unsafe_text_score")[0].as_py() == score
    (tmp_path / "words.txt").write_text("number\nscene\n")
    assert (
        annotation_folders(other.annotate, job)["unsafe_text"] not in annotation_folders(recipe.annotate, job).values()
    )
    with pytest.raises(FileNotFoundError):
        read_annotations(job, other.annotate, "00000")


def test_outputs_depend_on_neither_workers_nor_batches(make_recipe, annotation_files, monkeypatch):
    plain = make_recipe("plain", **MORE)
    run_annotate(plain)
    expected = annotation_files(plain)
    for workers in (1, 2):
        other = make_recipe(f"workers-{workers}", workers=workers, batch_size=3, **MORE)
        run_annotate(other)
        assert annotation_files(other) == expected
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", 20_000)
    monkeypatch.setattr(batches_module, "MAX_BATCH_BYTES", 9_000)
    small = make_recipe("small", **MORE)
    run_annotate(small)
    assert annotation_files(small) == expected


def test_batches_are_bounded_in_rows_bytes_and_pixels(make_recipe, monkeypatch):
    recipe = make_recipe(shards=1)
    rows = [batches_module.FetchedRow(f"00000{place:04d}", None, None) for place in range(10)]
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", 2 * 100 * 80)
    sizes = []
    for batch in batches_module.batches_with_images(rows, f"{recipe.job}/raw/00000.tar", 4):
        held = sum(pixels.size // 3 for pixels in batch.images if pixels is not None)
        assert held <= 2 * 100 * 80 or sum(pixels is not None for pixels in batch.images) == 1
        sizes.append(len(batch.keys))
    assert max(sizes) <= 4
    assert sum(sizes) == 10
    assert len(sizes) > 3


def test_a_row_without_its_image_is_named_not_lost(make_recipe):
    recipe = make_recipe(shards=1)
    rows = [batches_module.FetchedRow("nowhere", "a caption", None)]
    (batch,) = batches_module.batches_with_images(rows, f"{recipe.job}/raw/00000.tar", 4)
    assert batch.errors == ["missing: the tar holds no image of this key"]
    assert batch.sha256 == [None]


def test_captions_alone_do_not_read_the_tar(make_recipe):
    recipe = make_recipe(shards=1, image=None, hashes=None, quality=None)
    Path(recipe.job, "raw", "00000.tar").unlink()
    assert run_annotate(recipe).samples == 9


def test_a_damaged_tar_stops_the_run_and_is_named(make_recipe):
    recipe = make_recipe(shards=2)
    tar = Path(recipe.job, "raw", "00001.tar")
    tar.write_bytes(tar.read_bytes()[:-12000])
    with pytest.raises(ShardError, match=r"00001\.tar"):
        run_annotate(recipe)


def test_without_raw_shards_the_run_says_what_to_do(make_recipe):
    recipe = make_recipe(shards=0)
    with pytest.raises(ValueError, match="run headrace fetch first"):
        run_annotate(recipe)
    assert "no raw shards yet" in plan_annotate(recipe)[0]


def test_a_missing_model_is_named_before_anything_runs(make_recipe):
    from headrace.curation.annotate.annotators.unsafe_image import UnsafeImageConfig

    recipe = make_recipe(unsafe_image=UnsafeImageConfig(model="nowhere.onnx"))
    for function in (plan_annotate, run_annotate):
        with pytest.raises(ValueError, match=r"model file nowhere\.onnx cannot be read"):
            function(recipe)
    assert not Path(recipe.job, "annotations").exists()


def test_a_worker_with_another_model_file_refuses(make_recipe):
    recipe = make_recipe(shards=1)
    unit = AnnotateUnit(Job(recipe.job), "00000", (("caption", "0" * 64),), recipe.annotate)
    with pytest.raises(ValueError, match="than the run was planned with"):
        annotate_shard(unit)


def test_a_changed_table_is_found_when_it_is_read(make_recipe):
    recipe = make_recipe(shards=1)
    run_annotate(recipe)
    folder = Path(annotation_folders(recipe.annotate, Job(recipe.job))["caption"])
    table = folder / "00000.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(table, 0o644)
    table.write_bytes(data)
    with pytest.raises(ShardError, match="sha256"):
        read_annotations(Job(recipe.job), recipe.annotate, "00000")


def test_a_table_that_is_gone_is_made_again(make_recipe):
    recipe = make_recipe(shards=2)
    run_annotate(recipe)
    folder = Path(annotation_folders(recipe.annotate, Job(recipe.job))["caption"])
    before = {path.name: path.read_bytes() for path in folder.rglob("*.*")}
    (folder / "00001.parquet").unlink()
    # A device that differs in the last bits would write other bytes than the old record names.
    (folder / "commits" / "00001.json").unlink()
    (folder / "commits" / "00001.json").write_text('{"sha256": "of other bytes"}')
    assert any("caption: 1 of 2 shards to do" in line for line in plan_annotate(recipe))
    assert run_annotate(recipe).tables_written == 1
    assert {path.name: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_an_empty_shard_has_empty_tables_of_the_same_columns(make_recipe):
    import pyarrow.parquet as pq

    recipe = make_recipe(shards=1, **FULL)
    raw = Path(recipe.job, "raw", "00000.parquet")
    table = pq.read_table(raw)
    failed = pa.array(["failed_to_download"] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("status"), "status", failed), raw)
    assert run_annotate(recipe).samples == 0
    read = read_annotations(Job(recipe.job), recipe.annotate, "00000")
    assert len(read) == 0
    assert read.column_names == [
        "key",
        *(name for key in ("image", "hashes", "quality", "caption", *FULL) for name in CONTRACT[key]),
    ]


def test_a_recipe_that_runs_nothing_is_refused():
    with pytest.raises(ValueError, match="no annotator at all"):
        annotate_config(image=None, hashes=None, quality=None, caption=None, faces=None)


def test_the_folder_says_what_it_was_made_with(make_recipe):
    import json

    recipe = make_recipe(shards=1, **FULL)
    run_annotate(recipe)
    folders = annotation_folders(recipe.annotate, Job(recipe.job))
    known = json.loads(Path(folders["faces"], "annotator.json").read_text())
    assert known["settings"] == {"detector": "haar"}
    assert len(known["files"]["model"]) == 64
    digest = hashlib.sha256(Path(folders["faces"], "annotator.json").read_bytes().rstrip(b"\n")).hexdigest()
    assert folders["faces"].endswith(f"faces-{digest[:8]}")


@pytest.mark.parametrize(("package", "extra"), [("open_clip", "clip"), ("onnxruntime", "unsafe_image")])
def test_a_missing_package_is_named_and_select_needs_none(package, extra, make_recipe, tmp_path, monkeypatch):
    from headrace.curation.annotate.annotators.clip import ClipScoreConfig
    from headrace.curation.annotate.annotators.unsafe_image import UnsafeImageConfig

    monkeypatch.setitem(sys.modules, package, None)
    for name in ("weights.pt", "model.json", "model.onnx"):
        (tmp_path / name).write_bytes(b"{}")
    configs = {
        "clip": ClipScoreConfig(model=str(tmp_path / "model.json"), checkpoint=str(tmp_path / "weights.pt")),
        "unsafe_image": UnsafeImageConfig(model=str(tmp_path / "model.onnx")),
    }
    recipe = make_recipe(shards=1, **{extra: configs[extra]})
    assert extra in annotation_folders(recipe.annotate, Job(recipe.job))
    with pytest.raises(ModuleNotFoundError) as caught:
        run_annotate(recipe)
    assert caught.value.name == package
    assert pickle.loads(pickle.dumps(caught.value)).name == package


def test_raw_shards_of_img2dataset_are_annotated_as_they_are(make_recipe, tmp_path):
    import pyarrow.parquet as pq

    from headrace.curation.raw.img2dataset import adopt_raw

    own = make_recipe("own", shards=1)
    run_annotate(own)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    raw = Path(own.job, "raw")
    (foreign / "00000.tar").write_bytes((raw / "00000.tar").read_bytes())
    (foreign / "00000_stats.json").write_text("{}")
    table = pq.read_table(raw / "00000.parquet").select(["key", "url", "caption", "status", "error_message", "sha256"])
    pq.write_table(table, foreign / "00000.parquet")
    other = make_recipe("other", shards=0)
    adopt_raw(Job(other.job), str(foreign))
    run_annotate(other)
    read = [read_annotations(Job(recipe.job), recipe.annotate, "00000") for recipe in (own, other)]
    assert read[0].equals(read[1])
