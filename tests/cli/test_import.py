"""`headrace import`: what a user sees."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.shards.dataset import open_dataset

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    (tmp_path / "in" / "dog" / "notes.txt").write_text("woof")
    return tmp_path / "in"


def test_import_says_what_it_did(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text = run("import", folder, tmp_path / "out", "--executor", "inline")
    assert code == 0
    assert f"{tmp_path}/out: 3 of 4 inputs in 1 shards, 2 classes" in text
    assert "rejected 1: not-image" in text
    assert f"listed in {tmp_path}/out/rejects.parquet" in text
    assert open_dataset(str(tmp_path / "out")).classes == ("cat", "dog")
    assert run("verify", "-q", tmp_path / "out", "--decode") == (0, "whole: 1 shards, 3 samples\n")


def test_a_dry_run_writes_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text = run("import", folder, tmp_path / "out", "--dry-run", "--samples-per-shard", 3)
    assert (code, text.split("(")[0]) == (0, "would import 4 inputs ")
    assert "into 2 shards" in text
    assert not (tmp_path / "out").exists()


def test_columns_are_chosen_by_name(run: Run, folder: Path, tmp_path: Path) -> None:
    image = (folder / "cat/1.png").read_bytes()
    pq.write_table(pa.table({"payload": [image] * 2, "kind": [4, 2], "junk": [[0], [0]]}), tmp_path / "a.parquet")
    arguments = ("import", tmp_path / "a.parquet", tmp_path / "out", "--executor", "inline")
    code, text = run(*arguments)
    assert code == 1
    assert "name one by --image-column" in text
    code, text = run(*arguments, "--image-column", "payload", "--label-column", "kind")
    assert code == 0
    assert "columns not imported: junk" in text
    assert open_dataset(str(tmp_path / "out")).index(0)["label"].to_pylist() == [4, 2]


@pytest.mark.parametrize("case", ["missing", "other settings", "none decodes", "no shards"])
def test_a_mistake_is_one_line_and_exit_code_1(run: Run, folder: Path, tmp_path: Path, case: str) -> None:
    if case == "missing":
        code, text = run("import", tmp_path / "nix", tmp_path / "out")
        assert "nothing there" in text
    elif case == "other settings":
        run("import", folder, tmp_path / "out", "--executor", "inline")
        code, text = run("import", folder, tmp_path / "out", "--executor", "inline", "--samples-per-shard", 2)
        assert "begun from other inputs or with other settings" in text
    elif case == "none decodes":
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("a")
        code, text = run("import", tmp_path / "texts", tmp_path / "out")
        assert "none of 1 inputs is an image that decodes" in text
    else:
        code, text = run("import", folder, tmp_path / "out", "--samples-per-shard", 0)
        assert "samples_per_shard must be 1 to 1000000, got 0" in text
    assert code == 1
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if line.startswith("headrace: ")]) == 1


def test_help_has_an_example(run: Run) -> None:
    for command in ("import", "index", "verify"):
        code, text = run(command, "--help")
        assert code == 0
        assert f"Example: headrace {command}" in " ".join(text.split())


def test_imported_bytes_are_the_files_bytes(run: Run, folder: Path, tmp_path: Path) -> None:
    run("import", folder, tmp_path / "out", "--executor", "inline")
    dataset = open_dataset(str(tmp_path / "out"))
    row = dataset.index(0).to_pylist()[2]
    tar = Path(dataset.tar_url(0)).read_bytes()
    with Image.open(io.BytesIO(tar[row["offset"] : row["offset"] + row["size"]])) as image:
        assert image.getpixel((0, 0)) == (2, 2, 2)


def test_what_was_left_out_is_said(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / ".hidden").touch()
    (folder / "link").symlink_to(tmp_path)
    code, text = run("import", folder, tmp_path / "out", "--executor", "inline")
    assert code == 0
    assert "a dataset sorted by class streams badly: --shuffle 0 mixes it" in text
    assert "  no input 1: hidden\n  no input 1: link-outside\n" in text
    code, text = run("import", folder, tmp_path / "mixed", "--executor", "inline", "--shuffle", 3)
    assert code == 0
    assert "streams badly" not in text
    assert open_dataset(str(tmp_path / "mixed")).num_samples == open_dataset(str(tmp_path / "out")).num_samples


@pytest.mark.parametrize("name", ["my [data] (v1)", "what?", "back{brace}", "{0..1}", "st*r", "~"])
def test_every_command_takes_every_path(
    run: Run, folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / name
    if name == "~":
        monkeypatch.setenv("HOME", str(tmp_path))
        place = Path("~")
    else:
        place.mkdir()
    folder.rename(tmp_path / "pics" if name == "~" else place / "pics")
    real = tmp_path if name == "~" else place
    code, _ = run("import", f"{place}/pics", f"{place}/ds", "--executor", "inline")
    assert code == 0
    assert run("verify", "-q", f"{place}/ds")[0] == 0
    (real / "wds").mkdir()
    (real / "wds" / "a.tar").write_bytes((real / "ds" / "shards" / "00000.tar").read_bytes())
    for url in (f"{place}/wds", f"{place}/wds/a.tar", f"{place}/wds/*.tar", f"{place}/wds/{{a,a}}.tar"):
        assert run("index", url, "--executor", "inline")[0] == 0
    assert run("verify", "-q", f"{place}/wds") == (0, "whole: 1 shards, 3 samples\n")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f'lanes: 1\nimage_size: 16\nsources: [{{name: s, url: "{place}/wds"}}]\n')
    code, text = run("stream", mixture, "--batches", 1, "--global-batch", 2)
    assert code == 0, text
    if name != "~":
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "mixture.yaml"])


def test_it_ends_with_the_next_commands(run: Run, folder: Path, tmp_path: Path) -> None:
    _, text = run("import", folder, tmp_path / "out", "--executor", "inline")
    assert [line for line in text.splitlines() if line.startswith("next: ")] == [
        f"next: headrace verify {tmp_path}/out --decode",
        "next: headrace new mixture mixture.yaml",
    ]
    assert "next: " not in run("import", "-q", folder, tmp_path / "out", "--executor", "inline")[1]


def test_json_is_one_object_with_the_numbers(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text = run("import", "-q", folder, tmp_path / "out", "--executor", "inline", "--json")
    facts = json.loads(text)
    assert (code, facts["command"], facts["dataset"]) == (0, "import", f"{tmp_path}/out")
    assert (facts["num_inputs"], facts["num_samples"], facts["num_shards"]) == (4, 3, 1)
    assert (facts["rejects"], facts["classes"]) == ({"not-image": 1}, ["cat", "dog"])
    assert "streams badly" in facts["remarks"][0]
    plan = json.loads(run("import", folder, tmp_path / "other", "--json", "--dry-run")[1])["plan"]
    assert plan[-1].startswith("would import 4 inputs")


def test_a_file_in_the_place_of_the_dataset_is_named_with_what_to_do(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    code, text = run("import", folder, tmp_path / "out", "--executor", "inline")
    assert code == 1
    assert text.splitlines()[-1].endswith(
        f"'{tmp_path}/out'; a file is in the way of a folder: name another, or remove it"
    )
