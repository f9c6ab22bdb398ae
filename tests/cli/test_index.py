"""`headrace index`: what a user sees."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.shards.dataset import open_dataset

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(sink, "PNG")
    for name in ("a", "b"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for member, data in (
                ("1.png", sink.getvalue()),
                ("2.json", b"{"),
                ("2.png", sink.getvalue()),
                ("3.txt", b""),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def test_index_then_open_and_verify(run: Run, tars: Path) -> None:
    code, text = run("verify", tars)
    assert code == 1
    assert f"run: headrace index {tars}" in text
    code, text = run("index", tars, "--executor", "inline")
    assert code == 0
    assert f"{tars}: 2 shards, 4 samples, 2 faults, 2 samples without an image left out" in text
    assert "a sample '2' at byte" in text
    assert open_dataset(str(tars)).num_samples == 4
    assert run("verify", "-q", tars, "--decode") == (0, "whole: 2 shards, 4 samples\n")


def test_a_glob_and_another_folder(run: Run, tars: Path, tmp_path: Path) -> None:
    code, _ = run("index", f"{tars}/*.tar", "--index-dir", tmp_path / "index", "--fast", "--executor", "inline")
    assert code == 0
    assert sorted(path.name for path in tars.iterdir()) == ["a.tar", "b.tar"]
    assert run("verify", "-q", tars, "--index-dir", tmp_path / "index") == (0, "whole: 2 shards, 4 samples\n")


def test_a_dry_run_writes_nothing(run: Run, tars: Path) -> None:
    code, text = run("index", tars, "--dry-run")
    assert (code, text) == (0, f"would index 2 tars of {tars} (a.tar .. b.tar) into {tars}\n")
    assert sorted(path.name for path in tars.iterdir()) == ["a.tar", "b.tar"]


def test_mistakes_are_one_line(run: Run, tars: Path, tmp_path: Path) -> None:
    code, text = run("index", tmp_path / "nix")
    assert (code, text) == (1, f"headrace: {tmp_path}/nix: no .tar there")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.tar").write_bytes((tars / "a.tar").read_bytes())
    code, text = run("index", tars, tmp_path / "more", "--index-dir", tmp_path / "index")
    assert code == 1
    assert "--index-dir holds the index of one folder, got 2" in text
    (tars / "b.tar").write_bytes((tars / "b.tar").read_bytes()[:1500])
    code, text = run("index", tars, "--executor", "inline")
    assert code == 1
    assert "b.tar: at byte" in text
    assert "truncated" in text
    assert "Traceback" not in text
    assert not (tars / "dataset.json").exists()


def test_every_damaged_tar_is_named_and_the_others_are_indexed(run: Run, tars: Path) -> None:
    (tars / "c.tar").write_bytes((tars / "b.tar").read_bytes()[:1500])
    (tars / "d.tar").write_bytes(b"no tar" * 200)
    code, text = run("index", tars, "--executor", "inline")
    assert (code, text.count("\n")) == (1, 0)
    assert text.startswith("headrace: 2 of 4 tars are damaged: ")
    assert "c.tar: at byte" in text
    assert "d.tar: at byte 0: " in text
    assert sorted(path.name for path in (tars / "index").glob("*.parquet")) == ["a.parquet", "b.parquet"]
    assert not (tars / "dataset.json").exists()
    (tars / "c.tar").unlink()
    (tars / "d.tar").unlink()
    assert run("index", tars, "--executor", "inline")[0] == 0


def _write(path: Path, names: list[str], data: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data) if name.endswith((".png", ".jpg")) else 1
            tar.addfile(info, io.BytesIO(data if info.size > 1 else b"x"))


@pytest.fixture
def png() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def test_tars_without_any_sample_are_no_dataset(run: Run, tmp_path: Path, png: bytes) -> None:
    _write(tmp_path / "a.tar", ["0001", "0002"], png)
    (tmp_path / "b.tar").write_bytes(bytes(10240))
    code, text = run("index", tmp_path, "--executor", "inline")
    assert (code, text.count("\n")) == (1, 0)
    assert text.startswith(f"headrace: {tmp_path}: no sample in 2 tars: 2 no-key, named in {tmp_path}/index/rejects")
    assert not (tmp_path / "dataset.json").exists()
    _write(tmp_path / "c.tar", ["0001.png"], png)  # an empty tar beside others is none the worse
    code, text = run("index", tmp_path, "--executor", "inline")
    assert (code, open_dataset(str(tmp_path)).num_samples) == (0, 1)


def test_what_of_a_folder_is_not_indexed_is_said(run: Run, tars: Path) -> None:
    (tars / "C.TAR").write_bytes((tars / "a.tar").read_bytes())
    (tars / "more").mkdir()
    (tars / "more" / "d.tar").write_bytes((tars / "a.tar").read_bytes())
    for options in (["--dry-run"], []):
        code, text = run("index", tars, "--executor", "inline", *options)
        assert code == 0
        assert f"not indexed: {tars}/C.TAR, {tars}/more/; " in text


def test_where_all_members_went_is_said(run: Run, tmp_path: Path, png: bytes) -> None:
    names = ["p.000.png", "p.001.png", "p.001.txt", "p.000.npy", "._p.000.png", "p.000.cls"]
    _write(tmp_path / "a.tar", names, png)
    code, text = run("index", tmp_path, "--executor", "inline")
    assert code == 0
    for line in (
        f"{tmp_path}: 1 shards, 2 samples, 0 faults",
        "  members: 6 = 2 images + 2 texts + 1 not read + 1 hidden",
        "  not read, by extension: 1 .npy",
        "  keys end at the last dot in 1 of 1 tars, whose names hold dots; webdataset's rule: --keys first-dot",
        "  1 classes: x",
        f"  named in {tmp_path}/index/rejects",
    ):
        assert f"{line}\n" in text
    code, text = run("index", tmp_path, "--keys", "first-dot", "--executor", "inline")
    assert code == 1
    assert "1 of 2 samples or images would be left out, over --max-unused 0.01" in text
    code, text = run("index", tmp_path, "--keys", "first-dot", "--image-extension", "001.png", "--executor", "inline")
    assert (code, open_dataset(str(tmp_path)).num_samples) == (0, 1)
    assert run("index", tmp_path, "--keys", "dots")[0] == 1


def test_patterns_and_compressed_tars(run: Run, tmp_path: Path, png: bytes) -> None:
    for number in range(3):
        _write(tmp_path / f"{number:03d}.tar", ["a.png"], png)
    (tmp_path / "003.tar.gz").write_bytes(b"x")
    code, text = run("index", f"{tmp_path}/{{000..001}}.tar", "--executor", "inline")
    assert (code, open_dataset(str(tmp_path)).num_samples) == (0, 2)
    code, text = run("index", f"{tmp_path}/{{000..009}}.tar", "--executor", "inline")
    assert code == 1
    assert "7 of 10 are not there" in text
    code, text = run("index", tmp_path, "--executor", "inline")
    assert code == 0
    assert f"not indexed, compressed: {tmp_path}/003.tar.gz; unpack them" in text
    code, text = run("index", tmp_path / "003.tar.gz")
    assert code == 1
    assert "unpack them" in text


def test_what_a_terminal_would_obey_is_not_printed(run: Run, tmp_path: Path, png: bytes) -> None:
    _write(
        tmp_path / "a\x1b[31m\u202e.tar",
        ["\x1b]0;x\x07k.png", "\x1b]0;x\x07k.json", "a\x1b[2J.npy", "a\x1b[2J.png"],
        png,
    )
    for command in (
        ("index", tmp_path, "--executor", "inline"),
        ("verify", tmp_path),
        ("index", tmp_path, "--dry-run"),
    ):
        code, text = run(*command)
        assert code in (0, 1)
        assert all(line.isprintable() for line in text.splitlines()), command
    tar = next(tmp_path.glob("*.tar"))
    tar.write_bytes(tar.read_bytes().replace(png, png[:-8] + b"12345678"))
    code, text = run("verify", tmp_path)
    assert code == 1
    assert all(line.isprintable() for line in text.splitlines())
    code, text = run("import", tmp_path, tmp_path.parent / "out\x1b[31m", "--executor", "inline")
    assert all(line.isprintable() for line in text.splitlines())


def test_a_manifest_that_lost_a_shard_is_not_whole(run: Run, tars: Path) -> None:
    import pyarrow.parquet as pq

    run("index", tars, "--executor", "inline")
    manifest = tars / "shards.parquet"
    pq.write_table(pq.read_table(manifest).slice(1), manifest)
    code, text = run("verify", tars)
    assert code == 1
    assert "num_shards is 2 in dataset.json, 1 by the rows of shards.parquet" in text
    assert run("index", tars, "--executor", "inline")[0] == 0
    assert run("verify", "-q", tars) == (0, "whole: 2 shards, 4 samples\n")
    (tars / "index" / "a.parquet").write_bytes(b"junk")
    code, text = run("index", tars, "--executor", "inline")
    assert "made again, its index was damaged: a: sha256 of the index is" in text


def test_it_ends_with_the_next_commands(run: Run, tars: Path, tmp_path: Path) -> None:
    _, text = run("index", tars, "--index-dir", tmp_path / "index", "--executor", "inline")
    assert [line for line in text.splitlines() if line.startswith("next: ")] == [
        f"next: headrace verify {tars} --index-dir {tmp_path}/index --decode",
        "next: headrace new mixture mixture.yaml",
    ]


def test_json_is_one_object_with_every_folder(run: Run, tars: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.tar").write_bytes((tars / "a.tar").read_bytes())
    (tmp_path / "more" / "d.tar.gz").touch()
    code, text = run("index", "-q", tars, tmp_path / "more", "--executor", "inline", "--json")
    facts = json.loads(text)
    second, first = facts["folders"]
    assert (code, first["folder"], second["folder"]) == (0, str(tars), f"{tmp_path}/more")
    assert (first["num_samples"], second["num_samples"]) == (4, 2)
    assert [(shard, key) for shard, key, _, _ in first["faults"]] == [("a", "2"), ("b", "2")]
    assert sum(first["members"].values()) == 8
    assert "d.tar.gz" in facts["remarks"][0]
    plan = json.loads(run("index", tars, "--json", "--dry-run")[1])["plan"]
    assert plan == [f"would index 2 tars of {tars} (a.tar .. b.tar) into {tars}"]


def test_the_cache_of_indexes_is_filled_ahead(run: Run, tars: Path, tmp_path: Path) -> None:
    assert run("index", tars, "--max-unused", "1")[0] == 0
    (tmp_path / "m.yaml").write_text(
        f"index_cache: {tmp_path / 'cache'}\nsources: [{{name: a, url: {tars}}}]\nlanes: 1\n"
    )
    assert run("index", "--cache", tmp_path / "m.yaml", "--dry-run") == (0, f"would keep the indexes of {tars}\n")
    for new in (2, 0):
        code, text = run("index", "--cache", tmp_path / "m.yaml", "--columns", "label, caption", "--json")
        (found,) = json.loads(next(line for line in text.splitlines() if line[:1] == "{"))["caches"]
        assert (code, found["num_indexes"], found["num_made"]) == (0, 2, new)
    code, text = run("index", "--cache", tars)  # a dataset, in the cache of the user
    assert code == 0
    assert "2 indexes, " in text
    assert len(list((tmp_path / "cache").rglob("*.rows"))) == 2


def test_what_a_filled_cache_cannot_mean_is_refused(run: Run, tars: Path, tmp_path: Path) -> None:
    code, text = run("index", "--cache", tars, "--rebuild", "--keys", "last-dot")
    assert code == 1
    assert "leave --rebuild and --keys out" in text
    code, text = run("index", tars, "--columns", "label")
    assert code == 1
    assert "--columns is what --cache keeps" in text
    code, text = run("index", "--cache", tmp_path / "m.yaml", "--index-dir", tmp_path)
    assert code == 1
    assert "--index-dir is the index of one dataset" in text
    (tmp_path / "m.yaml").write_text(f"index_cache: none\nsources: [{{name: a, url: {tars}}}]\n")
    code, text = run("index", "--cache", tmp_path / "m.yaml")
    assert code == 1
    assert "index_cache is none: there is nothing to fill" in text
