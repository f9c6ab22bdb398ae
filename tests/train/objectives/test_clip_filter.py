"""The path of docs/filter.md, on real pairs: what a small filter learns holds for pictures it never saw."""

import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.runs.metrics import read_metrics

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.full
def test_a_filter_tells_matched_captions_of_held_out_pictures(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An area of 0.66 was measured after 100 of 160 steps, 0.5 is guessing."""
    monkeypatch.chdir(tmp_path)
    pairs = runpy.run_path(str(EXAMPLES / "pairs_from_csv.py"))
    pairs["main"](str(shared_data / "flickr8k-sample.tar"), str(shared_data / "flickr8k-sample.csv"), "pairs")
    for part in ("train", "held-out"):
        done = CliRunner().invoke(app, ["import", f"pairs/{part}.parquet", f"data/{part}", "--shuffle", "0"])
        assert done.exit_code == 0, done.output
    train(load_run(EXAMPLES / "clip-flickr8k.yaml", ["validation.every=100", "steps=100"]))
    first, last = [
        line for line in read_metrics(tmp_path / "runs/clip-flickr8k/metrics.jsonl") if line["event"] == "validation"
    ]
    assert first["auc"] == pytest.approx(0.5, abs=0.05)
    assert last["auc"] > 0.6
