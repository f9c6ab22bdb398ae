"""CLIP trains open_clip's model and gives it back to open_clip unchanged."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace.config import config_to_dict
from headrace.pipeline import Batch
from headrace.train.config import load_run
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.clip import (
    MAX_LOGIT_SCALE,
    Clip,
    ClipConfig,
    ClipModelConfig,
    ClipTextConfig,
    ClipVisionConfig,
)
from headrace.train.runs.plan import plan_run

# open_clip's import meets deprecations of its own dependencies; they are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = ClipConfig(
    kind="clip",
    model_cfg=ClipModelConfig(
        embed_dim=16,
        vision_cfg=ClipVisionConfig(image_size=16, patch_size=8, width=32, layers=2, head_width=16),
        text_cfg=ClipTextConfig(width=32, layers=1, heads=2, context_length=12),
    ),
)


def small_clip() -> Clip:
    objective = build_objective(CONFIG, image_size=16, seed=1)
    assert isinstance(objective, Clip)
    return objective


@torch.no_grad()
def test_loss_is_the_symmetric_cross_entropy(make_batch: Callable[..., Batch]) -> None:
    objective, batch = small_clip(), make_batch(4)
    loss, report = objective(batch)
    image = objective.model.encode_image(objective.normalise(batch.images))
    text = objective.model.encode_text(objective.tokenizer(batch.columns["caption"]))
    total = 0.0
    for i in range(4):
        for own, others in ((image[i], text), (text[i], image)):
            scores = [float(torch.cosine_similarity(own, other, dim=0)) / 0.07 for other in others]
            total += (math.log(sum(math.exp(score) for score in scores)) - scores[i]) / 2
    assert float(loss) == pytest.approx(total, rel=1e-4)
    assert objective.num_terms(batch) == 4
    assert float(report["logit_scale"]) == pytest.approx(math.log(1 / 0.07))


@torch.no_grad()
def test_padded_pairs_are_nobodys_negatives(make_batch: Callable[..., Batch]) -> None:
    objective = small_clip()
    padded, short = make_batch(4, valid=[True, True, True, False]), make_batch(3)
    assert float(objective(padded)[0]) == pytest.approx(float(objective(short)[0]), rel=1e-5)
    assert float(objective(make_batch(2, valid=[False, False]))[0]) == 0.0


@torch.no_grad()
@pytest.mark.parametrize("nothing", [None, "", " \t\n"])
def test_a_picture_without_a_caption_is_nobodys_pair(make_batch: Callable[..., Batch], nothing: str | None) -> None:
    objective, whole = small_clip(), make_batch(4)
    captions = [*whole.columns["caption"][:3], nothing]
    batch = make_batch(4, caption=captions)
    assert (objective.num_terms(batch), objective.num_missing(batch)) == (3, 1)
    assert float(objective(batch)[0]) == pytest.approx(float(objective(make_batch(3))[0]), rel=1e-5)
    damaged = make_batch(4, caption=captions, valid=[True, False, True, False])
    assert (objective.num_terms(damaged), objective.num_missing(damaged)) == (2, 0)
    without = make_batch(2, caption=[nothing, nothing])
    assert (objective.num_terms(without), float(objective(without)[0])) == (0, 0.0)


@torch.no_grad()
def test_the_scale_stays_within_its_bounds() -> None:
    objective = small_clip()
    for value, expected in ((-1.0, 0.0), (9.0, MAX_LOGIT_SCALE), (3.0, 3.0)):
        objective.model.logit_scale.fill_(value)
        objective.after_step()
        assert float(objective.model.logit_scale) == pytest.approx(expected)


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 16, the mixture's image_size 32"):
        build_objective(CONFIG, image_size=32, seed=1)


@torch.no_grad()
def test_open_clip_loads_what_a_run_exports(clip_run: Path, make_batch: Callable[..., Batch]) -> None:
    import open_clip
    from safetensors.torch import load_file

    from headrace.train.runs.weights import read_weights

    ours, batch = small_clip(), make_batch(3)
    read_weights(clip_run).load_into(ours)
    loaded = open_clip.create_model(f"local-dir:{clip_run / 'open_clip'}").eval()
    images, tokens = ours.normalise(batch.images), ours.tokenizer(batch.columns["caption"])
    assert torch.equal(loaded.encode_image(images), ours.eval().model.encode_image(images))
    assert torch.equal(loaded.encode_text(tokens), ours.model.encode_text(tokens))

    config = json.loads((clip_run / "open_clip" / "model_config.json").read_text())
    plain = open_clip.CLIP(**config["model_cfg"])
    plain.load_state_dict(load_file(clip_run / "open_clip" / "model.safetensors"))
    assert config["preprocess_cfg"]["size"] == 16
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_run / 'open_clip'}", return_transform=True)
    assert list(preprocess.transforms[-1].mean) == config["preprocess_cfg"]["mean"]


def test_training_learns_which_caption_is_whose(clip_run: Path) -> None:
    from headrace.train.runs.metrics import read_metrics

    losses = [line["loss"] for line in read_metrics(clip_run / "metrics.jsonl") if line["event"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.fixture
def clip_run(run_file: Callable[..., Path]) -> Path:
    """A short finished run."""
    from headrace.config import config_to_dict
    from headrace.train.config import load_run
    from headrace.train.loop import train

    changes = {"objective": config_to_dict(CONFIG), "validation": None, "optimizer": {"lr": 0.002}, "steps": 10}
    return train(load_run(run_file("clip", **changes))).out


def test_a_plan_refuses_micro_batches_as_the_run_does(run_file: Callable[..., Path]) -> None:
    path = run_file(objective=config_to_dict(CONFIG))
    assert plan_run(load_run(path))[0] == "objective: clip, images of 16 pixels"
    with pytest.raises(ValueError, match="needs the whole batch: one process, no images_per_micro_batch"):
        plan_run(load_run(path, ["images_per_micro_batch=4"]))
