"""Do few curated pictures over-fit, and does a mixture with web crops win? AIM's claim for its data, on two cores.

    python examples/studies/data_mixture.py --originals FOLDER --out OUT [key=value ...]

FOLDER holds cifar10-train.parquet and cifar10-test.parquet (columns jpg, label), and photographs in tars. Writes
OUT/data.json, data.md, data-loss.svg and data-probe.svg. Killed, it goes on when the command is given again.
"""

import io
import math
import random
import statistics
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from headrace.examples.studies import arms, figures, jobs
from headrace.shards.images.decode import decode_rgb
from headrace.shards.parquet import read_table

SIDE = 32
MIN_WINDOW = 40  # pixels; smaller windows of a photograph are blur
WEB_CROPS = 45_000  # nine times the curated images, from all photographs alike

# AIM, arXiv:2401.08541, section 3: DFN-2B+ is 0.8 web pictures and 0.2 of ImageNet-1k, by probability of a sample.
ARMS = {
    "curated": ("mixture.sources=[{name: curated, url: data/curated}]",),
    "web": ("mixture.sources=[{name: web, url: data/web}]",),
    "mixture": (
        "mixture.sources=[{name: web, url: data/web, weight: 0.8}, {name: curated, url: data/curated, weight: 0.2}]",
    ),
}


def make_data(originals: Path, out: Path) -> None:
    """Make OUT/data: of the training images a tenth to train on and a tenth to fit probes on; test images; web crops.

    No picture is in two of them.
    """
    if (out / "data" / "web" / "dataset.json").exists():
        return
    train, test = (read_table(str(originals / f"cifar10-{part}.parquet")) for part in ("train", "test"))
    tenth = max(1, len(train) // 10)
    for name, table in (
        ("curated", train.slice(0, tenth)),
        ("labelled", train.slice(tenth, tenth)),
        ("test", test),
        ("web", web_crops(originals)),
    ):
        jobs.make_dataset(out, name, table)


def web_crops(originals: Path) -> pa.Table:
    """Return windows of the photographs in the tars of `originals`, SIDE pixels wide, in a drawn order."""
    tars = sorted(originals.glob("*.tar"))
    num_photographs = sum(1 for tar in tars for _ in _photographs(tar))
    if not num_photographs:
        raise ValueError(f"{originals}: no tar with photographs")
    each = -(-WEB_CROPS // num_photographs)
    crops = [crop for tar in tars for name, data in _photographs(tar) for crop in _windows(name, data, each)]
    order = np.random.default_rng(0).permutation(len(crops))[:WEB_CROPS]
    return pa.table({"jpg": [crops[place] for place in order]})


def _photographs(tar: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(tar) as file:
        for member in file:
            data = file.extractfile(member)
            if data is not None and member.name.lower().endswith((".jpg", ".jpeg")):
                yield member.name, data.read()


def _windows(name: str, data: bytes, count: int) -> Iterator[bytes]:
    """Yield squares of a photograph, of a side between MIN_WINDOW and the photograph's, drawn from its name."""
    picture, draw = Image.fromarray(decode_rgb(data)), random.Random(name)
    longest = min(picture.size)
    for _ in range(count):
        side = draw.uniform(min(MIN_WINDOW, longest), longest)
        left, top = draw.uniform(0, picture.width - side), draw.uniform(0, picture.height - side)
        crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        file = io.BytesIO()
        crop.save(file, "JPEG", quality=95)
        yield file.getvalue()


def report(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables and curves of the study's numbers by file name."""
    runs = arms.runs_by_arm(result)
    losses = [
        figures.Line(name=arm, points=run[event][1:], dashed=dashed)
        for event, dashed in (("validation", False), ("train", True))
        for arm, run in arms.each(runs)
    ]
    probes = [
        figures.Line(name=arm, points=[(step, 100 * value) for step, value in run["accuracy"]["attentive"] if step])
        for arm, run in arms.each(runs)
    ]
    return {
        "data.md": f"{arms.facts(result)}\n{_numbers(runs)}\n{_differences(runs)}",
        "data-loss.svg": figures.chart(losses, title="Validation loss by step; dashed: training loss", x_label="step"),
        "data-probe.svg": figures.chart(probes, title="Accuracy of the attentive probe by step, %", x_label="step"),
    }


def _numbers(runs: arms.Runs) -> str:
    untrained = [100 * run["accuracy"]["attentive"][0][1] for run in runs.get("curated", ())]
    rows = [["nothing", "", "", "", figures.mean_text(untrained, "{:.1f} %")]] if untrained else []
    for arm, of_arm in runs.items():
        losses = [[measure(run) for run in of_arm] for measure in (_training, _lowest, _last)]
        accuracy = figures.mean_text([_accuracy(run) for run in of_arm], "{:.1f} %")
        rows.append([arm, *(figures.mean_text(values, "{:.4f}") for values in losses), accuracy])
    return figures.table(("trained on", "training loss", "lowest validation loss", "last one", "probe"), rows)


def _differences(runs: arms.Runs) -> str:
    rises = {arm: [_last(run) - _lowest(run) for run in of_arm] for arm, of_arm in runs.items()}
    # A rise is a difference within a run: its error is that of one mean.
    found = [
        figures.Difference(
            what=f"{arm}: validation loss, last above lowest",
            value=statistics.mean(values),
            error=figures.spread(rises.values()) / math.sqrt(len(values)),
        )
        for arm, values in rises.items()
    ]
    for what, measure, pattern in (("last validation loss", _last, "{:+.4f}"), ("probe", _accuracy, "{:+.1f}")):
        values = {arm: [measure(run) for run in of_arm] for arm, of_arm in runs.items()}
        found += [
            figures.difference(
                f"{what}: {first} above {second}",
                values[first],
                values[second],
                deviation=figures.spread(values.values()),
                pattern=pattern,
            )
            for first, second in (("mixture", "curated"), ("mixture", "web"), ("web", "curated"))
            if {first, second} <= values.keys()
        ]
    return figures.difference_table(found)


def _training(run: dict[str, Any]) -> float:
    """Return the mean of the last five training losses that were logged."""
    return statistics.mean(float(loss) for _, loss in run["train"][-5:])


def _lowest(run: dict[str, Any]) -> float:
    return min(float(loss) for _, loss in run["validation"])


def _last(run: dict[str, Any]) -> float:
    return float(run["validation"][-1][1])


def _accuracy(run: dict[str, Any]) -> float:
    """Return the last trunk's accuracy, percent."""
    return 100 * float(run["accuracy"]["attentive"][-1][1])


STUDY = arms.Study(
    name="data",
    run_file=Path(__file__).with_name("data_mixture.yaml"),
    arms=ARMS,
    probes={"attentive": ("--train", "data/labelled", "--test", "data/test", "--lrs", "0.003,0.01,0.03")},
    make_data=make_data,
)

if __name__ == "__main__":
    arms.main(STUDY, report)
