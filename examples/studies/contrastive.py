"""Is MoCo v3 steadier with a frozen patch projection, at the smallest scale? And batch, optimiser, framework.

    python examples/studies/contrastive.py [PART] --originals FOLDER --out OUT [key=value ...]

PART is patch, batch, optimizer or framework; without it all arms are done. FOLDER holds cifar10-train.parquet and
cifar10-test.parquet (columns jpg, label). Writes OUT/contrastive.json, contrastive.md and a drawing for each part that
has runs. Killed, it goes on when the command is given again.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.examples.studies import aim_choices, arms, figures

RATES = (0.008, 0.032, 0.128)
"""Peak learning rates per 256 images: a step of 128 has half."""
REFERENCE = "learned 0.008"
LEARNED = ("objective.backbone.patch_projection=learned", "optimizer.lr=0.008")
"""The run file as it is: MoCo v3, AdamW, 128 pictures a step. What every part has an arm of."""

Arms = Mapping[str, tuple[str, ...]]

# What differs from the run file, by part and arm.
PARTS: dict[str, Arms] = {
    "patch": {
        f"{kind} {rate:g}": (f"objective.backbone.patch_projection={kind}", f"optimizer.lr={rate:g}")
        for rate in RATES
        for kind in ("learned", "frozen")
    },
    # As many pictures for each, so the smaller batch has more steps; the rate grows with the batch.
    "batch": {
        REFERENCE: LEARNED,
        "batch 32": ("global_batch=32", "steps=640", "log_every=4", "monitors.0.every=40"),
        "batch 512": ("global_batch=512", "steps=40", "monitors.0.every=4"),
    },
    "optimizer": {
        REFERENCE: LEARNED,
        "LAMB 0.008": ("optimizer={kind: lamb, lr: 0.008, lr_per_images: 256, weight_decay: 0.001}",),
        "LAMB 0.032": ("optimizer={kind: lamb, lr: 0.032, lr_per_images: 256, weight_decay: 0.001}",),
        "LARS": ("optimizer={kind: lars, lr: 3.0, lr_per_images: 256, weight_decay: 1.5e-6}",),
    },
    "framework": {
        REFERENCE: LEARNED,
        "SimCLR": ("objective.kind=simclr", "objective.temperature=0.2"),
        "BYOL": ("objective.kind=byol", "objective.momentum=0.99"),
        "SwAV": ("objective.kind=swav", "objective.prototypes=64"),
    },
}
MONITOR = "monitor/knn"
LAST_LINES = 10
TITLES = {
    "patch": "Learned or frozen patch projection, at rising rates",
    "batch": "Batch size, as many pictures for each",
    "optimizer": "Optimiser",
    "framework": "Framework",
}


def report(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables and curves of the study's numbers by file name."""
    runs = arms.runs_by_arm(result)
    texts, files = [arms.facts(result)], {}
    for part, of_part in PARTS.items():
        done = {arm: runs[arm] for arm in of_part if arm in runs}
        if set(done) <= {REFERENCE}:
            continue  # the reference belongs to the part of the patch projection
        texts += [f"### {TITLES[part]}\n", _numbers(done)]
        if part == "patch":
            texts += [_by_layer(done), _differences(done)]
        files[f"contrastive-{part}.svg"] = _curves(done)
    return {"contrastive.md": "\n".join(texts), **files}


def _numbers(runs: arms.Runs) -> str:
    rows = []
    if REFERENCE in runs:
        rows.append(["untrained", figures.mean_text(_accuracies(runs[REFERENCE], 0), "{:.1f} %"), "", "", "", ""])
    for arm, of_arm in runs.items():
        losses = [statistics.mean(loss for _, loss in run["train"][-LAST_LINES:]) for run in of_arm]
        rows.append(
            [
                arm,
                figures.mean_text(_accuracies(of_arm, -1), "{:.1f} %"),
                figures.mean_text(losses, "{:.2f}"),
                str(_count(of_arm, "spike")),
                str(_count(of_arm, "dip", MONITOR)),
                str(_count(of_arm, "dip", "train")),
            ]
        )
    head = ("arm", "kNN at the end", f"loss, last {LAST_LINES} lines", "steps with a spike", "kNN dips", "loss jumps")
    return figures.table(head, rows)


def _by_layer(runs: arms.Runs) -> str:
    layers = list(dict.fromkeys(layer for _, run in arms.each(runs) for layer in run["gradient_peaks"]))
    rows = []
    for layer in layers:
        row = [f"`{layer}`"]
        for of_arm in runs.values():
            peaks = [run["gradient_peaks"][layer][0] for run in of_arm if layer in run["gradient_peaks"]]
            spikes = sum(layer in told[2] for run in of_arm for told in run.get("alarms", ()) if told[0] == "spike")
            row.append(f"{spikes} ({max(peaks):.1f})" if peaks else "frozen")
        rows.append(row)
    told = "Spikes of each layer over all seeds; in brackets the largest multiple of its running median.\n\n"
    return told + figures.table(("layer", *runs), rows)


def _differences(runs: arms.Runs) -> str:
    last = {arm: _accuracies(of_arm, -1) for arm, of_arm in runs.items()}
    untrained = _accuracies(runs[REFERENCE], 0) if REFERENCE in runs else []
    deviation = figures.spread([*last.values(), untrained])
    pairs = [(f"frozen {rate:g}", f"learned {rate:g}") for rate in RATES]
    pairs += [(f"learned {rate:g}", REFERENCE) for rate in RATES[1:]]
    pairs += [(f"frozen {rate:g}", f"frozen {RATES[0]:g}") for rate in RATES[1:]]
    found = [
        figures.difference(f"{first} above {second}", last[first], last[second], deviation=deviation, pattern="{:+.1f}")
        for first, second in pairs
        if first in last and second in last
    ]
    if untrained:
        found.insert(
            0,
            figures.difference(
                f"{REFERENCE} above untrained", last[REFERENCE], untrained, deviation=deviation, pattern="{:+.1f}"
            ),
        )
    return figures.difference_table(found)


def _curves(runs: arms.Runs) -> str:
    lines = [
        figures.Line(
            name=arm,
            points=[(step * _images(arm), 100 * accuracy) for step, accuracy in run[MONITOR]],
            dashed=arm.startswith("frozen"),
        )
        for arm, run in arms.each(runs)
    ]
    return figures.chart(lines, title="kNN accuracy by pictures seen, %; frozen dashed", x_label="pictures seen")


def _images(arm: str) -> int:
    """Return the pictures of a step."""
    return int(arm.removeprefix("batch ")) if arm.startswith("batch ") else 128


def _accuracies(runs: Sequence[dict[str, Any]], place: int) -> list[float]:
    """Return the accuracies, percent, of the probe: 0 is before training, -1 the last."""
    return [100 * float(run["accuracy"]["knn"][place][1]) for run in runs]


def _count(runs: Sequence[dict[str, Any]], event: str, curve: str = "") -> int:
    """Return how often it was told over all seeds; a dip of one curve only."""
    told = [one for run in runs for one in run.get("alarms", ()) if one[0] == event]
    return sum(event == "spike" or str(one[2]).startswith(curve) for one in told)


STUDY = arms.Study(
    name="contrastive",
    run_file=Path(__file__).with_name("contrastive.yaml"),
    arms={name: changes for part in PARTS.values() for name, changes in part.items()},
    probes={"knn": ("--train", "data/labelled", "--test", "data/test", "--head", "knn", "--layers", "last1")},
    make_data=aim_choices.make_data,
)

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PARTS:
        sys.argv[1:2] = ["--arms", ",".join(PARTS[sys.argv[1]])]
    arms.main(STUDY, report)
