"""The studies of examples/studies: a killed one goes on, and what the pages say is what was measured."""

import dataclasses
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
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from headrace.examples.studies import aim_choices, arms, contrastive, data_mixture, figures, jobs
from headrace.shards.parquet import write_parquet

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "studies"
TINY = [
    *("steps=3", "global_batch=8", "mixture.lanes=4", "objective.width=16", "objective.depth=1"),
    *("objective.head_width=16", "validation.samples=8", "validation.every=3"),
    *("checkpoint.every=1", "checkpoint.keep_every=0"),
]


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """A folder with two small CIFARs and a tar of three photographs."""
    folder, rng = tmp_path / "originals", np.random.default_rng(0)
    folder.mkdir()
    for part, rows in (("train", 200), ("test", 24)):
        pictures = [simplejpeg.encode_jpeg(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(rows)]
        table = pa.table({"jpg": pictures, "label": [row % 2 for row in range(rows)]})
        write_parquet(str(folder / f"cifar10-{part}.parquet"), table)
    with tarfile.open(folder / "photographs.tar", "w") as tar:
        for number in range(3):
            data = simplejpeg.encode_jpeg(rng.integers(0, 256, (90, 60 + number, 3), np.uint8))
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder


def test_web_crops_are_windows_of_every_photograph_and_the_same_each_time(
    originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_mixture, "WEB_CROPS", 10)
    table = data_mixture.web_crops(originals)
    assert len(table) == 10
    assert {simplejpeg.decode_jpeg(crop).shape for crop in table["jpg"].to_pylist()} == {(32, 32, 3)}
    assert table.equals(data_mixture.web_crops(originals))


def test_a_killed_study_goes_on_and_does_nothing_twice(
    originals: Path,
    tmp_path: Path,
    write_dataset: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    hold: Callable[[str, int], dict[str, str]],
) -> None:
    out = tmp_path / "out"
    for number, name in enumerate(("curated", "web", "labelled", "test")):
        write_dataset(out / "data" / name, samples=24, first=1000 * number)
    program = [sys.executable, str(ROOT / "examples" / "studies" / "data_mixture.py"), "--originals", str(originals)]
    command = [*program, "--out", str(out), "--seeds", "0", "--arms", "curated,web", *TINY]
    # One run is whole, the other has begun, and cannot end before the kill.
    held = hold(str(out / "jobs" / "*-0.json"), 1)
    with subprocess.Popen(command, env=held, stdout=subprocess.PIPE, text=True, start_new_session=True) as study:
        while not list((out / "jobs").glob("*-0.json")):
            assert study.poll() is None
            time.sleep(0.05)
        os.killpg(study.pid, signal.SIGKILL)
        first = study.communicate()[0]
    done = {path.stem for path in (out / "jobs").iterdir()}
    second = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True).stdout
    assert first.count("+ headrace train") >= 1
    assert not any(f"out=runs/{name} " in second for name in done)
    result = json.loads((out / "data.json").read_text())
    assert [(run["arm"], run["seed"]) for run in result["runs"]] == [("curated", 0), ("web", 0)]
    for run in result["runs"]:
        assert [step for step, _ in run["validation"]] == [0, 3]
    assert [step for step, _ in result["runs"][0]["accuracy"]["attentive"]] == [0, 3]
    options = arms.parse_options(data_mixture.STUDY, command[2:])
    monkeypatch.setattr(jobs, "headrace", lambda *_: pytest.fail("a third call has nothing to do"))
    assert arms.run_study(data_mixture.STUDY, dataclasses.replace(options, processes=1)) == result
    changed = dataclasses.replace(options, processes=1, overrides=(*options.overrides, "optimizer.lr=0.1"))
    with pytest.raises(ValueError, match=r"was done with other settings; give them again, or another --out$"):
        arms.run_study(data_mixture.STUDY, changed)


@pytest.mark.parametrize(
    "study", [aim_choices.STUDY, data_mixture.STUDY, contrastive.STUDY], ids=lambda study: study.name
)
def test_every_arm_is_a_run(study: arms.Study, tmp_path: Path) -> None:
    options = arms.Options(originals=tmp_path, out=tmp_path, seeds=(0,), arms=tuple(study.arms))
    runs = [arms.plan_run(study, options, arm, 7) for arm in study.arms]
    assert len({run.train.arguments[3:] for run in runs}) == len(study.arms)
    assert all("seed=7" in run.train.arguments for run in runs)
    untrained = [job for run in runs for (_, step), job in run.probes.items() if step == 0]
    assert len(untrained) == len(study.probes)
    assert all("--untrained" in job.arguments for job in untrained)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "AIM,none"], "unknown arm 'none'; known: AIM, causal"),
        (["--seeds", "a"], "--seeds 'a': expected numbers with commas between them"),
        (["seed=1"], "seed=1: the study gives that for each run; see --out and --seeds"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        arms.parse_options(aim_choices.STUDY, ["--originals", str(tmp_path), "--out", str(tmp_path), *words])
    assert message in capsys.readouterr().err


def test_a_command_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^headrace train nothing\.yaml: headrace: nothing\.yaml: no such file"):
        jobs.headrace(tmp_path, "train", "nothing.yaml")


def test_a_difference_within_the_spread_of_seeds_is_called_so() -> None:
    deviation = figures.spread([[1.0, 3.0], [10.0, 12.0], [5.0]])
    assert deviation == pytest.approx(2**0.5)
    small = figures.difference("", [10.0, 12.0], [8.0, 10.0], deviation=deviation)
    assert (small.value, small.error) == (2.0, pytest.approx(2**0.5))
    assert small.finding == "within the seeds' spread"
    assert figures.difference("", [20.0, 22.0], [8.0, 10.0], deviation=deviation).finding == "higher"
    assert figures.difference("", [1.0, 3.0], [8.0, 10.0], deviation=deviation).finding == "lower"
    assert (
        figures.difference("", [1.0], [8.0], deviation=figures.spread([[1.0], [8.0]])).finding
        == "not known from one seed"
    )


def test_what_monitors_and_gradients_told_is_kept_with_its_step_and_layer() -> None:
    lines: list[dict[str, Any]] = [
        {"event": "gradients", "step": step, "max/a": 1.0, "max/b": 0.0} for step in range(40)
    ]
    lines[30] |= {"max/a": 7.0}
    lines += [
        {"event": "monitor/knn", "step": 0, "accuracy": 0.25},
        {"event": "monitor/knn", "step": 10, "error": "gone"},
        {"event": "spike", "step": 30, "layer": "a", "layers": {"a": 7.0}},
        {"event": "dip", "step": 31, "curve": "train/loss"},
    ]
    assert arms.watched(lines) == {
        "monitor/knn": [[0, 0.25]],
        "alarms": [["spike", 30, {"a": 7.0}], ["dip", 31, "train/loss"]],
        "gradient_peaks": {"a": [7.0, 30], "b": [0.0, 39]},
    }


def test_every_part_of_the_contrastive_study_has_its_table() -> None:
    def run(arm: str, seed: int) -> dict[str, object]:
        alarms = [
            ["spike", 30, {"encoder.blocks.0": 7.0}],
            ["dip", 31, "train/loss"],
            ["dip", 40, "monitor/knn/accuracy"],
        ]
        layers = ["encoder.blocks.0"] if "frozen" in arm else ["encoder.patch_embed.proj", "encoder.blocks.0"]
        return {
            **{"arm": arm, "seed": seed, "train": [[1, 3.0]], "monitor/knn": [[0, 0.2], [10, 0.3 + seed / 100]]},
            **{"alarms": alarms, "gradient_peaks": {layer: [7.0, 30] for layer in layers}},
            "accuracy": {"knn": [[0, 0.2], [10, 0.3 + seed / 100]]},
        }

    runs = [run(arm, seed) for seed in (0, 1) for arm in contrastive.STUDY.arms]
    files = contrastive.report({"runs": runs, "cpu_minutes": 1.0})
    page = files.pop("contrastive.md")
    assert set(files) == {f"contrastive-{part}.svg" for part in contrastive.PARTS}
    assert [title in page for title in contrastive.TITLES.values()] == [True] * 4
    assert "| learned 0.008 | 30.5 % (0.7 %) | 3.00 (0.00) | 2 | 2 | 2 |" in page
    assert "| `encoder.patch_embed.proj` | 0 (7.0) | frozen | 0 (7.0) |" in page
    assert "| `encoder.blocks.0` | 2 (7.0) | 2 (7.0) |" in page
    assert "| frozen 0.032 above learned 0.032 | +0.0 |" in page


@pytest.mark.parametrize(
    ("study", "report", "least"),
    [
        (aim_choices.STUDY, aim_choices.report, set(aim_choices.ARMS)),
        (data_mixture.STUDY, data_mixture.report, set(data_mixture.STUDY.arms)),
        (contrastive.STUDY, contrastive.report, set(contrastive.PARTS["patch"])),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_page_of_a_study_says_what_was_measured(
    study: arms.Study, report: Callable[[dict[str, object]], dict[str, str]], least: set[str]
) -> None:
    text = (PAGES / f"{study.name}.json").read_text()
    result = json.loads(text)
    assert text == arms.as_json(result)
    assert least <= {run["arm"] for run in result["runs"]} <= set(study.arms)
    page, files = (PAGES / f"{study.name}.md").read_text(), report(result)
    assert page == arms.with_tables(PAGES / f"{study.name}.md", files.pop(f"{study.name}.md"))
    for name, made in files.items():
        assert (PAGES / name).read_text() == made
        assert f"]({name})" in page
