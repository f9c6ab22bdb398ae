"""Whatever happens to a file under `raw/`, no dataset is made of it, or the dataset is the same byte for byte."""

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.config import build_config
from headrace.curation.job import Job
from headrace.curation.raw import record as record_module
from headrace.curation.raw.read import raw_shards, read_raw
from headrace.curation.recipe import Recipe
from headrace.curation.stages import annotate as run_annotate
from headrace.curation.stages import build as run_build
from headrace.curation.stages import fetch as run_fetch
from headrace.curation.stages import report as run_report
from headrace.curation.stages import select as run_select
from headrace.curation.why import explain
from headrace.shards.tar import scan_tar

SHARDS = ("00000", "00001")
ROWS = 12


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def recipe_of(folder: Path, server: ThreadingHTTPServer | None = None, **settings: Any) -> Recipe:
    pair = "127.0.0.1:80" if server is None else f"127.0.0.1:{server.server_address[1]}"
    given = {
        "job": str(folder / "job"),
        "unsafe_images": "off",
        "fetch": {"allow_private": [pair], "samples_per_shard": ROWS // 2},
        "annotate": {"faces": None, "caption": None},
        "select": [],
        "build": {"blur_faces": False},
        "engine": {"executor": "inline"},
    }
    return build_config(Recipe, given | settings)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job of two raw shards, its list, and three rows that failed."""
    folder = tmp_path_factory.mktemp("fetched")
    web = folder / "web"
    web.mkdir()
    for number in range(ROWS):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(web / f"{number}.jpg", quality=60)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = [f"{number}.jpg" if number % 4 else f"absent-{number}.jpg" for number in range(ROWS)]
    base = f"http://127.0.0.1:{server.server_address[1]}"
    (folder / "list.csv").write_text("url,caption\n" + "".join(f"{base}/{name},picture {name}\n" for name in names))
    run_fetch(recipe_of(folder, server, input={"urls": [str(folder / "list.csv")]}))
    server.shutdown()
    server.server_close()
    return folder


@pytest.fixture
def job(fetched: Path, tmp_path: Path) -> Path:
    shutil.copytree(fetched / "job", tmp_path / "job")
    return tmp_path


def go_on(folder: Path, **settings: Any) -> dict[str, str]:
    """Annotate, select and build; return the sums of the dataset's files."""
    recipe = recipe_of(folder, input={"urls": ["unused.csv"]}, **settings)
    run_annotate(recipe)
    run_select(recipe)
    run_build(recipe)
    return sums(folder)


def sums(folder: Path) -> dict[str, str]:
    dataset = folder / "job/dataset"
    paths = sorted(path for path in dataset.rglob("*") if path.is_file())
    return {str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def whole(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The same job, finished, and what its dataset holds."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(fetched / "job", folder / "job")
    return folder, go_on(folder)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0xFF
    path.write_bytes(data)


def swap(path: Path) -> None:
    other = path.with_name(path.name.replace("00000", "00001"))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def set_column(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        kind = table.schema.field(name).type
        return table.set_column(table.schema.get_field_index(name), name, pa.array([value] * table.num_rows, kind))

    return change


ANY_FILE: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "swapped": swap,
    "flipped at the start": lambda path: flip(path, 0),
    "flipped at 0.3": lambda path: flip(path, 0.3),
    "flipped at 0.7": lambda path: flip(path, 0.7),
    "flipped at the end": lambda path: flip(path, 1),
}
TABLE: dict[str, Callable[[Path], Any]] = {
    "fewer rows": lambda path: rewrite(path, lambda table: table.slice(0, 3)),
    "no rows": lambda path: rewrite(path, lambda table: table.slice(0, 0)),
    "a row twice": lambda path: rewrite(path, lambda table: pa.concat_tables([table, table.slice(0, 1)])),
    "another order": lambda path: rewrite(path, lambda table: table.take(list(range(table.num_rows))[::-1])),
    "a column less": lambda path: rewrite(path, lambda table: table.drop_columns(["sha256"])),
    "another schema": lambda path: rewrite(path, lambda _: pa.table({"x": [1]})),
    "no sums": lambda path: rewrite(path, set_column("sha256", None)),
    "all failed": lambda path: rewrite(path, set_column("status", "failed_to_download")),
    "other captions": lambda path: rewrite(path, set_column("caption", "x")),
}
RECORD: dict[str, Callable[[Path], Any]] = {
    "a list": lambda path: path.write_text("[]"),
    "no JSON": lambda path: path.write_text("{"),
    "deep": lambda path: path.write_text("[" * 100_000),
    **{
        f"without {name}": lambda path, name=name: edit(path, lambda record: record.pop(name))
        for name in ("count", "successes", "table", "tar")
    },
    **{
        f"{name} is {value}": lambda path, name=name, value=value: edit(
            path, lambda record: record.update({name: value})
        )
        for name in ("count", "successes", "table", "tar", "schema")
        for value in (None, "x", -1, [])
        if (name, value) != ("schema", None)
    },
    "no sum of the table": lambda path: edit(path, lambda record: record["table"].update(sha256=None)),
    "another sum of the table": lambda path: edit(path, lambda record: record["table"].update(sha256="0" * 64)),
    "no size of the tar": lambda path: edit(path, lambda record: record["tar"].update(bytes=None)),
}
DAMAGES = {
    **{(name, kind): change for name in ("00000.tar", "00000_stats.json") for kind, change in ANY_FILE.items()},
    **{("00000.parquet", kind): change for kind, change in {**ANY_FILE, **TABLE}.items()},
    **{("commits/00000.json", kind): change for kind, change in {**ANY_FILE, **RECORD}.items()},
}
HARMLESS = {("commits/00000.json", "a byte short")}
"""The line end is gone: the record says the same."""


def damage(folder: Path, which: tuple[str, str]) -> Path:
    path = folder / "job/raw" / which[0]
    DAMAGES[which](path)
    return path


def check_refusal(error: Exception, path: Path) -> None:
    message = str(error)
    assert "\n" not in message
    assert path.stem.removesuffix("_stats") in message
    assert isinstance(error, ValueError | OSError)


@pytest.mark.parametrize("which", DAMAGES, ids=" ".join)
def test_a_damaged_file_is_named_or_changes_nothing(job: Path, whole: Any, which: tuple[str, str]) -> None:
    path = damage(job, which)
    if which[0].endswith("_stats.json") or which in HARMLESS:
        assert go_on(job) == whole[1]
        return
    try:
        found = go_on(job)
    except (ValueError, OSError) as error:
        check_refusal(error, path)
        assert not (job / "job/dataset/dataset.json").exists()
    else:
        assert which[0].endswith(".tar")  # text that nobody reads
        assert found == whole[1]


@pytest.mark.parametrize("which", [which for which in DAMAGES if not which[0].endswith("_stats.json")], ids=" ".join)
def test_damage_after_the_ledger_is_named_by_build_or_changes_nothing(
    whole: Any, tmp_path: Path, which: tuple[str, str]
) -> None:
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    shutil.rmtree(tmp_path / "job/dataset")
    path = damage(tmp_path, which)
    try:
        run_build(recipe_of(tmp_path, input={"urls": ["unused.csv"]}))
    except (ValueError, OSError) as error:
        check_refusal(error, path)
        assert not (tmp_path / "job/dataset/dataset.json").exists()
    else:
        assert which[0].endswith(".tar") or which in HARMLESS
        assert sums(tmp_path) == whole[1]


def test_damage_in_an_image_is_found_by_its_sum(job: Path) -> None:
    tar = job / "job/raw/00000.tar"
    member = next(member for member in scan_tar(str(tar)) if member.name.endswith(".jpg"))
    data = bytearray(tar.read_bytes())
    data[member.offset + member.size // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000\.tar: sample '.*: sha256 is") as caught:
        go_on(job)
    assert "headrace fetch" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", ["fewer rows", "flipped at 0.3", "gone", "swapped"])
def test_why_and_report_name_a_damaged_table(whole: Any, tmp_path: Path, kind: str) -> None:
    shutil.copytree(whole[0] / "job", tmp_path / "job")
    recipe = recipe_of(tmp_path, input={"urls": ["unused.csv"]})
    uids = read_raw(Job(recipe.job), "00000")["uid"].to_pylist()
    damage(tmp_path, ("00000.parquet", kind))
    with pytest.raises(ValueError, match=r"00000\.parquet"):
        explain(Job(recipe.job), uids[0])
    with pytest.raises(ValueError, match=r"00000\.parquet"):
        run_report(recipe)
    with pytest.raises(ValueError, match=r"00000\.parquet"):
        run_build(recipe, start_over=True)
    assert sums(tmp_path) == whole[1]  # start-over reads before it removes


def test_a_shard_whose_files_are_all_gone_is_missed(job: Path) -> None:
    for path in [*(job / "job/raw").glob("00001*"), job / "job/raw/commits/00001.json"]:
        path.unlink()
    with pytest.raises(ValueError, match="1 of the 2 raw shards of the list are not finished: 00001"):
        go_on(job)


def test_a_table_without_its_record_is_missed(job: Path) -> None:
    (job / "job/raw/commits/00001.json").unlink()
    with pytest.raises(ValueError, match=r"00001\.parquet has no commit record"):
        raw_shards(Job(str(job / "job")))


def as_older_job(folder: Path) -> None:
    for shard in SHARDS:
        rewrite(folder / f"job/raw/{shard}.parquet", lambda table: table.drop_columns(["stored_sha256"]))
        edit(folder / f"job/raw/commits/{shard}.json", lambda record: (record.pop("schema"), record.pop("table")))


def test_an_older_job_goes_on_with_a_warning(job: Path, whole: Any, caplog: pytest.LogCaptureFixture) -> None:
    record_module._warn_unchecked.cache_clear()
    as_older_job(job)
    with caplog.at_level(logging.WARNING):
        found = go_on(job)
    assert {name: found[name] for name in found if name.endswith(".tar")} == {
        name: whole[1][name] for name in whole[1] if name.endswith(".tar")
    }
    assert [record.message for record in caplog.records if "read unchecked" in record.message] == [
        f"{job}/job/raw: these raw shards were finished without sums of their tables; they are read unchecked"
    ]


@pytest.mark.parametrize("kind", ["fewer rows", "no rows", "a row twice", "all failed"])
def test_an_older_job_still_knows_its_rows(job: Path, kind: str) -> None:
    as_older_job(job)
    damage(job, ("00000.parquet", kind))
    with pytest.raises(ValueError, match=r"00000\.parquet: \d+ (rows|images), .*00000\.json says"):
        go_on(job)


def foreign(fetched: Path, folder: Path) -> Path:
    """The job's raw shards as img2dataset would have left them."""
    target = folder / "foreign"
    target.mkdir()
    for shard in SHARDS:
        for suffix in (".tar", "_stats.json"):
            shutil.copy(fetched / f"job/raw/{shard}{suffix}", target)
        names = ["key", "url", "caption", "status", "error_message", "width", "height", "sha256"]
        pq.write_table(pq.read_table(fetched / f"job/raw/{shard}.parquet").select(names), target / f"{shard}.parquet")
    return target


def go_on_with(target: Path, folder: Path) -> int:
    recipe = recipe_of(folder, input={"raw": str(target)})
    run_fetch(recipe)
    run_annotate(recipe)
    run_select(recipe)
    return run_build(recipe).num_samples


# Before a job begins nobody has recorded anything: these are tables as good as any. A flipped byte may be a value's.
UNSEEN = ("no sums", "other captions", "another order", "a column less")
UNSEEN += ("flipped at the start", "flipped at 0.3", "flipped at 0.7")
FOREIGN = {which: change for which, change in DAMAGES.items() if which[0] == "00000.parquet" and which[1] not in UNSEEN}
FOREIGN |= {("00000.tar", kind): ANY_FILE[kind] for kind in ("gone", "half", "empty", "zeros", "swapped")}
FOREIGN |= {("00000_stats.json", kind): ANY_FILE[kind] for kind in ("empty", "half", "zeros")}
FOREIGN |= {
    ("00000_stats.json", f"{name} of another run"): lambda path, name=name: edit(
        path, lambda stats: stats.update({name: 99})
    )
    for name in ("count", "successes")
}


@pytest.mark.parametrize("which", FOREIGN, ids=" ".join)
def test_a_damaged_file_of_img2dataset_is_named(fetched: Path, tmp_path: Path, which: tuple[str, str]) -> None:
    target = foreign(fetched, tmp_path)
    FOREIGN[which](target / which[0])
    with pytest.raises((ValueError, OSError), match="00000"):
        go_on_with(target, tmp_path)
    assert not (tmp_path / "job/dataset/dataset.json").exists()


@pytest.mark.parametrize("kind", [*ANY_FILE, *TABLE])
def test_a_foreign_table_that_changes_later_is_named(fetched: Path, tmp_path: Path, kind: str) -> None:
    target = foreign(fetched, tmp_path)
    recipe = recipe_of(tmp_path, input={"raw": str(target)})
    run_fetch(recipe)
    {**ANY_FILE, **TABLE}[kind](target / "00000.parquet")
    with pytest.raises(ValueError, match=r"00000\.parquet"):
        run_annotate(recipe)


def test_a_foreign_job_of_before_the_sums_goes_on(fetched: Path, tmp_path: Path) -> None:
    target = foreign(fetched, tmp_path)
    record = tmp_path / "job/raw/foreign.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"shards": list(SHARDS), "url": str(target)}))
    assert go_on_with(target, tmp_path) == 9


def test_an_unfinished_or_half_copied_foreign_shard_is_named(
    fetched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = foreign(fetched, tmp_path)
    shutil.copy(target / "00001.tar", target / "00007.tar")
    with caplog.at_level(logging.WARNING):
        assert go_on_with(target, tmp_path) == 9
    assert f"{target}: not finished by img2dataset, left out: 00007" in [record.message for record in caplog.records]
    for path in target.glob("*_stats.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"00007\.parquet is missing"):
        run_fetch(recipe_of(tmp_path, input={"raw": str(target)}))
