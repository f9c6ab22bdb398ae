"""Tars of others: read through webdataset behind the truncation check, and indexed without touching them."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.lease import only_writer
from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.foreign.find import find_tars
from headrace.shards.foreign.index import IndexConfig, index_folder
from headrace.shards.foreign.webdataset import iterate_webdataset
from headrace.shards.imports.run import ImportConfig, import_images, open_source
from headrace.shards.index import index_shard
from headrace.shards.payloads import read_sample
from headrace.shards.units import INLINE, EngineConfig
from headrace.shards.verify import verify_dataset
from headrace.shards.write import Sample, write_shard

Encode = Callable[..., bytes]


@pytest.fixture
def tars(tmp_path: Path, encode_image: Encode) -> str:
    """A folder as img2dataset leaves it: two tars, each with its own parquet beside it."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for number in range(3):
                key = f"{shard:05d}{number:04d}"
                facts = json.dumps({"caption": f"c{key}", "url": f"u{key}", "key": key}).encode()
                for extension, data in (
                    ("jpg", encode_image(seed=number)),
                    ("json", facts),
                    ("txt", f"c{key}".encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (folder / f"{shard:05d}.parquet").write_bytes(b"theirs")
    return str(folder)


def test_samples_are_webdatasets(tars: str, encode_image: Encode) -> None:
    read = list(iterate_webdataset(f"{tars}/00001.tar"))
    assert [sample["__key__"] for sample in read] == ["000010000", "000010001", "000010002"]
    assert read[2]["jpg"] == encode_image(seed=2)
    assert read[2]["txt"] == b"c000010002"


def test_a_truncated_tar_gives_no_sample(tars: str) -> None:
    path = Path(tars, "00000.tar")
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(ShardError, match="truncated"):
        next(iterate_webdataset(str(path)))


def test_an_index_makes_a_dataset_and_touches_nothing(tars: str, encode_image: Encode) -> None:
    before = {path: path.read_bytes() for path in Path(tars).iterdir()}
    summary = index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig())
    assert (summary.num_shards, summary.num_samples, summary.faults) == (2, 6, ())
    assert {path: path.read_bytes() for path in before} == before
    dataset = open_dataset(tars)
    assert dataset.index(1)["caption"].to_pylist() == ["c000010000", "c000010001", "c000010002"]
    assert read_sample(dataset, 1, 2) == encode_image(seed=2)
    assert list(verify_dataset(tars, decode=True)) == []


def test_our_own_tars_alone_are_indexed_and_imported_upright(tmp_path: Path, encode_image: Encode) -> None:
    """Curation cuts the EXIF; without the index, only KEY.json still knows how an image stands."""
    curated, alone = tmp_path / "curated", tmp_path / "alone"
    samples = [Sample(f"k{turn}", encode_image(seed=turn), "jpg", {"orientation": turn}) for turn in range(1, 9)]
    samples.append(Sample("k9", encode_image("jpeg", orientation=6), "jpg"))
    write_shard(str(curated), "00000", samples)
    alone.mkdir()
    (curated / "shards" / "00000.tar").rename(alone / "00000.tar")
    index_folder(str(alone), ["00000.tar"], IndexConfig())
    config = ImportConfig()
    import_images(open_source(str(alone / "00000.tar"), config), str(tmp_path / "imported"), config)
    for url in (str(alone), str(tmp_path / "imported")):
        assert open_dataset(url).index(0)["orientation"].to_pylist() == [1, 2, 3, 4, 5, 6, 7, 8, 6]


def test_an_orientation_in_the_json_of_others_means_nothing(tmp_path: Path, encode_image: Encode) -> None:
    ours = {"uid": "u", "sha256": "s", "width": 24, "height": 16, "format": "jpeg", "orientation": 6}
    stranger = [{"orientation": 6}, {**ours, "width": 16, "height": 24}, {**ours, "orientation": "6"}]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, facts in enumerate([ours, *stranger, {**ours, "orientation": 0}]):
            for extension, data in (("jpg", encode_image()), ("json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert index_shard(str(tmp_path / "a.tar"))["orientation"].to_pylist() == [6, 1, 1, 1, 1]


def test_the_index_may_lie_elsewhere(tars: str, tmp_path: Path) -> None:
    before = sorted(Path(tars).rglob("*"))
    index_dir = f"memory://{tmp_path}/index"
    index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig(index_dir=index_dir))
    assert sorted(Path(tars).rglob("*")) == before
    dataset = open_dataset(tars, index_dir=index_dir)
    assert dataset.num_samples == 6
    assert list(verify_dataset(tars, index_dir=index_dir)) == []
    with pytest.raises(ValueError, match="run: headrace index"):
        open_dataset(tars)


def test_tars_on_a_server_get_an_index_here(tars: str, tmp_path: Path, folder_server: Any) -> None:
    url = f"{folder_server.url}/foreign"
    folders = find_tars([f"{url}/00000.tar", f"{url}/00001.tar"])
    assert folders == {url: ["00000.tar", "00001.tar"]}
    index_folder(url, folders[url], IndexConfig(index_dir=str(tmp_path / "index")))
    index_folder(tars, folders[url], IndexConfig())
    here, there = open_dataset(tars), open_dataset(url, index_dir=str(tmp_path / "index"))
    assert here.shards == there.shards
    assert read_sample(there, 1, 1) == read_sample(here, 1, 1)


def test_a_finished_index_is_kept_and_a_changed_tar_is_seen(tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.shards.foreign import unit

    index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig())
    first = open_dataset(tars)
    built: list[str] = []
    real = unit.build_index
    monkeypatch.setattr(
        unit, "build_index", lambda url, **options: (built.append(Path(url).name), real(url, **options))[1]
    )
    index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig())
    assert built == []
    Path(tars, "00001.tar").write_bytes(Path(tars, "00000.tar").read_bytes() + bytes(10240))
    index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig())
    assert built == ["00001.tar"]
    assert open_dataset(tars).index(1)["key"].to_pylist() == first.index(0)["key"].to_pylist()
    index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig(rebuild=True))
    assert len(built) == 3


def test_fast_is_not_enough_for_a_full_index(tars: str) -> None:
    index_folder(tars, ["00000.tar"], IndexConfig(fast=True))
    assert open_dataset(tars).index(0)["crc32"].null_count == 3
    assert list(verify_dataset(tars)) == []
    index_folder(tars, ["00000.tar"], IndexConfig())
    assert open_dataset(tars).index(0)["crc32"].null_count == 0
    index_folder(tars, ["00000.tar"], IndexConfig(fast=True))
    assert open_dataset(tars).index(0)["crc32"].null_count == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "the index is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "sha256 of the index is"),
        (lambda path: path.write_bytes(b""), "sha256 of the index is"),
    ],
)
def test_a_damaged_index_is_made_again_and_said(
    tars: str, damage: Callable[[Path], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["00000.tar", "00001.tar"]
    index_folder(tars, names, IndexConfig())
    whole = _tree(Path(tars))
    damage(Path(tars, "index", "00001.parquet"))
    summary = index_folder(tars, names, IndexConfig())
    assert len(summary.repaired) == 1
    assert reason in summary.repaired[0]
    assert "its index is made again" in caplog.text
    assert _tree(Path(tars)) == whole
    assert list(verify_dataset(tars)) == []
    assert index_folder(tars, names, IndexConfig()).repaired == ()


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        {"num_samples": None},
        {"name": "other"},
        {"members": {"image": "x"}},
        {"faults": [["key", None, "x"]]},
        {"faults": [5]},
        {"columns": {"x": "number"}},
        {"own_columns": {"x": "int"}},
        {"classes": [1]},
        {"group": []},
    ],
    ids=str,
)
def test_a_damaged_record_of_an_index_costs_that_index_only(tars: str, damage: str | dict[str, object]) -> None:
    index_folder(tars, ["00000.tar"], IndexConfig())
    whole = _tree(Path(tars))
    (record,) = Path(tars, "index", "commits").iterdir()
    text = damage if isinstance(damage, str) else json.dumps({**json.loads(record.read_text()), **damage})
    record.write_text(text)
    summary = index_folder(tars, ["00000.tar"], IndexConfig())
    assert (summary.num_samples, summary.faults) == (3, ())
    assert _tree(Path(tars)) == whole


def test_an_index_made_fast_says_what_it_does_not_hold(tars: str) -> None:
    index_folder(tars, ["00000.tar"], IndexConfig())
    assert open_dataset(tars).not_held == ()
    index_folder(tars, ["00000.tar", "00001.tar"], IndexConfig(fast=True))
    dataset = open_dataset(tars)  # one full, one fast
    held = [name for name in dataset.index(1).column_names if dataset.index(1)[name].null_count == 0]
    assert held == ["key", "offset", "size"]
    assert set(dataset.index(1).column_names) - set(dataset.not_held) == set(held)
    assert dataset.missing_columns(["key", "label", "other"]) == ("label",)
    dataset.require_columns(["key", "offset"])
    with pytest.raises(ValueError, match=rf"made with --fast and does not hold caption, label; .* index {tars}$"):
        dataset.require_columns(["caption", "key", "label"])


def test_a_fast_index_of_schema_1_is_known_by_its_manifest(tars: str) -> None:
    index_folder(tars, ["00000.tar"], IndexConfig(fast=True))
    summary = Path(tars, "dataset.json")
    facts = json.loads(summary.read_text())
    summary.write_text(json.dumps({**facts, "not_held": []}))
    with pytest.raises(ShardError, match="a shard has no sha256, yet"):
        open_dataset(tars)
    facts = {name: value for name, value in facts.items() if name not in ("not_held", "manifest_sha256")}
    summary.write_text(json.dumps({**facts, "schema": 1}))
    assert open_dataset(tars).missing_columns(["label"]) == ("label",)


def test_many_processes_write_what_one_writes(tars: str, tmp_path: Path) -> None:
    names = ["00000.tar", "00001.tar"]
    for name, engine in (("1", INLINE), ("2", EngineConfig(workers=2))):
        index_folder(tars, names, IndexConfig(index_dir=str(tmp_path / name)), engine=engine)
    for path in sorted((tmp_path / "1").rglob("*")):
        if path.is_file():
            assert (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes() == path.read_bytes()


def test_of_two_runs_over_one_folder_the_second_is_refused(tars: str) -> None:
    with only_writer(tars), pytest.raises(ValueError, match="another process"):
        index_folder(tars, ["00000.tar"], IndexConfig())
    with pytest.raises(ValueError, match="seen by one process only"):
        index_folder(tars, ["00000.tar"], IndexConfig(index_dir="memory://index"), engine=EngineConfig())


@pytest.mark.parametrize("place", ["", "/shards"])
def test_our_own_dataset_is_not_indexed_again(dataset_url: str, place: str) -> None:
    with pytest.raises(ValueError, match="with an index already; nothing to do"):
        index_folder(dataset_url + place, ["00000.tar"], IndexConfig())


def test_folders_globs_and_tars_are_found(tars: str) -> None:
    names = ["00000.tar", "00001.tar"]
    assert (
        find_tars([tars]) == find_tars([f"{tars}/*.tar"]) == find_tars([f"{tars}/{n}" for n in names]) == {tars: names}
    )
    assert find_tars([f"{tars}/*1.tar", f"{tars}/00001.tar"]) == {tars: ["00001.tar"]}
    for nothing in (f"{tars}/9.tar", f"{tars}/*.zip", f"{tars}/index"):
        with pytest.raises(ValueError, match=r"no \.tar there"):
            find_tars([nothing])


@pytest.mark.parametrize("name", ["my [data] (v1)", "wh?t", "st*r"])
def test_tars_are_found_in_a_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "0[0].tar").write_bytes(b"")
    for url in (folder, folder / "0[0].tar", folder / "*.tar"):
        assert find_tars([str(url)]) == {str(folder): ["0[0].tar"]}


@pytest.mark.full
def test_kill_index_at_any_moment_then_rerun_gives_the_same_bytes(
    tars: str, tmp_path: Path, hold: Callable[[str, int], dict[str, str]]
) -> None:
    whole_tar = Path(tars, "00000.tar").read_bytes()
    for number in range(2, 60):
        Path(tars, f"{number:05d}.tar").write_bytes(whole_tar)
    program = "from headrace.cli.app import main; main()"
    command = [sys.executable, "-c", program, "index", tars, "--workers", "1", "--index-dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    whole = _tree(tmp_path / "whole")
    out = tmp_path / "killed"
    held = hold(f"{out}/index/*.parquet", 58)
    for number in range(3):
        process = subprocess.Popen([*command, str(out)], env=held, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        target = min(len(_tree(out)) + 5 + 9 * number, 50)
        deadline = time.monotonic() + 60
        while len(_tree(out)) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL, "the run ended before it was killed"
        assert len(_tree(out)) < len(whole)
        assert not (out / "dataset.json").exists()
    subprocess.run([*command, str(out)], check=True, capture_output=True, timeout=120)
    assert _tree(out) == whole


def _tree(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        # A run beside us renames its temporary files.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
