"""The table "To add something" of docs/architecture.md is true: each row is done in a copy of the tree, and counted."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("src", "shards", "curation", "pipeline", "train", "examples")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: an example file put into the tree, lines put into other files, and a program that uses it."""

    what: str
    example: str
    place: str
    edits: tuple[tuple[str, str, str], ...] = ()
    """(file, the line before, the lines put in)."""
    program: str
    shows: str
    """What the program must print."""

    @property
    def lines(self) -> int:
        """Lines of the new file."""
        return len((ROOT / "examples" / "extend" / self.example).read_text().splitlines())

    @property
    def edited(self) -> int:
        """Lines put into other files."""
        return sum(len(text.splitlines()) for _, _, text in self.edits)


PICTURES = """
import io, numpy as np
from PIL import Image
from headrace.shards.write import Sample, finish_dataset, write_shard
def picture(number):
    noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((40, 40)).save(sink, "JPEG")
    return sink.getvalue()
write_shard("data", "00000", [Sample(f"{n:04d}", picture(n), "jpg", {"label": n % 2}) for n in range(32)])
finish_dataset("data", recipe_digest="test")
"""

TRAIN = """
from headrace.config import build_config
from headrace.train.config import RunConfig
from headrace.train.loop import train
run = {"out": "run", "seed": 0, "steps": 2, "global_batch": 8, "device": "cpu",
       "mixture": {"lanes": 4, "image_size": 32,
                   "sources": [{"name": "s", "url": "data", "shuffle_window": 8, "chunk_samples": 4}]}}
"""

ANNOTATORS = "curation/annotate/annotators/__init__.py"
STEPS = "curation/select/steps/__init__.py"
OBJECTIVES = "train/objectives/__init__.py"
OPTIMIZERS = "train/optim/__init__.py"
DECODERS = "pipeline/decode/choice.py"
UNITS = "shards/units.py"

ROWS = (
    Row(
        what="an annotator",
        example="annotator.py",
        place="curation/annotate/annotators/brightness.py",
        edits=(
            (
                ANNOTATORS,
                "from headrace.curation.annotate.annotator import Annotator\n",
                "from headrace.curation.annotate.annotators.brightness import Brightness\n",
            ),
            (ANNOTATORS, '    "faces": FaceBoxes,\n', '    "brightness": Brightness,\n'),
        ),
        program="""
from headrace.curation.annotate.config import annotators
from headrace.curation.recipe import load_recipe
open("r.yaml", "w").write("{job: j, unsafe_images: off, input: {urls: [u.csv]}, annotate: {brightness: {}}}")
print("columns:", annotators(load_recipe("r.yaml").annotate)["brightness"].columns.names)
""",
        shows="columns: ['brightness']",
    ),
    Row(
        what="a select step",
        example="step.py",
        place="curation/select/steps/host_cap.py",
        edits=(
            (
                STEPS,
                "from headrace.curation.select.steps.first import DecodeStep, FetchStep\n",
                "from headrace.curation.select.steps.host_cap import HostCap\n",
            ),
            (STEPS, '    "top_fraction": TopFraction,\n', '    "host_cap": HostCap,\n'),
        ),
        program="""
from headrace.curation.recipe import load_recipe
open("r.yaml", "w").write("{job: j, unsafe_images: off, input: {urls: [u.csv]}, select: [{step: host_cap, rows: 2}]}")
print("step:", load_recipe("r.yaml").select[0])
""",
        shows="step: HostCap(step='host_cap', name='host_cap', rows=2)",
    ),
    Row(
        what="an objective",
        example="objective.py",
        place="train/objectives/mean_colour.py",
        edits=(
            (
                OBJECTIVES,
                "from headrace.train.objectives.clip import ClipConfig\n",
                "from headrace.train.objectives.mean_colour import MeanColourConfig\n",
            ),
            (OBJECTIVES, '    "supervised": SupervisedConfig,\n', '    "mean_colour": MeanColourConfig,\n'),
        ),
        program=PICTURES
        + TRAIN
        + """
result = train(build_config(RunConfig, {**run, "objective": {"kind": "mean_colour"}}))
print("steps:", result.step)
from headrace.train.runs.weights import read_weights
from safetensors import safe_open
with safe_open("run/model.safetensors", "pt") as file:
    print("exported:", "trunk.post_trunk_norm.weight" in file.keys())
""",
        shows="steps: 2\nexported: True",
    ),
    Row(
        what="a model",
        example="model.py",
        place="train/models/bag_of_patches.py",
        program="""
import torch
from headrace.train.models.bag_of_patches import BagOfPatches
from headrace.train.models.vit import VitConfig
model = BagOfPatches(VitConfig(image_size=32, patch=8, width=16, depth=1, heads=2))
print("tokens:", [list(out.shape) for out in model.block_outputs(torch.zeros(3, 3, 32, 32))])
""",
        shows="tokens: [[3, 16, 16]]",
    ),
    Row(
        what="an optimiser",
        example="optimizer.py",
        place="train/optim/sgd.py",
        edits=(
            (
                OPTIMIZERS,
                "from headrace.train.optim.schedules import CosineConfig\n",
                "from headrace.train.optim.sgd import SgdConfig\n",
            ),
            (OPTIMIZERS, '    "lars": LarsConfig,\n', '    "sgd": SgdConfig,\n'),
        ),
        program=PICTURES
        + TRAIN
        + """
objective = {"kind": "supervised", "num_classes": 2, "patch": 8, "width": 32, "depth": 1, "heads": 2}
run |= {"objective": objective, "optimizer": {"kind": "sgd", "lr": 0.01}}
print("steps:", train(build_config(RunConfig, run)).step)
run["steps"] = 2
print("again:", train(build_config(RunConfig, run)).step)
""",
        shows="steps: 2\nagain: 2",
    ),
    Row(
        what="a decoder",
        example="decoder.py",
        place="pipeline/decode/pillow.py",
        edits=(
            (
                DECODERS,
                "from headrace.pipeline.decode.decoder import Decoder, DecoderType, MadeForDevice\n",
                "from headrace.pipeline.decode.pillow import PillowDecoder\n",
            ),
            (DECODERS, '{"turbo": Turbo, "dali": Dali', ', "pillow": PillowDecoder'),
        ),
        program=PICTURES
        + """
from headrace.config import build_config
from headrace.pipeline import Mixture, open_stream
source = {"name": "s", "url": "data", "shuffle_window": 8, "chunk_samples": 4}
batches = {}
for decoder in ("turbo", "pillow"):
    mixture = build_config(Mixture, {"lanes": 4, "image_size": 32, "sources": [source], "decoder": decoder})
    with open_stream(mixture, global_batch=8) as stream:
        batches[decoder] = next(iter(stream)).images.astype(int)
print("largest difference under 4:", abs(batches["turbo"] - batches["pillow"]).max() < 4)
""",
        shows="largest difference under 4: True",
    ),
    Row(
        what="a source format of `import`",
        example="source.py",
        place="shards/imports/zip.py",
        edits=(
            (
                "shards/imports/run.py",
                "from headrace.shards.imports.tar import open_tars\n",
                "from headrace.shards.imports.zip import open_zip\n",
            ),
            (
                "shards/imports/run.py",
                "    if not files.is_folder(source):\n",
                '        if source.endswith(".zip"):\n            return open_zip(source)\n',
            ),
        ),
        program=PICTURES
        + """
import zipfile
with zipfile.ZipFile("photos.zip", "w") as archive:
    for number in range(6):
        archive.writestr(f"class{number % 2}/{number}.jpg", picture(number))
    archive.writestr("notes.txt", "no image")
import sys
from headrace.cli.app import main
sys.argv = ["headrace", "import", "photos.zip", "out", "--workers", "1"]
try:
    main()
finally:
    from headrace.shards.dataset import open_dataset
    opened = open_dataset("out")
    print("samples:", opened.num_samples, opened.classes)
""",
        shows="samples: 6 ('class0', 'class1')",
    ),
    Row(
        what="an executor",
        example="executor.py",
        place="shards/units_threads.py",
        edits=(
            (UNITS, '    "ray": _ray,\n', '    "threads": _threads,\n'),
            (
                UNITS,
                "    return open_ray(engine)\n",
                """

def _threads(engine: EngineConfig) -> AbstractContextManager[Run]:
    from headrace.shards.units_threads import open_threads  # which imports this file

    return open_threads(engine)
""",
            ),
            (UNITS, '    executor: Literal["local", "inline", "ray"', ', "threads"'),
        ),
        program="""
from dataclasses import dataclass
from headrace.config import build_config
from headrace.shards.units import EngineConfig, run_units
@dataclass
class Unit:
    name: str
engine = build_config(EngineConfig, {"executor": "threads", "workers": 2})
print("results:", run_units(lambda unit: unit.name.upper(), [Unit("a"), Unit("b")], engine))
""",
        shows="results: ['A', 'B']",
    ),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages, links as links."""
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    return tmp_path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_a_row_is_as_short_as_the_table_says_and_works(tree: Path, row: Row) -> None:
    shutil.copy(ROOT / "examples" / "extend" / row.example, tree / row.place)
    for name, before, text in row.edits:
        path = tree / name
        source = path.read_text()
        assert source.count(before) == 1, f"{name} has no single {before!r} any more: change this test"
        path.write_text(source.replace(before, before + text))
    work = tree / "work"
    work.mkdir()
    # -P: the copy's src comes before the installed package, the work folder not at all.
    done = subprocess.run(
        [sys.executable, "-P", "-c", row.program],
        cwd=work, env={**os.environ, "PYTHONPATH": str(tree / "src")}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert row.shows in done.stdout, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_the_table_names_the_files_and_lines_of_each_row() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## To add something")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", table, re.M)[2:]]
    assert rows == [expected_cells(row) for row in ROWS]


def expected_cells(row: Row) -> list[str]:
    """Return the cells of a row: what, new file and its lines, edited files and lines put in."""
    edited = " and ".join(f"`{name}`" for name in dict.fromkeys(name for name, _, _ in row.edits))
    return [
        row.what,
        f"`{row.place}`",
        str(row.lines),
        edited or "none; an objective builds it",
        str(row.edited) if edited else "",
    ]
