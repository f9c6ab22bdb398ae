"""How fast is one AIM step on this machine?

python benchmarks/train_step.py [model] [image_size] [patch] [batch]

Prints images a second and TFLOPs (dense count) for the step as it is, and for one whose head runs on every output.
"""

import sys
import time

import numpy as np
import torch

from headrace.pipeline import Batch
from headrace.train.objectives import aim
from headrace.train.objectives.build import build_objective
from headrace.train.parallel.precision import autocast

STEPS = 8


def measure(objective: aim.Aim, batch: Batch) -> float:
    """Return seconds of one step: forward, backward, AdamW; the best of a few."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)
    device, best = next(objective.parameters()).device, float("inf")
    for _ in range(STEPS):
        begun = time.perf_counter()
        with autocast("auto", device):
            loss, _ = objective(batch)
        (loss / objective.num_terms(batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best


def main() -> None:
    """Measure both and print a line each."""
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    size, patch, images = (int(text) for text in (*sys.argv[2:5], *("32", "4", "64")[len(sys.argv[2:5]) :]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = aim.AimConfig(kind="aim", model=model, patch=patch)
    objective = build_objective(config, image_size=size, seed=0).to(device)
    assert isinstance(objective, aim.Aim)
    batch = Batch(
        images=np.random.default_rng(0).integers(0, 256, (images, size, size, 3), np.uint8),
        columns={},
        position=np.arange(images),
        source=np.zeros(images, np.int32),
        key=[""] * images,
        valid=np.ones(images, np.bool_),
    )
    chosen = aim.padded
    for name, rows in (("head where it counts", chosen), ("head everywhere", _everywhere)):
        aim.padded = rows
        seconds = measure(objective, batch)
        tflops = images / seconds * objective.train_flops_per_image / 1e12
        rates = f"{images / seconds:.1f} images/s, {tflops:.3f} TFLOPs"
        print(f"{model} on {device}, {torch.get_num_threads()} threads, {name}: {rates}")


def _everywhere(rows: np.ndarray, num_tokens: int) -> tuple[np.ndarray, int]:
    """Rows that count first, then as many others as there are: the cost of a head that does not choose."""
    return np.pad(rows, (0, num_tokens - len(rows))), len(rows)


if __name__ == "__main__":
    main()
