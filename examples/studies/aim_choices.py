"""What do AIM's choices bring at the smallest scale? Attention, head, targets, objective, probe; on two cores.

    python examples/studies/aim_choices.py --originals FOLDER --out OUT [key=value ...]

FOLDER holds cifar10-train.parquet and cifar10-test.parquet (columns jpg, label). Writes OUT/aim-choices.json,
aim-choices.md and aim-choices.svg. Killed, it goes on when the command is given again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.examples.studies import arms, figures, jobs
from headrace.shards.parquet import read_table

# Each arm differs from the first in one thing: AIM, arXiv:2401.08541, tables 3 to 5.
ARMS = {
    "AIM": (),
    "causal": ("objective.attention=causal",),
    "no head": ("objective.head=none",),
    "raw targets": ("objective.targets=pixels",),
    "masked 50 %": ("objective.kind=masked", "objective.mask_ratio=0.5"),
    "masked 75 %": ("objective.kind=masked", "objective.mask_ratio=0.75"),
}


def make_data(originals: Path, out: Path) -> None:
    """Make OUT/data: of the training images a tenth to fit probes on, the others to train on; test images.

    No picture is in two of them.
    """
    if (out / "data" / "test" / "dataset.json").exists():
        return
    train, test = (read_table(str(originals / f"cifar10-{part}.parquet")) for part in ("train", "test"))
    tenth = max(1, len(train) // 10)
    for name, table in (("labelled", train.slice(0, tenth)), ("train", train.slice(tenth)), ("test", test)):
        jobs.make_dataset(out, name, table)


def report(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables and curves of the study's numbers by file name."""
    runs = arms.runs_by_arm(result)
    # Only the first arm is probed untrained: the others begin at the same seed's.
    first = {(run["seed"], probe): run["accuracy"][probe][0] for run in runs.get("AIM", ()) for probe in PROBES}
    probes = [
        figures.Line(
            name=arm,
            points=[
                (step, 100 * value)
                for step, value in (
                    first.get((run["seed"], probe), run["accuracy"][probe][-1]),
                    run["accuracy"][probe][-1],
                )
            ],
            dashed=probe == "linear",
        )
        for probe in PROBES
        for arm, run in arms.each(runs)
    ]
    title = "Accuracy by step, %: attentive probe whole, linear probe dashed"
    return {
        "aim-choices.md": f"{arms.facts(result)}\n{_numbers(runs)}\n{_differences(runs)}",
        "aim-choices.svg": figures.chart(probes, title=title, x_label="step"),
    }


def _numbers(runs: arms.Runs) -> str:
    rows = []
    if "AIM" in runs:
        rows.append(
            ["untrained", *(figures.mean_text(_accuracies(runs["AIM"], probe, 0), "{:.1f} %") for probe in PROBES)]
        )
    for arm, of_arm in runs.items():
        rows.append([arm, *(figures.mean_text(_accuracies(of_arm, probe, -1), "{:.1f} %") for probe in PROBES)])
    return figures.table(("trained as", *(f"{probe} probe" for probe in PROBES)), rows)


def _differences(runs: arms.Runs) -> str:
    if "AIM" not in runs:
        return ""
    found = []
    for probe in PROBES:
        last = {arm: _accuracies(of_arm, probe, -1) for arm, of_arm in runs.items()}
        untrained = _accuracies(runs["AIM"], probe, 0)
        deviation = figures.spread([*last.values(), untrained])
        found += [
            figures.difference(f"{probe}: {first} above {second}", a, b, deviation=deviation, pattern="{:+.1f}")
            for first, a, second, b in (
                ("AIM", last["AIM"], "untrained", untrained),
                *(("AIM", last["AIM"], arm, values) for arm, values in last.items() if arm != "AIM"),
            )
        ]
    return figures.difference_table(found)


def _accuracies(runs: Sequence[dict[str, Any]], probe: str, place: int) -> list[float]:
    """Return the accuracies, percent, of one of the probed steps: 0 is before training, -1 the last."""
    return [100 * float(run["accuracy"][probe][place][1]) for run in runs]


DATASETS = ("--train", "data/labelled", "--test", "data/test")
PROBES = {
    "attentive": (*DATASETS, "--head", "attentive", "--lrs", "0.003,0.01,0.03"),
    "linear": (*DATASETS, "--head", "linear", "--lrs", "0.003,0.01,0.03"),
}
STUDY = arms.Study(
    name="aim-choices",
    run_file=Path(__file__).with_name("aim_choices.yaml"),
    arms=ARMS,
    probes=PROBES,
    make_data=make_data,
)

if __name__ == "__main__":
    arms.main(STUDY, report)
