"""A suite: one table over three datasets, each by its own settings; what is finished stays, what fails says why."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.config import build_config
from headrace.train.config import load_run
from headrace.train.evaluate.suite import SuiteConfig, SuiteRow, load_suite, markdown
from headrace.train.loop import train

# Of three datasets rank 1 cannot read the first, both probe the second, and rank 1 fails in the third.
ONE_FAILS = """
import json, os, sys
from pathlib import Path
from headrace.train.evaluate import suite as module

rank, out, told = os.environ["RANK"], Path(sys.argv[3]), []
digest = module._digest

def unreadable(config, trunk):
    if rank == "1" and not told:
        raise OSError("index of one")
    return digest(config, trunk)

def probe(checkpoint, config, *, work, ranks):
    if rank == "1" and len(told) == 2:
        raise ValueError("of rank 1")
    ranks.wait("a probe")
    return {"accuracy": 0.5}

module._digest, module.probe = unreadable, probe
on_row = lambda row: told.append(f"{row.name}: {row.error or row.accuracy}")
try:
    module.run_suite(Path(sys.argv[1]), module.load_suite(Path(sys.argv[2])), out, device="cpu", on_row=on_row)
except ValueError as error:
    end = f"ValueError: {error}, {error.__notes__[0].split(';')[0]}"
except OSError as error:
    end = type(error).__name__
(out / f"told-{rank}").write_text(json.dumps([told, end]))
# The threads of a process group that lost a rank may still run: torch aborts where they do at the interpreter's end.
os._exit(0)
"""
QUICK = {"epochs": 2, "lrs": [0.02], "images_per_batch": 16}


@pytest.fixture
def trunk(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file("trunk", steps=2, validation=None))).out


@pytest.fixture
def suite_file(tmp_path: Path, pictures: str, other_pictures: str, write_dataset: Callable[..., str]) -> Path:
    """Three datasets: two heads, two metrics, several right labels."""
    third = write_dataset(tmp_path / "third", samples=30, first=5000)
    (tmp_path / "right.json").write_text(json.dumps([[n % 3, (n + 1) % 3] for n in range(30)]))
    rows: list[dict[str, Any]] = [
        {"name": "one", "train": pictures, "test": other_pictures},
        {"name": "two", "train": pictures, "test": third, "head": "linear", "metric": "mean_per_class"},
        {"name": "real", "train": pictures, "test": third, "overrides": {"ground_truth": str(tmp_path / "right.json")}},
    ]
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump({"overrides": QUICK, "datasets": rows}))
    return path


def suite(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["probe", *map(str, words), "--device", "cpu", "--json"])
    if code:
        assert isinstance(done.exception, ValueError), done.output
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_three_datasets_give_one_table_and_what_is_finished_stays(trunk: Path, suite_file: Path) -> None:
    first = suite(trunk, "--suite", suite_file)
    assert [(row["name"], row["metric"], row["head"]) for row in first["rows"]] == [
        ("one", "top1", "attentive"),
        ("two", "mean_per_class", "linear"),
        ("real", "top1", "attentive"),
    ]
    assert first["mean"] == pytest.approx(sum(row["accuracy"] for row in first["rows"]) / 3, abs=1e-6)
    out = trunk / "suite-three"
    assert "| **mean over 3** |" in (out / "suite.md").read_text()
    assert json.loads((out / "suite.json").read_text())["mean"] == first["mean"]
    assert json.loads((out / "two.json").read_text())["test_samples"] == 30
    (out / "one.json").unlink()
    again = suite(trunk, "--suite", suite_file)
    assert [row["kept"] for row in again["rows"]] == [False, True, True]
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in first["rows"]]


def test_what_is_asked_otherwise_is_done_again(trunk: Path, suite_file: Path) -> None:
    suite(trunk, "--suite", suite_file)
    data = yaml.safe_load(suite_file.read_text())
    data["datasets"][0]["overrides"] = {"epochs": 1}
    suite_file.write_text(yaml.safe_dump(data))
    right = suite_file.parent / "right.json"
    right.write_text(right.read_text().replace("[0, 1]", "[0]"))
    assert [row["kept"] for row in suite(trunk, "--suite", suite_file)["rows"]] == [False, True, False]
    fresh = suite(trunk, "--suite", suite_file, "--untrained")
    assert [row["kept"] for row in fresh["rows"]] == [False, False, False]
    assert (trunk / "suite-three-untrained" / "suite.md").is_file()


def test_one_that_fails_has_its_reason_and_the_others_are_there(trunk: Path, suite_file: Path) -> None:
    data = yaml.safe_load(suite_file.read_text())
    third = data["datasets"][1]["test"]
    shutil.move(third, f"{third}-away")
    said = suite(trunk, "--suite", suite_file, code=1)
    assert said == "2 of 3 datasets failed: two, real; the same command does those again"
    table = json.loads((trunk / "suite-three" / "suite.json").read_text())
    assert [row["accuracy"] is None for row in table["rows"]] == [False, True, True]
    assert "third" in table["rows"][1]["error"]
    assert table["mean"] == table["rows"][0]["accuracy"]
    assert "| **mean over 1 of 3** |" in (trunk / "suite-three" / "suite.md").read_text()
    shutil.move(f"{third}-away", third)
    assert [row["kept"] for row in suite(trunk, "--suite", suite_file)["rows"]] == [True, False, False]


def test_of_two_processes_one_that_fails_takes_the_other_along(trunk: Path, suite_file: Path, tmp_path: Path) -> None:
    """What one cannot read none of them probes; a probe that fails on one gives no number on the other."""
    command = [sys.executable, "-c", ONE_FAILS, str(trunk), str(suite_file), str(tmp_path / "out")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {
        "0": [["one: index of one", "two: 0.5"], "RankError"],
        "1": [["one: index of one", "two: 0.5"], "ValueError: of rank 1, in dataset real of the suite"],
    }
    assert {rank: json.loads((tmp_path / "out" / f"told-{rank}").read_text()) for rank in "01"} == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": []}, "datasets is empty"),
        ({"overrides": {"epoch": 3}}, "dataset a: .*epoch"),
        ({"overrides": {"head": "magic"}}, "dataset a: head: unknown 'magic'; known: attentive"),
        ({"protocol": "secret"}, "protocol: unknown 'secret'; known: quick, aim"),
        ({"overrides": {"train": "x"}}, r"overrides\.train: not an override"),
        ({"datasets": [{"name": "../a", "train": "x", "test": "y"}]}, "expected letters, digits"),
        ({"datasets": [{"name": "suite", "train": "x", "test": "y"}]}, "take another"),
        ({"datasets": [{"name": "a", "train": part, "test": "y"} for part in "xz"]}, "two datasets have the name 'a'"),
    ],
)
def test_a_suite_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{"name": "a", "train": "x", "test": "y"}], **change}))
    with pytest.raises(ValueError, match=message) as refused:
        load_suite(path)
    assert "wrong.yaml" in str(refused.value)


def test_an_option_that_the_file_has_a_place_for_is_refused(trunk: Path, suite_file: Path) -> None:
    message = suite(trunk, "--suite", suite_file, "--epochs", 3, code=1)
    assert message.startswith("--epochs and --suite: put it into the suite file")


def test_the_papers_fifteen_are_a_suite() -> None:
    example = load_suite(Path(__file__).parents[3] / "examples" / "suite-aim15.yaml")
    assert len(example.datasets) == 15
    assert {example.probe_of(dataset).metric for dataset in example.datasets} == {"top1"}
    assert example.probe_of(example.datasets[0]).epochs == 100


def test_the_markdown_table_is_safe_from_what_errors_say() -> None:
    rows = [SuiteRow(name="a", metric="top1", head="linear", accuracy=None, error="no | pipe")]
    assert re.search(r"failed: no \\\| pipe \|\n", markdown(rows))
    assert build_config(SuiteConfig, {"datasets": [{"name": "a", "train": "x", "test": "y"}]}).protocol == "quick"
