"""`headrace index`: what a user sees."""

import io
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
