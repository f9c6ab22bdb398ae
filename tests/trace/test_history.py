"""What a run's folder tells: planned changes, quarantine files of earlier starts, the steps it has done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.pipeline import Mixture
from headrace.trace.history import open_history
from headrace.trace.lookup import open_sources


@pytest.fixture
def folder(mixture: Mixture, tmp_path: Path, run: Callable[..., Any]) -> Path:
    """A run of six steps."""
    run(mixture, tmp_path / "runs" / "a", first=0, last=6)
    return tmp_path / "runs" / "a"


def rewrite(folder: Path, **changed: Any) -> None:
    data = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump(data | changed))


def test_changes_that_a_run_file_plans_are_segments_of_its_mixture(folder: Path) -> None:
    rewrite(folder, changes_at={8: {"mixture.weights": {"small": 2.0}, "mixture.lanes": 2}, 9: {"optimizer.lr": 0.1}})
    opened = open_sources(open_history(str(folder)))
    assert [(segment.start, segment.weights, segment.lanes) for segment in opened.history.mixture.segments] == [
        (96, {"small": 2.0}, 2)
    ]
    assert [part.num_lanes for part in opened.plan.timeline.parts] == [4, 2]
    rewrite(folder, changes_at={3: {"mixture.lanes": 2}})
    with pytest.raises(ValueError, match=r"is not the one of the newest checkpoint.*segment from position 36"):
        open_sources(open_history(str(folder)))


def test_the_quarantine_files_of_earlier_starts_count(folder: Path) -> None:
    place = folder / "checkpoints" / "00000006" / "state.json"
    state = json.loads(place.read_text())
    state["config"]["mixture"]["quarantine"] = "runs/old.jsonl"
    place.write_text(json.dumps(state))
    data = yaml.safe_load((folder / "run.yaml").read_text())
    rewrite(folder, out="runs/a", mixture=data["mixture"] | {"quarantine": "/elsewhere/new.jsonl"})
    assert open_history(str(folder)).quarantines == ("/elsewhere/new.jsonl", str(folder.parents[1] / "runs/old.jsonl"))


def test_the_steps_done_are_the_most_that_anything_tells_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_history(str(folder)).done == 6
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 7}\n{"event": "skipped", "step": 8, "reason": "spike"}\n{"ev')
    history = open_history(str(folder))
    assert (history.done, history.skipped) == (8, {8: "spike"})
    damaged = folder / "checkpoints" / "00000009"
    damaged.mkdir()
    (damaged / "state.json").write_text("[")
    assert open_history(str(folder)).done == 8
    assert "passed over" in caplog.text


def test_each_step_has_its_digest_and_no_other(folder: Path) -> None:
    history = open_history(str(folder))
    digests = [digest for line in history.lines for digest in line["digests"]]
    assert [recorded.digest for step in range(1, 7) if (recorded := history.recorded(step))] == digests
    assert history.recorded(7) is history.recorded(0) is None


def test_a_dataset_that_was_changed_since_is_refused(folder: Path, datasets: dict[str, str]) -> None:
    other = f"sources.0.url={datasets['mid']}"
    with pytest.raises(ValueError, match="or a dataset was changed since: state: source 'large'"):
        open_sources(open_history(str(folder), overrides=[other]))
