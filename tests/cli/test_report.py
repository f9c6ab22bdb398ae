"""`headrace report`: jobs, datasets, recipes, and what is none of these."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.shards.write import Sample, finish_dataset, write_shard

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    url = str(tmp_path / "dataset")
    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(sink, "PNG")
    columns = {"url": "http://a.test/1?<script>", "caption": "<script>alert(1)</script>", "label": 3}
    for name in ("00000", "00001"):
        write_shard(url, name, [Sample(f"{name}{n}", sink.getvalue(), "png", columns) for n in range(3)])
    finish_dataset(url, recipe_digest="r")
    return Path(url)


def test_a_dataset_is_reported_into_its_folder(run: Run, dataset: Path) -> None:
    code, text = run("report", dataset)
    assert (code, text.splitlines()[-2:]) == (
        0,
        [f"next: headrace verify {dataset} --decode", "next: headrace new mixture mixture.yaml"],
    )
    numbers = [line for line in text.splitlines() if line.startswith("  ")]
    assert [line.split() for line in numbers[:2]] == [["Shards", "2"], ["Samples", "6"]]
    assert max(map(len, numbers)) <= 80
    report = json.loads((dataset / "report" / "report.json").read_text())
    assert report["facts"]["num_samples"] == 6
    assert report["facts"]["num_shards"] == 2
    assert report["hosts"][0]["host"] == "a.test"
    assert b"<script>alert" not in (dataset / "report" / "report.html").read_bytes()


def test_out_and_title(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert run("report", dataset, "--out", tmp_path / "o", "--title", "Mine & yours")[0] == 0
    assert "<h1>Mine &amp; yours</h1>" in (tmp_path / "o" / "report.html").read_text()
    assert not (dataset / "report").exists()


def test_tars_without_an_index_are_reported_and_nothing_is_written_beside_them(
    run: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    alone = tmp_path / "alone"
    alone.mkdir()
    for tar in (dataset / "shards").glob("*.tar"):
        (alone / tar.name).write_bytes(tar.read_bytes())
    before = sorted(alone.iterdir())
    for target in (alone, f"{alone}/*.tar"):
        code, text = run("report", target, "--out", tmp_path / "out", "--pictures", "all")
        assert code == 0
        assert "next: headrace new mixture mixture.yaml" in text.splitlines()
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["facts"]["num_samples"] == 6
        assert len(report["galleries"]["kept"]) == 6
        assert sorted(alone.iterdir()) == before
    (alone / "00002.tar").write_bytes(b"no tar" * 200)
    code, text = run("report", alone, "--out", tmp_path / "out")
    (mistake,) = (line for line in text.splitlines() if line.startswith("headrace: "))
    assert (code, "00002.tar" in mistake) == (1, True)


def test_a_dry_run_writes_nothing(run: Run, dataset: Path) -> None:
    plan = json.loads(run("report", dataset, "--dry-run", "--json")[1])["plan"]
    code, text = run("report", dataset, "--dry-run")
    assert (code, text.splitlines()) == (0, plan)
    assert "report.html" in text
    assert not (dataset / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing-there",), "neither a job"),
        (("nothing-there.yaml",), "no such file"),
        (("--samples", "1000"), "samples must be"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run, dataset: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    target = (str(dataset),) if arguments[0].startswith("--") else ()
    places = [
        argument if argument.startswith("--") or argument.isdigit() else str(tmp_path / argument)
        for argument in arguments
    ]
    code, text = run("report", *target, *places)
    assert code == 1
    assert text.startswith("headrace: ")
    assert message in text
    assert text.count("\n") <= 1


def test_an_empty_job_is_told_what_to_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"schema": 1}')
    code, text = run("report", tmp_path)
    assert code == 1
    assert "headrace select" in text


def test_a_dry_run_of_a_recipe_needs_no_job_yet(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"job: {tmp_path}/job\nunsafe_images: off\ninput: {{urls: [list.csv]}}\n")
    code, text = run("report", recipe, "--dry-run")
    assert (code, "report.html" in text) == (0, True)
    assert run("report", recipe)[0] == 1
