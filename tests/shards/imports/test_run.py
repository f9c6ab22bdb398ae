"""Import: every input is a sample or a line in rejects.parquet, in order, and a rerun changes nothing."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.lease import only_writer
from headrace.shards.commit import committed
from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.imports.run import ImportConfig, ImportSummary, import_images, open_source
from headrace.shards.payloads import read_sample
from headrace.shards.units import INLINE, EngineConfig
from headrace.shards.verify import verify_dataset

Encode = Callable[..., bytes]


def _import(source: object, out: object, engine: EngineConfig = INLINE, **settings: object) -> ImportSummary:
    config = ImportConfig(**settings)
    return import_images(open_source(str(source), config), str(out), config, engine=engine)


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _rows(url: object) -> list[dict[str, object]]:
    dataset = open_dataset(str(url))
    return [row for shard in range(len(dataset.shards)) for row in dataset.index(shard).to_pylist()]


def _make_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


@pytest.fixture
def folder(tmp_path: Path, encode_image: Encode) -> Path:
    """Two classes, a nested file, a file at the top, hidden files, a text file."""
    root = tmp_path / "images"
    for name, image_format in {
        "cat/1.jpg": "jpeg",
        "cat/2.png": "png",
        "cat/deep/3.webp": "webp",
        "dog/1.jpg": "jpeg",
        "zebra/1.JPEG": "jpeg",
        "top.bmp": "bmp",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode_image(image_format, seed=len(name)))
    (root / "cat" / "README.txt").write_text("about cats")
    (root / "dog" / "empty.jpg").touch()
    (root / "dog" / "cut.jpg").write_bytes(encode_image("jpeg", (64, 64))[:-300])
    (root / ".cache").mkdir()
    (root / ".cache" / "x.jpg").write_bytes(encode_image())
    (root / "dog" / ".DS_Store").touch()
    return root


def test_a_folder_gives_labels_by_sorted_class(folder: Path, tmp_path: Path) -> None:
    summary = _import(folder, tmp_path / "out", samples_per_shard=4)
    assert (summary.num_inputs, summary.num_samples, summary.num_shards) == (9, 6, 3)
    assert summary.rejects == {"empty": 1, "not-image": 1, "truncated": 1}
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.classes == ("cat", "dog", "zebra")
    rows = _rows(tmp_path / "out")
    assert [(row["source"], row["label"]) for row in rows] == [
        ("cat/1.jpg", 0),
        ("cat/2.png", 0),
        ("cat/deep/3.webp", 0),
        ("dog/1.jpg", 1),
        ("top.bmp", None),
        ("zebra/1.JPEG", 2),
    ]
    assert read_sample(dataset, 0, 0) == (folder / "cat/1.jpg").read_bytes()
    assert list(verify_dataset(str(tmp_path / "out"), decode=True)) == []


def test_every_reject_has_its_line(folder: Path, tmp_path: Path) -> None:
    _import(folder, tmp_path / "out", samples_per_shard=2)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(row["position"], row["name"], row["reason"], row["imported"]) for row in rejects] == [
        (2, "cat/README.txt", "not-image", False),
        (5, "dog/cut.jpg", "truncated", False),
        (6, "dog/empty.jpg", "empty", False),
        (None, ".cache/x.jpg", "hidden", False),
        (None, "dog/.DS_Store", "hidden", False),
    ]
    keys = [int(str(row["key"])) for row in _rows(tmp_path / "out")]
    positions = [row["position"] for row in rejects if row["position"] is not None]
    assert sorted(keys + positions) == list(range(9))


def test_links_out_of_the_folder_are_named_or_followed_and_what_is_no_file_is_rejected(
    tmp_path: Path, encode_image: Encode
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1.png").write_bytes(encode_image("png"))
    root = tmp_path / "in"
    (root / "real").mkdir(parents=True)
    (root / "linked").symlink_to(tmp_path / "store")
    (root / "real" / "link.png").symlink_to(tmp_path / "store" / "1.png")
    (root / "real" / "broken.png").symlink_to(tmp_path / "nix")
    (root / "real" / "loop").symlink_to(root)
    os.mkfifo(root / "real" / "pipe.png")
    (root / "real" / "own.png").write_bytes(encode_image("png"))
    (root / "real" / "inside.png").symlink_to(root / "real" / "own.png")
    summary = _import(root, tmp_path / "followed", follow_links=True)
    assert (summary.rejects, summary.leftovers) == ({"no-file": 2}, {"loop": 1})
    every = ["linked/1.png", "real/inside.png", "real/link.png", "real/own.png"]
    assert [row["source"] for row in _rows(tmp_path / "followed")] == every
    inside = _import(root, tmp_path / "inside")
    assert (inside.rejects, inside.leftovers) == ({"no-file": 2}, {"link-outside": 2, "loop": 1})
    assert [row["source"] for row in _rows(tmp_path / "inside")] == ["real/inside.png", "real/own.png"]
    left = pq.read_table(tmp_path / "inside" / "rejects.parquet").to_pylist()
    assert [row["name"] for row in left if row["reason"] == "link-outside"] == ["linked", "real/link.png"]
    for name in ("inside.png", "own.png"):
        (root / "real" / name).unlink()
    with pytest.raises(ShardError, match=r"2 link-outside, 1 loop \(the first: linked\).*read them by --follow-links"):
        open_source(str(root), ImportConfig())


def test_file_names_need_not_be_utf8(tmp_path: Path, encode_image: Encode) -> None:
    root = tmp_path / "in"
    (root / "k\udcff").mkdir(parents=True)
    (root / "k\udcff" / "\udcfe.png").write_bytes(encode_image("png"))
    (root / "k\udcff" / "\udcfd.png").write_bytes(b"junk")
    assert _import(root, tmp_path / "out").rejects == {"not-image": 1}
    assert open_dataset(str(tmp_path / "out")).classes == ("k\\xff",)
    assert _rows(tmp_path / "out")[0]["source"] == "k\\xff/\\xfe.png"


def test_out_inside_source_is_refused_however_it_is_spelled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    for source in (folder, f"~/{folder.name}", folder.name, f"{folder}/../{folder.name}", "link"):
        for out in (folder / "out", f"~/{folder.name}/out", folder.name, "link/out"):
            with pytest.raises(ValueError, match="lies inside"):
                import_images(open_source(str(source), ImportConfig()), str(out), ImportConfig())
    assert not (folder / "out").exists()


def test_images_over_the_cap_are_not_read(folder: Path, tmp_path: Path) -> None:
    with (folder / "cat" / "huge.jpg").open("wb") as file:
        file.truncate(1 << 38)
    assert _import(folder, tmp_path / "out").rejects["too-large"] == 1


def test_loose_images_in_a_tar(tmp_path: Path, encode_image: Encode) -> None:
    images = [encode_image(seed=n) for n in range(5)]
    names = ["n02_b/a.1.jpg", "n02_b/a.2.jpg", "n01_a/x.png", "n01_a/._x.png", "n01_a/notes"]
    source = _make_tar(tmp_path / "loose.tar", list(zip(names, images, strict=True)))
    summary = _import(source, tmp_path / "out")
    assert (summary.num_inputs, summary.num_samples) == (4, 4)
    rows = _rows(tmp_path / "out")
    assert [(row["source"], row["label"]) for row in rows] == [
        (names[0], 1),
        (names[1], 1),
        (names[2], 0),
        (names[4], 0),
    ]
    assert open_dataset(str(tmp_path / "out")).classes == ("n01_a", "n02_b")


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["n00000002_7.JPEG", "n00000001_9.JPEG", "n00000002_8.JPEG"], ("n00000001", "n00000002"), [1, 0, 1]),
        (["n00000002_b.JPEG", "n00000001_a_c.JPEG"], ("n00000001_a_c", "n00000002_b"), [1, 0]),
        (["plain.jpg", "other.jpg"], (), [None, None]),
    ],
)
def test_classes_of_loose_names(
    tmp_path: Path, encode_image: Encode, names: list[str], classes: tuple[str, ...], labels: list[int | None]
) -> None:
    source = _make_tar(tmp_path / "loose.tar", [(name, encode_image()) for name in names])
    _import(source, tmp_path / "out")
    assert open_dataset(str(tmp_path / "out")).classes == classes
    assert [row["label"] for row in _rows(tmp_path / "out")] == labels


def test_a_webdataset_keeps_its_texts(tmp_path: Path, encode_image: Encode) -> None:
    facts = json.dumps({"url": "http://a", "label": 4}).encode()
    _make_tar(
        tmp_path / "0.tar",
        [
            ("a.jpg", encode_image()),
            ("a.txt", b"caption"),
            ("a.json", facts),
            ("b.txt", b"no image"),
            ("c.jpg", b"x" * 9),
        ],
    )
    _make_tar(
        tmp_path / "1.tar", [("d.json", b"{broken"), ("d.jpg", encode_image(seed=1)), ("e.png", encode_image("png"))]
    )
    summary = _import(tmp_path, tmp_path / "out")
    assert (summary.num_inputs, summary.num_samples, summary.notes) == (5, 3, 1)
    assert summary.rejects == {"no-image": 1, "not-image": 1}
    rows = _rows(tmp_path / "out")
    assert [(row["source"], row["caption"], row["url"], row["label"]) for row in rows] == [
        ("a", "caption", "http://a", 4),
        ("d", None, None, None),
        ("e", None, None, None),
    ]
    notes = [row for row in pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist() if row["imported"]]
    assert [(row["name"], row["reason"]) for row in notes] == [("d", "bad-text")]


def test_a_truncated_tar_is_not_imported(tmp_path: Path, encode_image: Encode) -> None:
    source = _make_tar(tmp_path / "cut.tar", [("a.jpg", encode_image()), ("b.jpg", encode_image())])
    source.write_bytes(source.read_bytes()[:2048])
    with pytest.raises(ShardError, match=r"cut\.tar: at byte \d+: truncated"):
        _import(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _parquet(path: Path, images: list[bytes | None], row_group_size: int = 3, **columns: list[object]) -> Path:
    pq.write_table(pa.table({"jpg": pa.array(images, pa.binary()), **columns}), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("samples_per_shard", [1, 2, 5, 100])
def test_parquet_rows_come_in_order_whatever_the_shard_size(
    tmp_path: Path, encode_image: Encode, samples_per_shard: int
) -> None:
    images = [encode_image("png", seed=n) for n in range(11)]
    (tmp_path / "p").mkdir()
    _parquet(tmp_path / "p" / "a.parquet", images[:8], label=[n % 3 for n in range(8)])
    _parquet(tmp_path / "p" / "b.parquet", images[8:], label=[n % 3 for n in range(8, 11)])
    _import(tmp_path / "p", tmp_path / "out", samples_per_shard=samples_per_shard)
    rows = _rows(tmp_path / "out")
    assert [row["sha256"] for row in rows] == [hashlib.sha256(image).hexdigest() for image in images]
    assert [row["label"] for row in rows] == [n % 3 for n in range(11)]
    assert rows[9]["source"] == "b.parquet:1"
    assert rows[0]["format"] == "png"


def test_parquet_columns_become_ours(tmp_path: Path, encode_image: Encode) -> None:
    source = _parquet(
        tmp_path / "a.parquet",
        [encode_image(), None, b"", b"junk", encode_image()],
        label=[1, 0, 0, 1, 1],
        class_name=["dog", "cat", "cat", "dog", "dog"],
        text=["a", "b", "c", "d", None],
        url=["u", "v", "w", "x", None],
        other=[1, 2, 3, 4, 5],
    )
    summary = _import(source, tmp_path / "out")
    assert summary.rejects == {"empty": 1, "no-image": 1, "not-image": 1}
    assert [(row["label"], row["caption"], row["url"]) for row in _rows(tmp_path / "out")] == [
        (1, "a", "u"),
        (1, None, None),
    ]
    assert open_dataset(str(tmp_path / "out")).classes == ("cat", "dog")
    assert [row["other"] for row in _rows(tmp_path / "out")] == [1, 5]
    assert open_source(str(source), ImportConfig()).left_out == ()


def test_parquet_with_class_names_as_labels_and_images_in_structs(tmp_path: Path, encode_image: Encode) -> None:
    table = pa.table({"image": [{"bytes": encode_image(), "path": "x"}] * 3, "label": ["b", "a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    _import(tmp_path / "a.parquet", tmp_path / "out")
    assert open_dataset(str(tmp_path / "out")).classes == ("a", "b")
    assert [row["label"] for row in _rows(tmp_path / "out")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"x": [b"a"]}, {}, r"no column of images; name one by --image-column; it has x \(binary\)"),
        ({"x": [b"a"]}, {"image_column": "y"}, "no column y"),
        ({"x": ["a"]}, {"image_column": "x"}, "column x is string, expected bytes"),
        ({"jpg": [b"a"], "label": [0.5]}, {}, "column label is double, expected integers or class names"),
    ],
)
def test_a_parquet_without_images_says_what_it_has(
    tmp_path: Path, columns: dict[str, list[object]], settings: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        _import(tmp_path / "a.parquet", tmp_path / "out", **settings)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [b"a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"png": [b"a"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: its columns differ"):
        _import(tmp_path, tmp_path / "out")
    (tmp_path / "b.parquet").write_bytes(b"junk" * 10)
    with pytest.raises(ValueError, match=r"b\.parquet: not a parquet file"):
        _import(tmp_path, tmp_path / "out")


def test_nothing_to_import_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing there"):
        _import(tmp_path / "nix", tmp_path / "out")
    (tmp_path / "file.zip").touch()
    with pytest.raises(ValueError, match="expected an image folder"):
        _import(tmp_path / "file.zip", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file there"):
        _import(tmp_path / "empty", tmp_path / "out")


def test_a_rerun_and_many_processes_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = _import(folder, tmp_path / "a", samples_per_shard=2)
    whole = _tree(tmp_path / "a")
    assert _import(folder, tmp_path / "a", samples_per_shard=2) == first
    assert _tree(tmp_path / "a") == whole
    assert _import(folder, tmp_path / "b", engine=EngineConfig(workers=2), samples_per_shard=2) == first
    assert _tree(tmp_path / "b") == whole


def test_another_source_or_setting_is_refused(folder: Path, tmp_path: Path, dataset_url: str) -> None:
    _import(folder, tmp_path / "out")
    for settings in ({"samples_per_shard": 3}, {"decode": False}):
        with pytest.raises(ValueError, match="begun from other inputs or with other settings"):
            _import(folder, tmp_path / "out", **settings)
    (folder / "dog" / "new.jpg").touch()
    with pytest.raises(ValueError, match="begun from other inputs"):
        _import(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="already a dataset that was not imported"):
        _import(folder, dataset_url)


def test_of_two_imports_into_one_folder_the_second_is_refused(folder: Path, tmp_path: Path) -> None:
    with only_writer(str(tmp_path / "out")), pytest.raises(ValueError, match="another process"):
        _import(folder, tmp_path / "out")
    _import(folder, tmp_path / "out")


def test_worker_processes_need_files_that_they_can_see(folder: Path) -> None:
    with pytest.raises(ValueError, match="memory://out is seen by one process only"):
        _import(folder, "memory://out", engine=EngineConfig(workers=2))


def test_import_to_and_from_any_url(folder: Path, tmp_path: Path) -> None:
    import fsspec

    source = f"memory://{tmp_path}/source"
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), source, recursive=True)
    _import(source, f"memory://{tmp_path}/out", samples_per_shard=4)
    _import(folder, tmp_path / "out", samples_per_shard=4)
    assert _rows(f"memory://{tmp_path}/out") == _rows(tmp_path / "out")


def test_without_decoding_only_header_and_end_are_looked_at(tmp_path: Path, encode_image: Encode) -> None:
    data = bytearray(encode_image("png", (32, 32)))
    start = data.index(b"IDAT") + 8
    data[start : start + 20] = bytes(20)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(data)
    (tmp_path / "in" / "good.png").write_bytes(encode_image("png"))
    assert _import(tmp_path / "in", tmp_path / "a").rejects == {"undecodable": 1}
    assert _import(tmp_path / "in", tmp_path / "b", decode=False).rejects == {}


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_at_any_moment_then_rerun_gives_the_same_bytes(
    tmp_path: Path, encode_image: Encode, hold: Callable[[str, int], dict[str, str]], workers: int
) -> None:
    images: list[bytes | None] = [encode_image("png", (48, 48), seed=n % 97) + b"\0" * n for n in range(600)]
    images[77] = images[400] = b"junk"
    source = _parquet(tmp_path / "in.parquet", images, 50, label=[n % 10 for n in range(600)])
    settings = ["--samples-per-shard", "10", "--workers", str(workers)]
    program = "from headrace.cli.app import main; main()"
    command = [sys.executable, "-c", program, "import", str(source)]
    subprocess.run([*command, str(tmp_path / "whole"), *settings], check=True, capture_output=True, timeout=120)
    whole = _tree(tmp_path / "whole")
    out = tmp_path / "killed"
    left_at_kill = []
    for number in range(6 if workers == 1 else 3):
        process = subprocess.Popen(
            [*command, str(out), *settings],
            env=hold(f"{out}/commits/*.json", 57),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Kill once the run has committed some more shards, at an odd moment.
        target = min(len(committed(str(out))) + 3 + 2 * number, 55)
        deadline = time.monotonic() + 60
        while len(committed(str(out))) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0007 * (number + 1))
        process.kill()  # the parent only: its workers must notice and end
        assert process.wait(30) == -signal.SIGKILL, "the run ended before it was killed"
        left_at_kill.append(60 - len(committed(str(out))))
        for name in committed(str(out)):  # nothing committed is half written
            assert _tree(out)[f"shards/{name}.tar"] == whole[f"shards/{name}.tar"]
            assert _tree(out)[f"shards/{name}.parquet"] == whole[f"shards/{name}.parquet"]
    assert all(left > 0 for left in left_at_kill), left_at_kill
    subprocess.run([*command, str(out), *settings], check=True, capture_output=True, timeout=120)
    assert _tree(out) == whole


@pytest.mark.parametrize("damage", [{"rejects": [5]}, {"rejects": [[1, "x"]]}, {"rejects": None}, {"num_samples": "3"}])
def test_a_damaged_record_is_one_line_that_names_it(folder: Path, tmp_path: Path, damage: dict[str, object]) -> None:
    _import(folder, tmp_path / "out")
    record = tmp_path / "out" / "commits" / "00000.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **damage}))
    with pytest.raises(ValueError, match=r"commits/00000\.json: damaged commit record: "):
        _import(folder, tmp_path / "out")
