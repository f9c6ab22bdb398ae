"""A dataset with nothing to train on is refused before the first step; samples without it are left out and counted."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.config import config_to_dict
from headrace.pipeline import Labels
from headrace.shards.dataset import open_dataset
from headrace.train import sources
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.objectives.clip import ClipConfig, ClipModelConfig, ClipTextConfig, ClipVisionConfig
from headrace.train.objectives.supervised import SupervisedConfig
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run

# open_clip's import meets deprecations of its own dependencies; they are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MODEL = ClipModelConfig(
    embed_dim=8,
    vision_cfg=ClipVisionConfig(image_size=16, patch_size=8, width=16, layers=1, head_width=8),
    text_cfg=ClipTextConfig(width=16, layers=1, heads=2, context_length=8),
)
OBJECTIVES = {
    "caption": config_to_dict(ClipConfig(kind="clip", model_cfg=MODEL)),
    "label": config_to_dict(SupervisedConfig(kind="supervised", num_classes=3, patch=4, width=16, depth=1, heads=2)),
}
EMPTY: dict[str, Any] = {"caption": "  ", "label": None}
COUNT = {"caption": "missing_captions", "label": "missing_labels"}


@pytest.fixture
def write(tmp_path: Path, write_dataset: Callable[..., str]) -> Callable[[str, str, set[int]], str]:
    """Return a function that writes 48 pictures, those in the set without the column."""

    def write(name: str, column: str, without: set[int]) -> str:
        def change(number: int, columns: dict[str, Any]) -> dict[str, Any]:
            return columns | ({column: EMPTY[column]} if number in without else {})

        return write_dataset(tmp_path / name, samples=48, change=change)

    return write


@pytest.fixture
def run_over(run_file: Callable[..., Path]) -> Callable[..., RunConfig]:
    """Return a function that makes a run over a dataset."""

    def run(url: str, column: str, **changes: Any) -> RunConfig:
        path = run_file(f"run-{column}", objective=OBJECTIVES[column], **{"validation": None, "steps": 6, **changes})
        return load_run(path, [f"mixture.sources.0.url={url}"])

    return run


@pytest.mark.parametrize("column", OBJECTIVES)
def test_a_source_without_any_is_refused_before_anything_is_written(
    write: Callable[..., str], run_over: Callable[..., RunConfig], column: str
) -> None:
    config = run_over(write("none", column, set(range(48))), column)
    for refuse in (train, plan_run):
        with pytest.raises(ValueError, match=rf"source 'pictures' .*none of its 48 samples .*'{column}'"):
            refuse(config)
    assert [path.name for path in Path(config.out).glob("*")] in ([], [".lock"])


@pytest.mark.parametrize("column", OBJECTIVES)
def test_tars_without_an_index_are_looked_at_too(
    write: Callable[..., str], run_over: Callable[..., RunConfig], tmp_path: Path, column: str
) -> None:
    shutil.copytree(f"{write('some', column, set())}/shards", tmp_path / "tars")
    config = run_over(f"{tmp_path / 'tars'}/*.tar", column)
    assert any("of 48 samples" in line for line in plan_run(config))


@pytest.mark.parametrize("column", OBJECTIVES)
def test_a_validation_set_without_any_is_refused_before_the_first_step(
    write: Callable[..., str], run_over: Callable[..., RunConfig], pictures: str, column: str
) -> None:
    url = write("none", column, set(range(48)))
    with pytest.raises(ValueError, match=rf"validation\.dataset .*none of its 48 samples .*'{column}'"):
        train(run_over(pictures, column, validation={"dataset": url, "every": 3}))


@pytest.mark.parametrize("column", OBJECTIVES)
def test_what_is_left_out_is_counted_over_the_run_and_over_a_resume(
    write: Callable[..., str], run_over: Callable[..., RunConfig], column: str
) -> None:
    """Every second has none; 6 steps of 16 samples see the 48 twice."""
    url = write("half", column, set(range(0, 48, 2)))
    config = run_over(url, column, validation={"dataset": url, "every": 6})
    train(config)
    lines = read_metrics(Path(config.out) / "metrics.jsonl")
    counts = [line[COUNT[column]] for line in lines if line["event"] == "train"]
    assert counts == sorted(counts)
    assert counts[-1] == 48
    assert [line[COUNT[column]] for line in lines if line["event"] == "validation"] == [24, 24]
    shutil.rmtree(Path(config.out) / "checkpoints" / "00000006")
    train(config)
    again = read_metrics(Path(config.out) / "metrics.jsonl")
    assert [line[COUNT[column]] for line in again if line["event"] == "train"] == counts
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


@pytest.mark.parametrize("column", OBJECTIVES)
def test_a_step_of_nothing_but_samples_without_it_trains_on_nothing(
    write: Callable[..., str], run_over: Callable[..., RunConfig], column: str
) -> None:
    """One sample of 48 has it, so most steps of 4 have none."""
    config = run_over(write("one", column, set(range(48)) - {7}), column, global_batch=4, steps=12)
    assert train(config).finished
    lines = read_metrics(Path(config.out) / "metrics.jsonl")
    assert lines[-1][COUNT[column]] == 47
    assert sum(line["loss"] == 0 for line in lines) >= 11


def test_a_label_that_is_no_class_is_named_with_shard_and_key_before_the_first_step(
    write_dataset: Callable[..., str], tmp_path: Path, run_over: Callable[..., RunConfig]
) -> None:
    url = write_dataset(
        tmp_path / "far", samples=48, change=lambda n, columns: columns | ({"label": 12} if n == 30 else {})
    )
    with pytest.raises(ValueError, match=r"shards/00001\.parquet: sample '000030': label 12 is out of range"):
        train(run_over(url, "label"))


def test_a_label_behind_the_indexes_that_were_looked_at_is_named_when_it_comes(
    write_dataset: Callable[..., str],
    tmp_path: Path,
    run_over: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = write_dataset(
        tmp_path / "far", samples=48, change=lambda n, columns: columns | ({"label": 12} if n == 30 else {})
    )
    monkeypatch.setattr(sources, "MAX_SHARDS", 1)
    with pytest.raises(
        ValueError, match=r"step \d: source 'pictures' \(.*far\), sample '.*000030': label 12 is out of"
    ):
        train(run_over(url, "label"))
    config = run_over(open_dataset(url).url, "label")
    assert not (Path(config.out) / "model.safetensors").exists()


def test_of_many_shards_some_are_looked_at_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_SHARDS", 4)
    assert sources._spread(range(10)) == [0, 2, 5, 7]
    assert sources._spread([3, 5]) == [3, 5]


def test_an_older_checkpoint_has_no_count_and_is_read(
    write: Callable[..., str], run_over: Callable[..., RunConfig]
) -> None:
    config = run_over(write("half", "label", {0, 1}), "label", steps=3)
    train(config)
    path = Path(config.out) / "checkpoints" / "00000003" / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("missing") > 0
    path.write_text(json.dumps(state))
    assert train(config).finished


def test_labels_are_remapped_for_the_check_the_steps_and_the_validation(
    tmp_path: Path, write_dataset: Callable[..., str], run_over: Callable[..., RunConfig]
) -> None:
    """Labels 10, 11 and 12 of the dataset are the classes 2, 1 and 0 of the run; without a map they are refused."""
    url = write_dataset(tmp_path / "d", samples=48, change=lambda n, columns: columns | {"label": 10 + n % 3})
    validation = {"dataset": url, "every": 6}
    with pytest.raises(ValueError, match=r"label|class"):
        train(run_over(url, "label", out=str(tmp_path / "plain"), validation=validation))
    new = {"10": 2, "11": 1, "12": 0}
    run = run_over(url, "label", out=str(tmp_path / "run"), validation=validation | {"labels": {"map": new}})
    source = dataclasses.replace(run.mixture.sources[0], labels=Labels(map=new))
    run = dataclasses.replace(run, mixture=dataclasses.replace(run.mixture, sources=(source,)))
    assert train(run).finished
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["missing_labels"] for line in lines if line["event"] == "train"] == [0] * 6
    lacking = dataclasses.replace(source, labels=Labels(map={"10": 2, "11": 1}))
    run = dataclasses.replace(
        run, out=str(tmp_path / "lacking"), mixture=dataclasses.replace(run.mixture, sources=(lacking,))
    )
    with pytest.raises(ValueError, match="label '12' is not in the map of labels of source 'pictures'"):
        train(run)
