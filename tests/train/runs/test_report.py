"""The page of runs shows what their metrics hold, and loses no spike."""

import html
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.page.html import Link, table
from headrace.trace.history import open_history
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.runs.folder import NonFiniteError
from headrace.train.runs.report import MAX_POINTS, read_runs, render, summaries, thinned


def write_metrics(folder: Path, *, steps: int, spike: int = 0, bad: int = 0) -> str:
    folder.mkdir()
    lines = []
    for step in range(1, steps + 1):
        norm = 1.0 + 0.01 * math.sin(step)
        line = {"event": "train", "step": step, "samples": 16 * step, "loss": 2 / step, "lr": 0.1, "grad_norm": norm}
        line |= {"images_per_second": 100.0, "data_wait_percent": 1.0}
        lines.append(line | ({"grad_norm": 50.0} if step == spike else {}) | ({"loss": None} if step == bad else {}))
    lines.append({"event": "validation", "step": steps, "loss": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.yaml").write_text("objective: {kind: aim}\n")
    return str(folder)


def test_a_run_with_a_skipped_step_and_a_change_is_shown(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Aim.forward

    def spoiled(self: Aim, batch: Any) -> Any:
        loss, report = forward(self, batch)
        return (loss * float("nan") if self.training and int(batch.position[0]) == 64 else loss), report

    monkeypatch.setattr(Aim, "forward", spoiled)
    config = load_run(run_file(on_non_finite="skip", changes_at={6: {"optimizer.lr": 0.0005}}))
    train(config)
    runs = read_runs([config.out])
    page = render(runs, title="A <run>").decode()
    for text in ("A &lt;run&gt;", "Skipped steps", "not finite", "64..80", "Planned changes", "optimizer.lr", "0.0005"):
        assert text in page
    assert f"headrace trace {config.out} --step 5" in page
    assert open_history(config.out).positions(5) == range(64, 80)  # trace counts steps as the page does
    for section in (
        "Loss", "Validation loss", "Learning rate", "Gradient norm", "Images per second", "Seconds a step",
        "Waiting for data, seconds, worst rank", "Memory in tensors, bytes, worst rank",
    ):  # fmt: skip
        assert f"<h2>{section}</h2>" in page
    assert "<h2>MFU, percent</h2>" not in page  # a CPU has no peak
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    (row,) = summaries(runs)
    assert (row["steps"], row["skipped_steps"], row["changes"], row["objective"]) == (12, 1, 1, "aim")
    assert row["best_validation_loss"] <= row["validation_loss"]
    assert render(runs, title="A <run>").decode() == page


def test_several_runs_share_their_charts_and_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    folders = [
        write_metrics(tmp_path / name, steps=80, spike=spike) for name, spike in (("a", 70), ("b", 0), ("x/a", 0))
    ]
    runs = read_runs(folders)
    assert [run.name for run in runs] == [folders[0], "b", folders[2]]
    page = render(runs, title="t").decode()
    assert "Steps that stand out" in page
    assert page.count(f"headrace trace {folders[0]} --step 70") == 1
    assert "headrace trace b" not in page
    assert page.count("<table") == 2


def test_the_command_of_a_step_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "my run's", steps=80, spike=70)
    page = html.unescape(render(read_runs([folder]), title="t").decode())
    (command,) = re.findall(r"headrace trace .* --step 70", page)
    assert shlex.split(command) == ["headrace", "trace", folder, "--step", "70"]


def test_thinning_keeps_the_ends_of_each_stretch_and_the_gaps() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[31_337] = (31_337.0, 99.0)
    points[50_000] = (50_000.0, -5.0)
    for step in range(70_000, 71_000):
        points[step] = (float(step), math.nan)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS + 2
    assert {(31_337.0, 99.0), (50_000.0, -5.0)} <= set(kept)
    assert any(math.isnan(y) for _, y in kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert thinned(points[:10]) == points[:10]
    assert thinned([(1.0, math.nan)]) == []


def test_numbers_that_were_not_finite_are_gaps(tmp_path: Path) -> None:
    (run,) = read_runs([write_metrics(tmp_path / "a", steps=9, bad=9)])
    assert summaries([run])[0]["loss"] is None
    assert b"nan" not in render([run], title="t").lower().replace(b"nancy", b"")


HOSTILE = (
    '{"event": "train", "step": 1, "samples": "x", "loss": 1e308, "grad_norm": 1e308}',
    '{"event": "train", "step": 2, "loss": -1e308, "images_per_second": 1e308}',
    '{"event": "train", "step": 3, "loss": "<script>", "images_per_second": 1e308}',
    '{"event": "train", "step": 4',
    '{"event": "skipped", "step": 3, "reason": "<script>", "positions": 5}',
    '{"event": "skipped", "step": 3, "reason": {"a": 1}, "positions": ["<script>"]}',
    '{"event": "change", "step": 3, "changes": {"<script>": 1, "b": [1, "<script>"]}}',
    '{"event": ["train"], "step": 3}',
    '{"event": "train", "step": -1}',
    '{"event": "train", "step": 1' + "0" * 400 + "}",
    '{"event": "train", "step": 1' + "0" * 5000 + "}",
    "[]",
)


def test_lines_that_others_wrote_neither_end_the_page_nor_run_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)"
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes("\n".join(HOSTILE).encode() + b'\n\xff\xfe{"event"\n')
    runs = read_runs([str(folder), str(folder)])
    page = render(runs, title="<script>").decode()
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in page
    (row, _) = summaries(runs)
    assert (row["steps"], row["loss"], row["samples"], row["skipped_steps"]) == (3, None, 0, 2)
    assert render(runs[:1], title="t")


@pytest.mark.parametrize("text", [None, "", "no json\n"])
def test_a_folder_without_a_run_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match="no run, or one without a step"):
        read_runs([str(tmp_path)])


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", "from headrace.cli.app import main; main()", "run-report", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.full
def test_the_steps_worth_a_look_are_traced_beside_the_page_and_linked(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forward = Aim.forward

    def spoiled(self: Aim, batch: Any) -> Any:
        loss, report = forward(self, batch)
        return (loss * float("nan") if self.training and int(batch.position[0]) in (64, 128) else loss), report

    monkeypatch.setattr(Aim, "forward", spoiled)
    skips = load_run(run_file("a <run>", on_non_finite="skip", validation=None))
    train(skips)
    stops = load_run(run_file("b", validation=None))
    with pytest.raises(NonFiniteError):
        train(stops)
    gone = write_metrics(tmp_path / "c", steps=80, spike=70)
    page = tmp_path / "page.html"
    done = command(skips.out, stops.out, gone, "--out", str(page), "--traces", "9")
    assert done.returncode == 0, done.stderr
    names = ["0-a_run_-step-5.html", "0-a_run_-step-9.html", "1-b-step-5.html"]
    assert sorted(path.name for path in (tmp_path / "page-traces").iterdir()) == names
    text = page.read_text()
    for name in names:
        assert f'<a href="./page-traces/{name}">pictures of step ' in text
        assert b"data:image/jpeg" in (tmp_path / "page-traces" / name).read_bytes()
    assert f"headrace trace {gone} --step 70" in text
    assert "Steps that stopped a run" in text
    said = done.stdout.splitlines()
    assert "c: step 70 cannot be traced: " in said[3]
    assert said[4] == "3 of 4 steps that stand out are traced"
    told = json.loads(command(skips.out, "--out", str(page), "--traces", "1", "--json").stdout)
    traced = {"run": "a <run>", "step": 5, "page": str(tmp_path / "page-traces" / names[0]), "why": None}
    assert told["traces"] == [traced]


def test_a_link_leads_to_nothing_but_a_file_below_the_page() -> None:
    page = table(["a"], [[Link(path=("x-traces", 'javascript:"<a>&.html'), text="<b>")]])
    assert '<a href="./x-traces/javascript%3A%22%3Ca%3E%26.html">&lt;b&gt;</a>' in page
    for path in (("..", "a"), ("a/b",), ("",)):
        with pytest.raises(ValueError, match="beside the page or below"):
            table(["a"], [[Link(path=path, text="")]])


def test_twenty_runs_can_be_told_apart(tmp_path: Path) -> None:
    folders = [write_metrics(tmp_path / f"run-{number}", steps=9) for number in range(20)]
    page = render(read_runs(folders), title="t").decode()
    section = page[page.index("<h2>Loss</h2>") : page.index("<h2>Validation loss</h2>")]
    pencils = re.findall(r'<path class="(line line\d)"( stroke-dasharray="[^"]*")? d="M\d+\.', section)
    assert len(pencils) == len(set(pencils)) == 20
    assert len(re.findall(r"<span><svg", section)) == 20  # the legend has the same lines


def test_the_command_writes_the_page_and_says_the_numbers(tmp_path: Path) -> None:
    folder, page = write_metrics(tmp_path / "a", steps=9), tmp_path / "page.html"
    done = command(folder, "--out", str(page))
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["a: 9 steps, loss 0.2222, best validation loss 0.5000", f"{page} is written"],
    )
    assert page.read_text().startswith("<!doctype html>")
    told = json.loads(command(folder, "--out", str(page), "--json").stdout)
    assert told["runs"][0]["steps"] == 9
    done = command(str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"headrace: {tmp_path}: no run")
