"""An annotator and a step of another package, by the real commands: found by entry point, in spawned workers too."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.recipe import Recipe

TOY = '''
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns
from headrace.curation.select.step import Bench, Cut, Step, StepResult, write_verdict
from headrace.extensions import Extension


@dataclass(frozen=True, kw_only=True, slots=True)
class BrightnessConfig:
    """Brightness."""

    scale: float = 1.0
    """What white is."""


class Brightness(Annotator):
    """Mean brightness of the toy package."""

    name = "brightness"
    version = 1
    config_type = BrightnessConfig
    needs_pixels = True
    columns = pa.schema([("brightness", pa.float32())])

    def settings(self):
        return {"scale": self.config.scale}

    def annotate(self, batch):
        means = [None if pixels is None else float(pixels.mean()) for pixels in batch.images]
        return {"brightness": [None if mean is None else mean * self.config.scale / 255 for mean in means]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bright(Step):
    """Drop what is darker than the toy package likes."""

    step: Literal["bright"] = "bright"
    name: str = "bright"
    minimum: float

    def needs_columns(self):
        return ("brightness",)

    def run(self, bench):
        write_verdict(
            bench,
            f"""SELECT __row, 'dark' AS reason, brightness::DOUBLE AS value, {self.minimum}::DOUBLE AS threshold,
                NULL::VARCHAR AS duplicate_of FROM here WHERE brightness < {self.minimum}""",
        )
        return StepResult(self.minimum)

    def cuts(self, learned):
        return (Cut("brightness", self.minimum),)


EXTENSION = Extension(annotators={"brightness": Brightness}, steps={"bright": Bright})
'''

RECIPE = """
job: {job}
unsafe_images: off
input: {{urls: [urls.parquet]}}
annotate: {{brightness: {{scale: 2}}, faces: {{detector: haar, accept_weak: true}}}}
select: [{{step: bright, minimum: 1.0}}]
placement: {{samples_per_shard: 5}}
engine: {{executor: local, workers: 2}}
"""

Headrace = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def headrace(tmp_path: Path) -> Headrace:
    """Run `headrace ARGUMENTS` where the package `toy` is installed."""
    folder = tmp_path / "site"
    (folder / "toy-1.0.dist-info").mkdir(parents=True)
    (folder / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (folder / "toy-1.0.dist-info" / "entry_points.txt").write_text("[headrace.extensions]\ntoy = toy:EXTENSION\n")
    (folder / "toy.py").write_text(TOY)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", "from headrace.cli.app import main; main()", *map(str, arguments)]
        return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_an_annotator_and_a_step_of_a_package_go_from_the_recipe_to_the_report(
    make_job: Callable[..., Recipe], headrace: Headrace, tmp_path: Path
) -> None:
    job = Path(make_job().job)
    (tmp_path / "r.yaml").write_text(RECIPE.format(job=job))
    for command in ("annotate", "select", "build", "report"):
        done = headrace("-q", command, tmp_path / "r.yaml")
        assert (done.returncode, done.stderr) == (0, ""), command
    (folder,) = (job / "annotations").glob("brightness-*")
    tables = [pq.read_table(path, columns=["brightness"]) for path in sorted(folder.glob("*.parquet"))]
    values = [value for table in tables for value in table["brightness"].to_pylist()]
    dark = sum(value < 1 for value in values)
    assert 0 < dark < len(values)
    ledger = latest_decision(Job(str(job))).ledger.table
    dropped = [row for row in pq.read_table(ledger).to_pylist() if row["step"] == "bright"]
    assert (len(dropped), {row["reason"] for row in dropped}) == (dark, {"dark"})
    report: dict[str, Any] = json.loads((job / "report" / "report.json").read_text())
    assert report["histograms"]["brightness"]["cuts"] == [{"step": "bright", "value": 1.0}]
    assert report["funnel"][-1]["dropped"] == {"dark": dark}
    uid = next(row["uid"] for row in pq.read_table(ledger).to_pylist() if row["kept"])
    story = json.loads(headrace("why", job, uid, "--json").stdout)[0]
    assert story["steps"][-1]["threshold"] == 1.0
    assert story["steps"][-1]["value"] == story["columns"]["brightness"]


def test_an_annotator_and_a_step_of_a_package_are_listed_and_checked(headrace: Headrace, tmp_path: Path) -> None:
    listed = [line.split(maxsplit=1) for line in headrace("annotators").stdout.splitlines()]
    assert ["brightness", "Mean brightness of the toy package."] in listed
    steps = [line.split(maxsplit=1) for line in headrace("steps").stdout.splitlines()]
    assert ["bright", "Drop what is darker than the toy package likes."] in steps
    (tmp_path / "r.yaml").write_text(RECIPE.format(job=tmp_path / "job"))
    for override, told in (
        (
            "annotate.brightnes.scale=1",
            r"unknown key 'annotate.brightnes'; did you mean 'brightness'\? known keys here: .*faces",
        ),
        ("annotate.brightness.scale=white", "annotate.brightness.scale: input should be a valid number, got 'white'"),
        (
            "select.0.step=brighter",
            r"select.0.step: unknown 'brighter'; did you mean 'bright'\? known: .*top_fraction, .*bright",
        ),
        ("annotate.brightness=null", "step 'bright' needs the column 'brightness', .*; add annotate.brightness and"),
    ):
        done = headrace("select", tmp_path / "r.yaml", override)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert re.search(told, line), line
