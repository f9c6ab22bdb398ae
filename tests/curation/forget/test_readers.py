"""Readers of a dataset before a take-down: runs are audited as they were, streams and states are told what happened."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.cli.app import main
from headrace.config import config_to_dict
from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, run_forget
from headrace.curation.job import Job, own_job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.pipeline import Mixture, Source, open_stream
from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.forgotten import as_of, read_versions

MakeJob = Callable[..., Recipe]
BATCH, STEPS = 4, 12


def forget(recipe: Recipe, *urls: str) -> None:
    with own_job(Job(recipe.job), forgetting=True) as job:
        run_forget(job, Texts(set(urls)), ForgetOptions())


def mixture_of(recipe: Recipe) -> Mixture:
    source = Source(name="web", url=Job(recipe.job).dataset, chunk_samples=2, shuffle_window=8)
    return Mixture(
        seed=5, lanes=4, image_size=16, sources=(source,), index_cache="none", decode_threads=1, io_threads=1
    )


def run(mixture: Mixture, out: Path) -> dict[str, list[int]]:
    """Do STEPS as a trainer does and leave a run folder; return the steps that each key was in."""
    seen: dict[str, list[int]] = {}
    out.mkdir()
    data = {"out": str(out), "global_batch": BATCH, "mixture": config_to_dict(mixture)}
    (out / "run.yaml").write_text(yaml.safe_dump(data))
    with open_stream(mixture, global_batch=BATCH) as stream:
        for step in range(1, STEPS + 1):
            for key in next(stream).key:
                seen.setdefault(key, []).append(step)
        folder = out / "checkpoints" / f"{STEPS:08d}"
        folder.mkdir(parents=True)
        state = {"step": STEPS, "stream": stream.state_dict(), "config": data}
    (folder / "state.json").write_text(json.dumps(state))
    (out / "metrics.jsonl").write_text(json.dumps({"event": "train", "step": STEPS}) + "\n")
    return seen


def audit(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["headrace", "audit", *arguments, "--json", "-q"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, stopped.value.code
    return dict(json.loads(capsys.readouterr().out))


def urls_of(recipe: Recipe) -> dict[str, str]:
    dataset = open_dataset(Job(recipe.job).dataset)
    return {row["key"]: row["url"] for n in range(len(dataset.shards)) for row in dataset.index(n).to_pylist()}


def test_audit_names_the_steps_that_had_seen_what_was_forgotten(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_job(samples_per_shard=5)
    run_build(recipe)
    seen = run(mixture_of(recipe), tmp_path / "run")
    urls = urls_of(recipe)
    # Two take-downs: the second counts its rows in what the first has left. One takes a whole shard.
    first, second = ["00001000001", "00000000000"], ["00001000003", *(key for key in urls if key.startswith("00002"))]
    forget(recipe, *(urls[key] for key in first))
    forget(recipe, *(urls[key] for key in second))
    told = audit(str(tmp_path / "run"), monkeypatch=monkeypatch, capsys=capsys)["taken_down"]
    assert {one["key"]: (one["take_down"], one["steps"]["seen"]) for one in told} == {
        key: (name, seen[key]) for name, keys in (("00000", first), ("00001", second)) for key in keys
    }
    rows = audit(str(tmp_path / "run"), "--url", urls[first[0]], monkeypatch=monkeypatch, capsys=capsys)["rows"]
    assert [(row["key"], row["step"], row["url"]) for row in rows] == [(first[0], s, None) for s in seen[first[0]]]
    left = next(key for key in urls if key not in (*first, *second))
    rows = audit(str(tmp_path / "run"), "--url", urls[left], monkeypatch=monkeypatch, capsys=capsys)["rows"]
    assert [(row["key"], row["step"]) for row in rows] == [(left, step) for step in seen[left]]
    dataset = open_dataset(Job(recipe.job).dataset)
    for version in read_versions(dataset.url):
        before = as_of(dataset, version.shards.digest())
        assert before is not None
        assert before.num_samples == version.shards.num_samples.sum()


def test_a_stream_and_a_state_of_before_say_that_samples_were_taken_down(make_job: MakeJob) -> None:
    recipe = make_job(samples_per_shard=5)
    run_build(recipe)
    urls, mixture = urls_of(recipe), mixture_of(recipe)
    opened = open_dataset(Job(recipe.job).dataset)
    with open_stream(mixture, global_batch=BATCH) as stream:
        next(stream)
        state = stream.state_dict()
    forget(recipe, urls["00000000002"])
    with pytest.raises(ShardError, match=r"changed since it was opened.*open it again"):
        opened.index(0)
    with (
        open_stream(mixture, global_batch=BATCH) as stream,
        pytest.raises(ValueError, match=r"1 samples of .* were taken down since"),
    ):
        stream.load_state_dict(state)
    with open_stream(mixture, global_batch=BATCH) as stream:
        assert "00000000002" not in {key for _ in range(10) for key in next(stream).key}
