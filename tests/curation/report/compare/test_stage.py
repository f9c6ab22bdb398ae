"""Two datasets beside each other: what they share is counted exactly, whatever wrote them."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.curation.job import Job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def picture(number: int) -> bytes:
    output = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10 + number, 3), np.uint8)
    Image.fromarray(pixels).save(output, "JPEG")
    return output.getvalue()


def write_tar(path: Path, numbers: range, *, url: str = "http://a{0}.example.co.uk/{0}.jpg") -> None:
    """Write what img2dataset writes: a picture, its caption and its JSON."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            meta = json.dumps({"url": url.format(number), "caption": f"number {number}", "sha256": f"{number:064x}"})
            parts = {"jpg": picture(number), "txt": f"number {number}".encode(), "json": meta.encode()}
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_tars_of_others_share_what_they_share(tmp_path: Path) -> None:
    for name, numbers in (("one", range(20)), ("two", range(15, 40))):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "00000.tar", numbers)
    out = tmp_path / "out"
    text = run(str(tmp_path / "one"), str(tmp_path / "two" / "*.tar"), "--out", str(out))
    assert max(map(len, (line for line in text.splitlines() if line.startswith("  ")))) <= 80
    found = json.loads((out / "compare.json").read_text())
    for name in ("sha256", "url", "stored"):
        assert {key: found["overlap"]["by"][name][key] for key in ("a", "b", "both")} == {"a": 20, "b": 25, "both": 5}
    only = {side: {row["url"] for row in rows} for side, rows in found["overlap"]["only"].items()}
    assert only["a"] == {f"http://a{number}.example.co.uk/{number}.jpg" for number in range(15)}
    assert len(only["b"]) == 20
    assert [row[:3] for row in found["domains"]["rows"]] == [["example.co.uk", 20, 25]]
    assert sum(found["histograms"]["width"]["before"]) == 20
    assert sum(found["histograms"]["width"]["after"]) == 25
    html = (out / "compare.html").read_text()
    for word in ("Overlap", "Only in A", "number 3"):
        assert word in html


def test_a_job_and_its_dataset_are_the_same_and_its_funnel_is_shown(
    make_job: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_job()
    ledger_alone = tmp_path / "ledger-alone"
    shutil.copytree(recipe.job, ledger_alone)
    run_build(recipe)
    dataset = tmp_path / "alone"
    shutil.copytree(Job(recipe.job).dataset, dataset)
    for other in (dataset, ledger_alone):
        summary = json.loads(run(recipe.job, str(other), "--out", str(tmp_path / "out"), "--json"))
        assert summary["overlap"]["uid"] == {"a": 17, "b": 17, "both": 17, "unknown_a": 0, "unknown_b": 0}
        assert summary["overlap"]["sha256"]["both"] == 17
        found = json.loads((tmp_path / "out" / "compare.json").read_text())
        assert found["funnels"][0][-1]["rows_out"] == 17
        assert sum(found["histograms"]["clip_score"]["after"]) == 17
        assert found["overlap"]["only"] == {"a": [], "b": []}


def test_more_than_two_targets_are_refused() -> None:
    result = CliRunner().invoke(app, ["report", "a", "b", "c"])
    assert "quote a pattern" in str(result.exception)
