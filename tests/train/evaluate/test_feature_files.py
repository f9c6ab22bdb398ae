"""Features on disk are those of the trunk, row by row; killed, shared or undisturbed they have the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headrace.shards.dataset import open_dataset
from headrace.train.config import load_run
from headrace.train.evaluate import feature_files
from headrace.train.evaluate.feature_files import FeatureJob, FilesConfig, write_features
from headrace.train.evaluate.features import FeaturesConfig, iterate_features
from headrace.train.evaluate.trunk import open_trunk
from headrace.train.loop import train
from tests.ports import free_port

# Writes piece after piece, slowly: whoever waits for the first can kill it before the last.
SLOW = """
import sys, time
from pathlib import Path
from headrace.train.evaluate import feature_files

commit = feature_files._commit

def slowly(*given):
    commit(*given)
    # The kill, however late it comes, finds pieces left to do.
    time.sleep(0.1 if len(list(Path(sys.argv[3]).glob("0*.parquet"))) < 3 else 1000)

feature_files._commit = slowly
feature_files.PIECE_BYTES = 1
config = feature_files.FilesConfig(out=sys.argv[3], images_per_batch=16)
feature_files.write_features(Path(sys.argv[1]), sys.argv[2], config, device="cpu")
"""
SHARED = """
import sys
from pathlib import Path
from headrace.train.evaluate import feature_files

feature_files.PIECE_BYTES = 1
config = feature_files.FilesConfig(out=sys.argv[3], images_per_batch=16)
assert feature_files.write_features(Path(sys.argv[1]), sys.argv[2], config, device="cpu")["finished"]
"""


@pytest.fixture
def run(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file(steps=2, validation=None))).out


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "PIECE_BYTES", 1)


def written(run: Path, url: str, out: Path, **given: Any) -> dict[str, Any]:
    part = given.pop("part", (0, 1))
    config = FilesConfig(out=str(out), **{"images_per_batch": 16, **given})
    return write_features(run, url, config, part=part, device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected_features(run: Path, url: str, *layers: tuple[int, ...], pooled: bool) -> list[torch.Tensor]:
    config = FeaturesConfig(layers=layers[0], more_layers=layers[1:], pooled=pooled, images_per_batch=16)
    rows = list(iterate_features(open_trunk(run), url, config))
    return [torch.cat([row.sets[which] for row in rows]) for which in range(len(layers))]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_parquet_file_has_the_features_beside_keys_and_columns(
    run: Path, pictures: str, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "f.parquet"
    result = written(run, pictures, out, dtype=dtype, columns=("label", "caption"))
    assert result["finished"]
    assert not Path(f"{out}.pieces").exists()
    table = pq.read_table(out)
    assert table.column("key").to_pylist() == [f"{number:06d}" for number in range(96)]
    assert table.column("place").to_pylist() == list(range(96))
    assert table.column("label").to_pylist() == [number % 3 for number in range(96)]
    assert table.column("caption")[1].as_py() == "a green picture"
    features = table.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(96, 16)
    assert features.dtype == dtype
    (expected,) = expected_features(run, pictures, (0, 1), pooled=True)
    assert np.array_equal(features, expected.numpy().astype(dtype))
    manifest = json.loads((tmp_path / "f.json").read_bytes())
    assert (manifest["rows"], manifest["damaged"], manifest["shape"]) == (96, [], [16])
    assert manifest["layers"] == {"features": [0, 1]}
    assert manifest["step"] == 2
    assert json.loads(table.schema.metadata[b"headrace.features"])["weights_sha256"] == manifest["weights_sha256"]


@pytest.mark.usefixtures("small_pieces")
def test_a_npy_file_is_mapped_into_memory_with_its_rows_beside(run: Path, pictures: str, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    written(run, pictures, out, tokens=True, layers=("last1", "0"))
    mapped = np.load(out, mmap_mode="r")
    assert (mapped.shape, mapped.dtype) == ((96, 2, 16, 16), np.float16)
    for which, expected in enumerate(expected_features(run, pictures, (1,), (0,), pooled=False)):
        assert np.array_equal(mapped[:, which], expected.half().numpy())
    rows = pq.read_table(tmp_path / "f.rows.parquet")
    assert rows.column_names == ["place", "key", "label"]
    assert rows.column("label").to_pylist() == [number % 3 for number in range(96)]


@pytest.mark.usefixtures("small_pieces")
def test_killed_it_goes_on_to_the_same_bytes(run: Path, pictures: str, tmp_path: Path) -> None:
    written(run, pictures, tmp_path / "whole")
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(run), pictures, str(out)], env=environment)
    while len(list(out.glob("0*.parquet"))) < 2:
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("0*.parquet")}
    assert 2 <= len(kept) < 6
    assert "rows" not in json.loads((out / "features.json").read_bytes())
    (out / ".00000005.parquet.x.tmp").write_bytes(b"half")
    assert written(run, pictures, out)["finished"]
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("killed_at", ["write_atomic", "_remove_pieces"])
def test_killed_behind_the_join_it_ends_like_one_that_was_not(
    run: Path, pictures: str, tmp_path: Path, suffix: str, *, killed_at: str
) -> None:
    """Once before it is said that the file is whole, once before its pieces are gone."""
    whole, out = (tmp_path / folder / f"f{suffix}" for folder in ("whole", "cut"))
    written(run, pictures, whole)
    act = getattr(feature_files, killed_at)

    def dying(*given: Any) -> None:
        if killed_at == "_remove_pieces" or b'"rows"' in given[1]:
            raise KeyboardInterrupt
        act(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_files, killed_at, dying)
        with pytest.raises(KeyboardInterrupt):
            written(run, pictures, out)
    assert out.is_file()
    assert out.with_name(f"{out.name}.pieces").is_dir()
    assert written(run, pictures, out)["finished"]
    assert contents(out.parent) == contents(whole.parent)


@pytest.mark.cuda
def test_features_of_a_gpu_become_rows(run: Path, pictures: str, tmp_path: Path) -> None:
    for dtype in ("float16", "float32"):
        config = FilesConfig(out=str(tmp_path / f"{dtype}.parquet"), dtype=dtype)  # type: ignore[arg-type]
        assert write_features(run, pictures, config, device="cuda")["finished"]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("suffix", [".parquet", ".npy", ""])
def test_parts_make_the_file_of_one(run: Path, pictures: str, tmp_path: Path, suffix: str) -> None:
    whole, shared = tmp_path / f"whole{suffix}", tmp_path / f"shared{suffix}"
    written(run, pictures, whole)
    for number in (2, 0):
        result = written(run, pictures, shared, part=(number, 3))
        assert not result["finished"]
    assert result["missing_pieces"] == 2
    assert not shared.is_file()
    assert written(run, pictures, shared, part=(1, 3))["finished"]
    if suffix:
        assert shared.read_bytes() == whole.read_bytes()
        assert shared.with_suffix(".json").read_bytes() == whole.with_suffix(".json").read_bytes()
    else:
        assert contents(shared) == contents(whole)


@pytest.mark.usefixtures("small_pieces")
def test_processes_make_the_file_of_one(run: Path, pictures: str, tmp_path: Path) -> None:
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", SHARED, str(run), pictures, str(tmp_path / "two.parquet")]
    running = [
        subprocess.Popen(
            command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    written(run, pictures, tmp_path / "one.parquet")
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.usefixtures("small_pieces")
def test_damaged_samples_are_named(run: Path, pictures: str, tmp_path: Path) -> None:
    damaged = shutil.copytree(pictures, tmp_path / "damaged")
    dataset = open_dataset(str(damaged))
    offset, size = (dataset.index(0).column(name)[7].as_py() for name in ("offset", "size"))
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    written(run, str(damaged), tmp_path / "f.parquet")
    manifest = json.loads((tmp_path / "f.json").read_bytes())
    assert (manifest["rows"], manifest["damaged"]) == (95, [{"place": 7, "key": "000007"}])
    assert 7 not in pq.read_table(tmp_path / "f.parquet").column("place").to_pylist()


@pytest.mark.usefixtures("small_pieces")
def test_a_part_that_ends_behind_the_last_one_finds_it_done(
    run: Path, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen all pieces; the other was first to join them."""
    out = tmp_path / "f.parquet"
    finish = feature_files._finish

    def twice(job: FeatureJob) -> None:
        finish(job)
        finish(job)

    monkeypatch.setattr(feature_files, "_finish", twice)
    assert written(run, pictures, out)["finished"]
    assert sorted(path.name for path in tmp_path.glob("f*")) == ["f.json", "f.parquet"]


def test_what_is_there_is_not_made_again_and_not_overwritten(run: Path, pictures: str, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    written(run, pictures, out)
    before = out.stat().st_mtime_ns
    assert written(run, pictures, out)["finished"]
    assert out.stat().st_mtime_ns == before
    for change in ({"dtype": "float32"}, {"samples": 5}, {"untrained": True}, {"layers": ("0",)}):
        with pytest.raises(ValueError, match=r"is of other features, .*name another --out"):
            written(run, pictures, out, **change)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"is not empty, and features\.json is not in it"):
        written(run, pictures, tmp_path / "full")
    (tmp_path / "other.npy").write_bytes(b"mine")
    with pytest.raises(ValueError, match="does not say what it is"):
        written(run, pictures, tmp_path / "other.npy")


def test_a_dataset_without_labels_has_features_too(
    run: Path, write_dataset: Callable[..., str], tmp_path: Path
) -> None:
    url = write_dataset(tmp_path / "bare", samples=8, change=lambda _, columns: {"caption": columns["caption"]})
    written(run, url, tmp_path / "f")
    table = pq.read_table(tmp_path / "f" / "00000000.parquet")
    assert table.column("label").to_pylist() == [-1] * 8
    written(run, url, tmp_path / "g", columns=())
    assert pq.read_table(tmp_path / "g" / "00000000.parquet").column_names == ["place", "key", "features"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": ("9",)}, "layers '9'"),
        ({"layers": ("0", "0")}, "one is given twice"),
        ({"columns": ("nothing",)}, "nothing"),
        ({"dtype": "int8"}, "dtype: unknown 'int8'"),
        ({"center_fraction": 0.0}, "center_fraction"),
        ({"interpolation": "nearest"}, "interpolation: unknown 'nearest'; known: bilinear, bicubic"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    run: Path, pictures: str, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        written(run, pictures, tmp_path / "f.parquet", **given)
    assert not list(tmp_path.glob("f*"))


def test_a_disk_without_room_is_said_before_the_first_batch(
    run: Path, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError, match=r"features take about 6,144 bytes more, 100 are free there"):
        written(run, pictures, tmp_path / "f.parquet")
