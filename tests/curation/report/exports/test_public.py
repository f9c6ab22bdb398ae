"""The public summary counts exactly, names the largest domains, and nothing of a single sample."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.curation.job import Job
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.stages import build as run_build
from headrace.shards.dataset import open_dataset


@pytest.mark.parametrize("suffix", ["html", "json"])
def test_the_public_summary_names_domains_and_nothing_of_a_sample(
    make_job: Callable[..., Recipe], tmp_path: Path, suffix: str
) -> None:
    recipe = make_job()
    Path(recipe.job, "recipe.yaml").write_text(recipe_text(recipe))
    run_build(recipe)
    Path(recipe.job, "logs").mkdir(exist_ok=True)
    log = "2025-11-30T23:59:59 INFO x: began\n2026-01-02T03:04:05 INFO x: ended\n"
    Path(recipe.job, "logs", "fetch-20251130T235959-1.log").write_text(log)
    out = tmp_path / f"public.{suffix}"
    options = ["--samples", "0", "--out", str(tmp_path / "r"), "--public", str(out)]
    assert CliRunner().invoke(app, ["report", recipe.job, *options]).exit_code == 0
    text = out.read_text()
    for row in open_dataset(Job(recipe.job).dataset).index(0).to_pylist():
        for secret in (row["uid"], row["sha256"], "a picture", row["url"].split("/", 3)[3].split(".")[0] + ".img"):
            assert secret not in text
    assert not re.search(r"https?://", text)
    if suffix == "html":
        assert "robots.txt" in text
        assert "2025-11 to 2026-01" in text
        return
    found = json.loads(text)
    assert found["general"]["images"] == found["general"]["captions"] == 17
    assert found["general"]["collected"] == ["2025-11", "2026-01"]
    assert found["crawled"]["crawler"] == recipe.fetch.user_agent
    assert (found["crawled"]["domains"], found["crawled"]["domains_listed"]) == (4, 1)
    sizes: dict[str, int] = {}
    dataset = open_dataset(Job(recipe.job).dataset)
    for number in range(len(dataset.shards)):
        for row in dataset.index(number).to_pylist():
            host = row["url"].split("/")[2]
            sizes[host] = sizes.get(host, 0) + row["size"]
    largest = max(sizes, key=lambda host: sizes[host])
    assert found["crawled"]["top_domains"][0][::2] == [largest, sizes[largest]]
    assert found["general"]["image_bytes"] == sum(sizes.values())
    assert sum(step["removed"] for step in found["processing"]["steps"]) == 24 - 17


def test_a_name_that_cannot_be_written_is_refused_before_anything_is(make_job: Callable[..., Recipe]) -> None:
    job = make_job().job
    for option, ending in (("--public", ".html or .json"), ("--atlas", ".parquet")):
        result = CliRunner().invoke(app, ["report", job, option, "summary.txt"])
        assert ending in str(result.exception)
    assert not Path(Job(job).report).exists()
