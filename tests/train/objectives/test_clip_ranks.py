"""The gradient of a contrastive batch is that of the whole batch, over any ranks and micro-batches."""

# Against an independent reference: float64, one process, loops over pairs, nothing gathered, chunked or cached.

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from headrace.config import config_to_dict
from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.clip import Clip, ClipConfig, ClipModelConfig, ClipTextConfig, ClipVisionConfig
from headrace.train.runs.metrics import read_metrics
from tests.ports import free_port
from tests.train.parallel.test_ranks import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MODEL = ClipModelConfig(
    embed_dim=8,
    vision_cfg=ClipVisionConfig(image_size=16, patch_size=8, width=16, layers=2, head_width=8),
    text_cfg=ClipTextConfig(width=16, layers=1, heads=2, context_length=12),
)

# Each group of arguments up to "--" is one step whose gradients, batch and norm are written instead of taken.
GRADIENTS = """
import json, os, sys
import numpy as np
import torch
from safetensors.torch import save_file
from headrace.train.config import load_run
from headrace.train.step import take_step
from headrace.train.parallel.layout import piece_of, whole
from headrace.train.parallel.ranks import join_ranks
from headrace.train.state import open_state

groups, group = [], []
for word in [*sys.argv[1:], "--"]:
    if word == "--":
        groups.append(group)
        group = []
    else:
        group.append(word)
for path, out, silent, *overrides in groups:
    config = load_run(path, overrides)
    with join_ranks("cpu") as ranks, open_state(config, ranks) as state:
        kept = {}
        def keep(*_):
            kept.update({n: whole(p.grad).clone().contiguous() for n, p in state.objective.named_parameters()})
        state.optimizer.step = keep
        batch = next(state.stream)
        if ranks.rank == ranks.size - 1:
            for row in range(min(len(batch.position), int(silent))):
                batch.columns["caption"][row] = None if row % 2 else "  "
        step = take_step(config, state, batch, ranks=ranks, stopping=False)
        facts = {"loss": step.loss, "norm": step.grad_norm, "captions": list(batch.columns["caption"])}
        with torch.no_grad():
            for value in (9.0, -1.0):
                piece_of(state.objective.model.logit_scale).local.fill_(value)
                state.objective.after_step()
                facts[f"from {value}"] = float(whole(state.objective.model.logit_scale)[0])
        facts |= {name: float(value) for name, value in step.report.items()}
        save_file(kept, f"{out}-{ranks.rank}.safetensors")
        np.save(f"{out}-{ranks.rank}.npy", np.asarray(batch.images))
        open(f"{out}-{ranks.rank}.json", "w").write(json.dumps(facts))
    if "MASTER_PORT" in os.environ:
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
"""
TRAIN = "from headrace.cli.app import main; main()"


def together(number: int, program: str, *arguments: str) -> None:
    """Run `program` in that many processes."""
    environment = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment["WORLD_SIZE"] = str(number)
    command = [sys.executable, "-c", program, *arguments]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    running = [
        subprocess.Popen(command, env={**environment, **rank}, stderr=subprocess.PIPE, text=True) for rank in ranks
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0] * number, errors[0][-3000:] + errors[-1][-3000:]


def objective_of(loss: str) -> dict[str, Any]:
    found: dict[str, Any] = config_to_dict(ClipConfig(kind="clip", model_cfg=MODEL, loss=loss))  # type: ignore[arg-type]
    return found


def clip_file(run_file: Callable[..., Path], loss: str, **changes: Any) -> Path:
    changed = {"objective": objective_of(loss), "validation": None, "clip_grad_norm": 1e9, **changes}
    return run_file(f"clip-{loss}", **changed)


def reference(config: RunConfig, out: str, ranks: int) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss over pairs and its gradients, from what the ranks' batches were."""
    captions, images = [], []
    for rank in range(ranks):
        captions += json.loads(Path(f"{out}-{rank}.json").read_text())["captions"]
        images.append(np.load(f"{out}-{rank}.npy"))
    rows = [row for row, caption in enumerate(captions) if caption and caption.strip()]
    objective = build_objective(config.objective, image_size=16, seed=config.seed)
    assert isinstance(objective, Clip)
    objective.double()
    pictures = objective.normalise(np.concatenate(images)).double()
    image = [objective.model.encode_image(pictures[row : row + 1])[0] for row in rows]
    text = [objective.model.encode_text(objective.tokenizer([captions[row]]))[0] for row in rows]
    factor, bias = objective.model.logit_scale.exp()[0], objective.model.logit_bias
    cell = [[factor * torch.dot(i, t) / i.norm() / t.norm() for t in text] for i in image]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(rows)):
        if bias is None:
            total = total + torch.logsumexp(torch.stack(cell[i]), 0) - cell[i][i]
            total = total + torch.logsumexp(torch.stack([row[i] for row in cell]), 0) - cell[i][i]
        else:
            for j in range(len(rows)):
                sign = 1.0 if i == j else -1.0
                total = total + 2 * torch.log1p(torch.exp(-sign * (cell[i][j] + bias[0])))
    loss = total / 2 / max(1, len(rows))
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def assert_true_gradients(path: Path, out: str, ranks: int) -> None:
    config = load_run(path)
    loss, expected = reference(config, out, ranks)
    for rank in range(ranks):
        facts, found = json.loads(Path(f"{out}-{rank}.json").read_text()), load_file(f"{out}-{rank}.safetensors")
        assert facts["loss"] == pytest.approx(loss, rel=1e-5)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))
        assert facts["norm"] == pytest.approx(norm, rel=2e-5), "clipping sees the norm of the true gradient"
        assert (facts["from 9.0"], facts["from -1.0"]) == (pytest.approx(math.log(100)), 0.0)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found[name].double(), gradient, atol=2e-5 * scale + 1e-9, rtol=1e-4)


VARIANTS = {
    "plain": ["0"],
    "parts": ["0", "images_per_micro_batch=3"],
    "silent": ["99"],
    "silent-parts": ["99", "images_per_micro_batch=3"],
    "some-parts": ["1", "images_per_micro_batch=2"],
}
SPREAD = {
    "spread": ["0", "parallel.strategy=fsdp"],
    "spread-parts": ["99", "parallel.strategy=fsdp", "images_per_micro_batch=3"],
}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.full)])
def test_ranks_and_micro_batches_have_the_gradient_of_the_whole_batch(
    run_file: Callable[..., Path], tmp_path: Path, loss: str, ranks: int
) -> None:
    path = clip_file(run_file, loss)
    variants = VARIANTS | (SPREAD if ranks > 1 else {})
    words: list[str] = []
    for name, (silent, *overrides) in variants.items():
        words += ["--", str(path), str(tmp_path / name), "5" if ranks == 1 and silent == "99" else silent]
        words += [f"out={tmp_path / name}-run", *overrides]
    together(ranks, GRADIENTS, *words[1:])
    for name in variants:
        assert_true_gradients(path, str(tmp_path / name), ranks)


def test_a_run_over_two_spread_processes_is_that_of_one_and_is_continued_by_it(
    run_file: Callable[..., Path], tmp_path: Path, other_pictures: str
) -> None:
    """Losses, validation over all ranks, weights; and a checkpoint of either."""
    path = clip_file(
        run_file, "softmax", validation={"dataset": other_pictures, "every": 2}, steps=4, checkpoint={"every": 2}
    )
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    how = ["parallel.strategy=fsdp", "images_per_micro_batch=3"]
    together(2, TRAIN, "train", str(path), f"out={spread}", *how)
    train(load_run(path, [f"out={alone}"]))
    lines = [[line for line in read_metrics(out / "metrics.jsonl") if "loss" in line] for out in (alone, spread)]
    assert [line["event"] for line in lines[0]] == [line["event"] for line in lines[1]]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        if one["event"] == "validation":
            for name in ("auc", "image_to_text_at_5", "text_to_image_at_5", "caption_accuracy", "cut_captions"):
                assert one[name] == pytest.approx(other[name], abs=1e-3), name
    assert_same_weights(alone, spread)

    shutil.rmtree(spread / "checkpoints" / "00000004")
    train(load_run(path, [f"out={spread}"]))
    assert_same_weights(alone, spread)
    assert load_file(spread / "model.safetensors")["logit_scale"].shape == ()


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(out / "model.safetensors") for out in (one, other))
    for name, tensor in first.items():
        found = second[name]
        if name.endswith("in_proj_bias"):
            # No softmax is moved by the bias of keys: its gradient is rounding alone, which Adam makes large.
            tensor, found = (torch.cat(part.chunk(3)[::2]) for part in (tensor, found))
        torch.testing.assert_close(found, tensor, atol=1e-4, rtol=1e-3)
