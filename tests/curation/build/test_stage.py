"""build writes what the ledger says, the same bytes always, and says what it could not write."""

import dataclasses
import gc
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from headrace.curation.annotate.annotators.faces import FacesConfig
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import digest_of, latest_decision
from headrace.curation.recipe import Recipe
from headrace.curation.select.steps import Rule
from headrace.curation.stages import build as run_build
from headrace.curation.stages import plan_build
from headrace.shards.dataset import open_dataset
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import ImageHeader, read_header
from headrace.shards.payloads import read_payloads, read_sample
from headrace.shards.progress import Progress
from headrace.shards.tar import scan_tar
from headrace.shards.units import EngineConfig
from headrace.shards.verify import verify_dataset

MakeJob = Callable[..., Recipe]
SECRET = b"GPS 51.5007 N"


def digests(folder: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def index_rows(recipe: Recipe) -> list[dict[str, Any]]:
    dataset = open_dataset(Job(recipe.job).dataset)
    return [row for number in range(len(dataset.shards)) for row in dataset.index(number).to_pylist()]


def ledger_rows(recipe: Recipe) -> list[dict[str, Any]]:
    return pq.read_table(latest_decision(Job(recipe.job)).ledger.table).to_pylist()


def raw_payloads(recipe: Recipe) -> dict[str, bytes]:
    result = {}
    for tar in Path(Job(recipe.job).raw).glob("*.tar"):
        for member in scan_tar(str(tar)):
            if not member.name.endswith(("txt", "json")):
                result[member.name.split(".")[0]] = read_payloads(str(tar), [(member.offset, member.size)])[0]
    return result


def test_every_kept_row_stands_where_the_ledger_says(make_job: MakeJob) -> None:
    recipe = make_job()
    summary = run_build(recipe)
    kept = {f"{row['out_shard']}{row['out_index']:06d}": row for row in ledger_rows(recipe) if row["kept"]}
    built = {row["key"]: row for row in index_rows(recipe)}
    assert built.keys() == kept.keys()
    assert summary.num_samples == len(kept) > 15
    assert summary.num_failed == 0
    for key, row in built.items():
        assert row["uid"] == kept[key]["uid"]
        assert row["url"] == kept[key]["url"]
    assert list(verify_dataset(Job(recipe.job).dataset)) == []


def test_rows_are_counted_while_a_shard_is_built(make_job: MakeJob) -> None:
    seen: list[Progress] = []
    recipe = make_job(workers=2)
    summary = run_build(recipe, on_progress=seen.append)
    assert seen[-1].counts["rows"] == seen[-1].expected["rows"] == summary.num_samples
    assert 0 < seen[-1].counts["bytes"] < summary.num_bytes
    assert (seen[-1].done, seen[-1].failures) == (summary.num_shards, {})


def test_what_a_lost_machine_left_is_gone_at_the_end(make_job: MakeJob) -> None:
    recipe = make_job()
    job = Job(recipe.job)
    folders = (job.dataset_named(""), f"{job.dataset_named('')}/shards", job.build_failures(""))
    left = [Path(folder, ".00000.lost.tmp") for folder in folders]

    def lose(_: Progress) -> None:
        for path in left:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")

    run_build(recipe, on_progress=lose)
    assert not [path for path in left if path.exists()]


def test_the_index_carries_what_curation_learnt(make_job: MakeJob) -> None:
    recipe = make_job(columns=("clip_embedding", "source"))
    run_build(recipe)
    payloads = raw_payloads(recipe)
    for ledger in ledger_rows(recipe):
        if not ledger["kept"]:
            continue
        row = next(row for row in index_rows(recipe) if row["uid"] == ledger["uid"])
        number = int(ledger["raw_shard"]) * 8 + int(ledger["key"][5:])
        assert row["clip_score"] == pytest.approx(number / 30)
        assert row["clip_embedding"][0] == number / 64
        assert row["source"] == f"source-{number % 2}"
        assert row["caption"] == f"a picture, number {number} <b>&"
        assert row["num_faces"] == row["faces_blurred"] == int(number % 3 == 0)
        assert row["sha256"] == hashlib.sha256(payloads[ledger["key"]]).hexdigest()
        assert row["pdq"] == hashlib.sha256(str(number).encode()).digest()
        assert "decode_error" not in row


def test_no_metadata_is_published_and_untouched_images_keep_their_pixels(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    dataset = open_dataset(Job(recipe.job).dataset)
    by_uid = {row["uid"]: row for row in ledger_rows(recipe)}
    payloads = raw_payloads(recipe)
    seen = set()
    for shard in range(len(dataset.shards)):
        for number, row in enumerate(dataset.index(shard).to_pylist()):
            image = read_sample(dataset, shard, number)
            fetched = payloads[by_uid[row["uid"]]["key"]]
            assert SECRET not in image
            upright = decode_rgb(
                image, header=ImageHeader(row["format"], row["width"], row["height"], row["orientation"])
            )
            original = decode_rgb(fetched)
            assert upright.shape == original.shape
            assert row["orientation"] == 1
            is_turned = read_header(fetched).orientation != 1
            if not row["faces_blurred"]:
                assert (upright == original).all() or is_turned
                assert np.abs(upright.astype(int) - original).mean() < 12
                assert row["reencoded"] == (is_turned or fetched[:2] == b"BM")
            else:
                height, width = original.shape[:2]
                inside = np.s_[int(0.35 * height) : int(0.55 * height), int(0.35 * width) : int(0.5 * width)]
                assert upright[inside].std() < 0.3 * original[inside].std()
                corner = np.s_[-8:, -8:]
                assert np.abs(upright[corner].astype(int) - original[corner]).mean() < 12
            seen.add((row["format"], is_turned, bool(row["faces_blurred"])))
    assert {("jpeg", True, False), ("jpeg", False, True), ("png", False, False), ("webp", False, True)} <= seen


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_the_dataset(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    urls = [str(path) for path in sorted(Path(Job(recipe.job).dataset, "shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()
    rows = index_rows(recipe)
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        extension = {"jpeg": "jpg"}.get(row["format"], row["format"])
        assert Image.open(io.BytesIO(sample[extension])).size == (row["width"], row["height"])
        assert sample["txt"].decode() == row["caption"]
        meta = json.loads(sample["json"])
        assert {
            name: meta[name] for name in ("uid", "url", "width", "height", "orientation", "sha256", "num_faces")
        } == {name: row[name] for name in ("uid", "url", "width", "height", "orientation", "sha256", "num_faces")}
        assert len(str(meta["clip_score"])) < 12


def test_two_workers_write_the_bytes_of_one(make_job: MakeJob) -> None:
    alone, together = make_job("alone"), make_job("together", workers=2)
    run_build(alone)
    run_build(together)
    expected = digests(Job(alone.job).dataset)
    found = digests(Job(together.job).dataset)
    # The recipe digest leaves out the engine and the folder, so even dataset.json is the same.
    assert found == expected
    assert digests(Job(alone.job).build_failures()) == digests(Job(together.job).build_failures())


def test_a_rerun_changes_nothing_and_an_interrupted_run_is_completed(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    job = Job(recipe.job)
    expected = digests(job.dataset)
    run_build(recipe)
    assert digests(job.dataset) == expected
    dataset = Path(job.dataset)
    (dataset / "commits/00001.json").unlink()
    (dataset / "shards/00001.tar").write_bytes(b"half")
    (dataset / "shards/.00001.tar.abc.tmp").write_bytes(b"less")
    (dataset / "shards.parquet").unlink()
    (dataset / "dataset.json").unlink()
    run_build(recipe)
    assert digests(job.dataset) == expected


def test_another_ledger_is_refused_until_told_to_start_over(make_job: MakeJob, write_ledger_again: Any) -> None:
    recipe = make_job()
    run_build(recipe)
    before = digests(Job(recipe.job).dataset)
    write_ledger_again(recipe, drop=(4, 6, 8, 9, 10))
    with pytest.raises(ValueError, match=r"another ledger.*--start-over"):
        run_build(recipe)
    assert digests(Job(recipe.job).dataset) == before
    assert any("--start-over" in line for line in plan_build(recipe))
    summary = run_build(recipe, start_over=True)
    assert summary.num_shards < 4
    fresh = make_job("fresh")
    write_ledger_again(fresh, drop=(4, 6, 8, 9, 10))
    run_build(fresh)
    assert digests(Job(recipe.job).dataset) == digests(Job(fresh.job).dataset)


def test_starting_over_removes_nothing_before_its_inputs_are_whole(make_job: MakeJob, write_ledger_again: Any) -> None:
    recipe = make_job()
    run_build(recipe)
    before = digests(Job(recipe.job).dataset)
    write_ledger_again(recipe, drop=(4, 6))
    ways = {"annotations/caption-01234567/00001.parquet": "sha256", "raw/00001.parquet": "parquet", "raw/00001.tar": ""}
    for name, told in ways.items():
        path = Path(recipe.job, name)
        data = path.read_bytes()
        path.write_bytes(data[:-9])
        if not told:
            path.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=told or "is missing"):
            run_build(recipe, start_over=True)
        path.write_bytes(data)
        assert digests(Job(recipe.job).dataset) == before
    run_build(recipe, start_over=True)
    assert digests(Job(recipe.job).dataset) != before


def test_a_plan_after_select_says_what_a_changed_threshold_will_cost(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    assert plan_build(recipe, select_first=True) == plan_build(recipe)
    other = dataclasses.replace(recipe, select=(Rule(name="none", keep="num_faces < 3"),))
    assert "cannot start yet" in plan_build(other)[-1]
    lines = plan_build(other, select_first=True)
    assert "would be refused" in lines[-2]
    assert "(4 shards are there); build beside it with build.dataset=NAME, or with --start-over" in lines[-2]
    assert lines[-1] == "rows and shards are what select will decide"
    lines = plan_build(other, select_first=True, start_over=True)
    assert "remove the dataset that is there first (4 shards)" in lines
    assert not any("refused" in line for line in lines)
    fresh = make_job("fresh")
    shutil.rmtree(Job(fresh.job).ledgers)
    lines = plan_build(fresh, select_first=True)
    assert not any("refused" in line or "start" in line for line in lines)


def test_other_build_settings_do_not_mix_either(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    other = dataclasses.replace(recipe, build=dataclasses.replace(recipe.build, jpeg_quality=90))
    with pytest.raises(ValueError, match="build settings"):
        run_build(other)
    # What cannot change the bytes may change.
    run_build(dataclasses.replace(recipe, engine=EngineConfig(executor="inline", workers=1)))


def test_a_dataset_begun_before_two_keys_existed_goes_on_as_it_was_begun(make_job: MakeJob) -> None:
    recipe, whole = make_job("job"), make_job("whole")

    def as_before(recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, build=dataclasses.replace(recipe.build, encoding="fixed", upright=False))

    run_build(as_before(whole))
    run_build(as_before(recipe))
    dataset = Path(Job(recipe.job).dataset)
    # What its commits named then: a digest of the settings there were.
    decision = latest_decision(Job(recipe.job))
    settings = {"blur_faces": True, "jpeg_quality": 95, "columns": [], "samples_per_shard": 5, "shuffle_window": 16}
    inputs = digest_of({"ledger": decision.summary.digest, "build": settings, "version": 1})
    record = json.loads((dataset / "commits" / "00000.json").read_text())
    assert record["inputs"] == inputs
    for path in (dataset / "dataset.json", dataset / "manifest.parquet", dataset / "commits" / "00001.json"):
        path.unlink(missing_ok=True)
    assert any("3 of them are done" in line for line in plan_build(recipe))
    run_build(recipe)
    assert digests(str(dataset / "shards")) == digests(f"{Job(whole.job).dataset}/shards")
    # One that is begun now is not: nothing of it is as it was.
    run_build(recipe, start_over=True)
    assert digests(str(dataset / "shards")) != digests(f"{Job(whole.job).dataset}/shards")


def test_a_recipe_that_moved_on_since_select_is_refused(make_job: MakeJob) -> None:
    recipe = make_job()
    other = dataclasses.replace(recipe, placement=dataclasses.replace(recipe.placement, samples_per_shard=6))
    with pytest.raises(ValueError, match="headrace select"):
        run_build(other)
    for change in (
        {"seed": 9},
        {"select": (Rule(name="none", keep="false"),)},
        {"placement": dataclasses.replace(recipe.placement, shuffle_window=2)},
        {
            "annotate": dataclasses.replace(
                recipe.annotate, faces=FacesConfig(min_score=0.5, detector="yunet", model=__file__)
            )
        },
    ):
        other = dataclasses.replace(recipe, **change)
        with pytest.raises(ValueError, match="no ledger of this recipe"):
            run_build(other)
        assert any("no ledger of this recipe" in line for line in plan_build(other))


def test_shards_of_an_older_ledger_that_were_never_committed_are_removed(make_job: MakeJob) -> None:
    recipe = make_job()
    stray = Path(Job(recipe.job).dataset, "shards", "00099.tar")
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"old")
    run_build(recipe)
    assert not stray.exists()


def test_rows_that_fail_are_named_and_the_rest_is_written(make_job: MakeJob) -> None:
    recipe = make_job()
    kept = [row for row in ledger_rows(recipe) if row["kept"]]
    tar = Path(Job(recipe.job).raw, "00000.tar")
    members = {member.name.split(".")[0]: member for member in scan_tar(str(tar)) if "txt" not in member.name}
    data = bytearray(tar.read_bytes())
    flipped, *_ = (row["key"] for row in kept if row["raw_shard"] == "00000")
    image = next(m for m in scan_tar(str(tar)) if m.name.startswith(flipped) and not m.name.endswith(("txt", "json")))
    assert members
    data[image.offset + image.size // 2] ^= 0x10
    tar.write_bytes(data)
    summary = run_build(recipe)
    assert summary.num_failed == 1
    failures = [
        row
        for path in Path(Job(recipe.job).build_failures()).glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    (failure,) = failures
    assert failure["key"] == flipped
    assert failure["reason"] == "sha256"
    assert failure["input_row"] == next(row["input_row"] for row in kept if row["key"] == flipped)
    built = {row["uid"]: row["key"] for row in index_rows(recipe)}
    assert built == {row["uid"]: f"{row['out_shard']}{row['out_index']:06d}" for row in kept if row["key"] != flipped}


def test_a_truncated_raw_tar_loses_only_what_is_gone(make_job: MakeJob) -> None:
    recipe = make_job()
    tar = Path(Job(recipe.job).raw, "00002.tar")
    images = [m for m in scan_tar(str(tar)) if not m.name.endswith(("txt", "json"))]
    tar.write_bytes(tar.read_bytes()[: images[5].offset + 10])
    run_build(recipe)
    failures = [
        row
        for path in Path(Job(recipe.job).build_failures()).glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    kept = {row["key"] for row in ledger_rows(recipe) if row["kept"]}
    assert {row["key"] for row in failures} == {m.name.split(".")[0] for m in images[5:]} & kept
    assert all(row["reason"] == "missing" and "truncated" in row["message"] for row in failures)


def test_a_missing_raw_tar_stops_the_run(make_job: MakeJob) -> None:
    recipe = make_job()
    Path(Job(recipe.job).raw, "00001.tar").unlink()
    with pytest.raises(FileNotFoundError):
        run_build(recipe)


def test_an_unknown_column_is_refused_with_the_known_ones(make_job: MakeJob) -> None:
    with pytest.raises(ValueError, match=r"no column clip_scores; known columns: .*clip_score"):
        run_build(make_job(columns=("clip_scores",)))


def test_without_a_ledger_the_user_is_told_to_select(make_job: MakeJob) -> None:
    recipe = make_job()
    shutil.rmtree(Job(recipe.job).ledgers)
    with pytest.raises(ValueError, match="headrace select"):
        run_build(recipe)
    assert "cannot start yet" in plan_build(recipe)[-1]


def test_a_damaged_ledger_is_not_built(make_job: MakeJob) -> None:
    recipe = make_job()
    table = Path(latest_decision(Job(recipe.job)).ledger.table)
    data = table.read_bytes()
    for damaged in (data[:-1], data.replace(b"urls.parquet", b"urls.parquex"), b""):
        table.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ledger.parquet is damaged or missing; run `headrace select`"):
            run_build(recipe)
    assert not Path(Job(recipe.job).dataset).exists()


def test_an_image_that_no_one_searched_for_faces_is_not_published(make_job: MakeJob) -> None:
    recipe = make_job()
    for path in Path(recipe.job, "annotations").glob("faces-*/00000.parquet"):
        table = pq.read_table(path)
        (path.parent / "commits" / "00000.json").unlink()
        unknown = pa.nulls(table.num_rows, table["face_boxes"].type)
        write_annotations(str(path.parent), "00000", table.set_column(2, "face_boxes", unknown), {})
    summary = run_build(recipe)
    kept = [row["uid"] for row in ledger_rows(recipe) if row["kept"] and row["raw_shard"] == "00000"]
    assert summary.num_failed == len(kept) > 0
    assert not {row["uid"] for row in index_rows(recipe)} & set(kept)


def test_faces_stay_when_the_recipe_says_so(make_job: MakeJob) -> None:
    recipe = make_job(blur_faces=False, upright=False)
    run_build(recipe)
    assert {row["faces_blurred"] for row in index_rows(recipe)} == {0}
    assert {row["format"] for row in index_rows(recipe) if row["reencoded"]} == {"png"}


def test_what_another_annotator_hides_is_blurred_and_counted_too(make_job: MakeJob) -> None:
    plain, hidden, shown = make_job("plain"), make_job("hidden", regions=True), make_job("shown", regions=True)
    shown = dataclasses.replace(shown, build=dataclasses.replace(shown.build, blur_regions=False))
    for recipe in (plain, hidden, shown):
        run_build(recipe)
    rows = {recipe.job: {row["uid"]: row for row in index_rows(recipe)} for recipe in (plain, hidden, shown)}
    assert "regions_blurred" not in next(iter(rows[shown.job].values()))
    datasets = {recipe.job: open_dataset(Job(recipe.job).dataset) for recipe in (plain, hidden)}
    images = {
        job: {row["uid"]: decode_rgb(read_sample(dataset, shard, number))
              for shard in range(len(dataset.shards))
              for number, row in enumerate(dataset.index(shard).to_pylist())}
        for job, dataset in datasets.items()
    }  # fmt: skip
    num_hidden = 0
    for uid, row in rows[hidden.job].items():
        before, after = images[plain.job][uid], images[hidden.job][uid]
        corner = np.s_[int(0.85 * len(before)) :, : int(0.2 * before.shape[1])]
        assert row["faces_blurred"] == rows[plain.job][uid]["faces_blurred"]
        if row["regions_blurred"]:
            num_hidden += 1
            assert row["reencoded"]
            assert after[corner].std() < 0.6 * before[corner].std()
        else:
            assert (before == after).all()
    assert num_hidden > 2


def test_too_many_failures_stop_the_run(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.curation.build.unit.MIN_JUDGED_ROWS", 2)
    recipe = make_job(failure_budget=0.0)
    tar = Path(Job(recipe.job).raw, "00000.tar")
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"over build\.failure_budget"):
        run_build(recipe)
