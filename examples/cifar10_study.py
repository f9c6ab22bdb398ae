"""Does AIM learn? Three seeds on CIFAR-10: validation loss, and the attentive probe with and without training.

    python examples/cifar10_study.py FOLDER_OF_PARQUETS OUT [key=value ...]

Runs `headrace` commands and prints them; what is done is not done again, so a stopped study goes on. Ends with
OUT/study.json, and exit code 1 if the difference of means is under three standard deviations or a validation loss did
not fall.
"""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

SEEDS = (0, 1, 2)
# Labelled images that a probe is fitted on: a minute of one core.
PROBE_SAMPLES = "20000"
RUN_FILE = Path(__file__).with_name("aim-cifar10.yaml")


def headrace(*arguments: str) -> None:
    """Run one command of the headrace that belongs to this Python."""
    print("+ headrace", *arguments, flush=True)
    program = "from headrace.cli.app import main; main()"
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def run_seed(seed: int, out: Path, overrides: list[str]) -> dict[str, float]:
    """Train one seed, probe it with and without training, and return the numbers."""
    run, train, test = out / f"seed-{seed}", out / "cifar10-train", out / "cifar10-test"
    if not (run / "model.safetensors").exists():
        urls = [f"mixture.sources.0.url={train}", f"validation.dataset={test}"]
        headrace("train", str(RUN_FILE), f"out={run}", f"seed={seed}", f"mixture.seed={seed}", *urls, *overrides)
    for name, flags in (("trained", []), ("untrained", ["--untrained"])):
        if not (run / f"probe-{name}.json").exists():
            data = ["--train", str(train), "--test", str(test), "--samples", PROBE_SAMPLES]
            headrace("probe", str(run), *data, "--seed", str(seed), *flags)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "validation"]
    numbers = {"validation_first": losses[0], "validation_last": losses[-1]}
    for name in ("trained", "untrained"):
        numbers[name] = json.loads((run / f"probe-{name}.json").read_text())["accuracy"]
    return numbers


def summarise(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return means, standard deviations, and the difference of means in (pooled) standard deviations."""
    trained, untrained = ([row[name] for row in rows] for name in ("trained", "untrained"))
    deviations = [statistics.stdev(values) for values in (trained, untrained)]
    pooled = math.sqrt(sum(value**2 for value in deviations) / 2)
    gap = statistics.mean(trained) - statistics.mean(untrained)
    return {
        "trained_mean": statistics.mean(trained),
        "trained_deviation": deviations[0],
        "untrained_mean": statistics.mean(untrained),
        "untrained_deviation": deviations[1],
        "gap": gap,
        "gap_in_deviations": gap / pooled if pooled else math.inf,
    }


def main() -> None:
    """Do the study."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    source, out, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    for part in ("train", "test"):
        if not (out / f"cifar10-{part}" / "dataset.json").exists():
            headrace("import", str(source / f"cifar10-{part}.parquet"), str(out / f"cifar10-{part}"))
    rows = [run_seed(seed, out, overrides) for seed in SEEDS]
    summary = summarise(rows)
    (out / "study.json").write_text(json.dumps({"seeds": rows, **summary}, indent=1) + "\n")
    for seed, row in zip(SEEDS, rows, strict=True):
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in row.items()))
    print(", ".join(f"{name} {value:.4f}" for name, value in summary.items()))
    falls = all(row["validation_last"] < row["validation_first"] for row in rows)
    sys.exit(0 if falls and summary["gap_in_deviations"] > 3 else 1)


if __name__ == "__main__":
    main()
