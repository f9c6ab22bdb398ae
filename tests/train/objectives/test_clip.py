"""CLIP trains open_clip's model and gives it back to open_clip unchanged."""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.config import config_to_dict
from headrace.pipeline import Batch
from headrace.train.config import load_run
from headrace.train.execution import PLAIN, Execution
from headrace.train.loop import train
from headrace.train.models.clip_shapes import (
    CLIP_MODELS,
    ClipModelConfig,
    ClipTextConfig,
    ClipVisionConfig,
    named_shape,
)
from headrace.train.models.clip_towers import PairLoss
from headrace.train.objectives import captions
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.captions import says_something
from headrace.train.objectives.clip import MAX_LOGIT_SCALE, Clip, ClipConfig, open_clip_config
from headrace.train.objectives.objective import RowError, released_names
from headrace.train.objectives.pair_loss import Logits, Pairs, pair_losses
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.parallel.layout import ALL_OF_IT
from headrace.train.parallel.ranks import ALONE
from headrace.train.runs.checkpoint import refuse_other_config, save_checkpoint
from headrace.train.runs.formats import export_weights
from headrace.train.runs.loading import restore
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.runs.state_file import Progress, read_state
from headrace.train.runs.weights import read_weights

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
    changes = {"objective": config_to_dict(CONFIG), "validation": None, "optimizer": {"lr": 0.002}, "steps": 10}
    return train(load_run(run_file("clip", **changes))).out


def test_a_plan_takes_micro_batches_as_the_run_does(run_file: Callable[..., Path]) -> None:
    path = run_file(objective=config_to_dict(CONFIG))
    assert plan_run(load_run(path, ["images_per_micro_batch=4"]))[0] == "objective: clip, images of 16 pixels"


# Totals of open_clip's models of these names, as its docs/model_profile.csv has them.
TOTALS = {"ViT-B-32": 151_277_313, "ViT-B-16": 149_620_737, "ViT-L-14": 427_616_513, "ViT-H-14": 986_109_441}


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_the_table_has_the_sizes_of_open_clip(name: str) -> None:
    import open_clip

    theirs = open_clip.get_model_config(name)
    ours = open_clip_config(named_shape(name, 224), "softmax", {})["model_cfg"]
    assert theirs == {**theirs, **{key: ours[key] for key in ("embed_dim", "quick_gelu") if key in theirs}}
    assert bool(theirs.get("quick_gelu")) == ours["quick_gelu"] == name.endswith("-quickgelu")
    for part in ("vision_cfg", "text_cfg"):
        assert {key: ours[part][key] for key in theirs[part]} == theirs[part]
    with torch.device("meta"):
        built = build_objective(ClipConfig(kind="clip", model=name), image_size=224, seed=0)
        reference = open_clip.CLIP(**theirs)
    shapes = {key: tensor.shape for key, tensor in released_names(built, built.state_dict()).items()}
    assert shapes == {key: tensor.shape for key, tensor in reference.state_dict().items()}
    assert sum(parameter.numel() for parameter in built.parameters()) == TOTALS[name.removesuffix("-quickgelu")]


def test_a_name_wants_a_side_that_its_patches_divide() -> None:
    assert named_shape("ViT-L-14", 336).vision_cfg.image_size == 336
    with pytest.raises(
        ValueError, match="patches of 14 pixels, which do not divide image_size 300; take image_size 294"
    ):
        ClipConfig(kind="clip", model="ViT-L-14").build(image_size=300, seed=0)
    for wrong in ({}, {"model": "ViT-B-32", "model_cfg": CONFIG.model_cfg}):
        with pytest.raises(ValueError, match="give either `model`, a name, or `model_cfg`"):
            ClipConfig(kind="clip", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown model 'ViT-B-31'; known models: ViT-B-32, "):
        ClipConfig(kind="clip", model="ViT-B-31")


def test_towers_are_drawn_as_open_clips() -> None:
    """Text: tokens .02, positions .01, attention D^-.5, its output D^-.5 (2L)^-.5, MLP (2D)^-.5; images: PyTorch's."""
    width, layers = 64, 3
    text = ClipTextConfig(width=width, layers=layers, heads=4)
    vision = ClipVisionConfig(image_size=32, patch_size=8, width=width, layers=2, head_width=16)
    config = ClipConfig(kind="clip", model_cfg=ClipModelConfig(embed_dim=48, vision_cfg=vision, text_cfg=text))
    model = build_objective(config, image_size=32, seed=7).model  # type: ignore[union-attr]
    output = width**-0.5 * (2 * layers) ** -0.5
    block, seen = model.transformer.resblocks[0], model.visual.transformer.resblocks[0]  # type: ignore[union-attr]
    expected = {
        model.token_embedding.weight: 0.02,  # type: ignore[union-attr]
        model.positional_embedding: 0.01,
        model.text_projection: width**-0.5,
        block.attn.in_proj_weight: width**-0.5,
        block.attn.out_proj.weight: output,
        block.mlp.c_fc.weight: (2 * width) ** -0.5,
        block.mlp.c_proj.weight: output,
        model.visual.positional_embedding: width**-0.5,  # type: ignore[union-attr]
        model.visual.proj: width**-0.5,  # type: ignore[union-attr]
        seen.attn.in_proj_weight: (2 / (width + 3 * width)) ** 0.5,  # xavier-uniform of the three together
        seen.mlp.c_fc.weight: (1 / 3 / width) ** 0.5,
    }
    for tensor, deviation in expected.items():
        assert float(tensor.detach().std()) == pytest.approx(deviation, rel=0.12)  # type: ignore[union-attr]
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))  # type: ignore[union-attr, arg-type]


def test_scale_and_bias_start_as_siglips_and_are_not_decayed() -> None:
    objective = build_objective(replace(CONFIG, loss="sigmoid"), image_size=16, seed=1)
    assert isinstance(objective, Clip)
    assert float(objective.model.logit_scale.detach()) == pytest.approx(math.log(10))
    assert float(objective.model.logit_bias.detach()) == -10.0
    _, free = AdamWConfig(weight_decay=0.2).build(objective).param_groups
    names = {id(parameter): name.removeprefix("model.") for name, parameter in objective.named_parameters()}
    left = {names[id(parameter)] for parameter in free["params"]}
    # What open_clip's collect_no_weight_decay adds to everything of one dimension.
    theirs = set(objective.model.no_weight_decay())
    flat = {name for name, parameter in objective.model.named_parameters() if parameter.ndim < 2}
    assert left == theirs | flat
    assert {"logit_scale", "logit_bias", "positional_embedding", "visual.class_embedding"} <= left


@torch.no_grad()
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_loss_is_open_clips(make_batch: Callable[..., Batch], loss: PairLoss) -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    objective, batch = build_objective(replace(CONFIG, loss=loss), image_size=16, seed=1), make_batch(5)
    assert isinstance(objective, Clip)
    total, report = objective(batch)
    image = objective.model.encode_image(objective.normalise(batch.images), normalize=True)
    text = objective.model.encode_text(objective.tokenizer(batch.columns["caption"]), normalize=True)
    scale, bias = objective.model.logit_scale.exp(), objective.model.logit_bias
    theirs = ClipLoss()(image, text, scale) if bias is None else SigLipLoss()(image, text, scale, bias)
    assert float(total) / 5 == pytest.approx(float(theirs), rel=1e-6)
    assert set(report) == set(objective.reports)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_loss_in_chunks_is_the_whole_loss(loss: PairLoss) -> None:
    generator = torch.Generator().manual_seed(1)
    found = []
    for cells in (1 << 24, 50, 1):
        features = torch.randn(2, 11, 6, generator=generator.manual_seed(1), dtype=torch.float64)
        image, text = (functional.normalize(part, dim=1).requires_grad_() for part in features)
        scale = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        counted = torch.tensor([1.0] * 5 + [0.0] * 3 + [1.0] * 3)
        losses = pair_losses(
            Pairs(image, text, counted), Logits(scale, scale - 5), loss=loss, ranks=ALONE, max_cells=cells
        )
        gradients = torch.autograd.grad(losses.loss_B.sum(), [image, text, scale])
        found.append([losses.loss_B, losses.right_B, *gradients])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert not found[0][2][5:8].any(), "a row that does not count has no gradient"


def test_what_is_dropped_in_the_first_pass_is_dropped_in_the_second(make_batch: Callable[..., Batch]) -> None:
    """With dropout in the towers, a step in parts is still the step whose features were compared."""
    objective, parts = small_clip(), [make_batch(3), make_batch(3, first=3)]
    seen: list[Tensor] = []
    drop = nn.Dropout(0.5)
    objective.model.ln_final.register_forward_hook(lambda _m, _i, out: (seen.append(drop(out)), seen[-1])[1])
    torch.manual_seed(4)
    objective.prepare(parts)
    for part in parts:
        loss, _ = objective(part)
        loss.backward()
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler asks for it
def test_blocks_are_compiled_and_computed_again_without_another_result(make_batch: Callable[..., Batch]) -> None:
    gradients = []
    for execution in (PLAIN, Execution(compiled=True, recompute="selective"), Execution(recompute="full")):
        objective, batch = small_clip(), make_batch(4)
        with patch_compile_to_eager():
            objective.run_as(execution)
        loss, _ = objective(batch)
        loss.backward()
        gradients.append({name: p.grad for name, p in objective.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-6)


@contextlib.contextmanager
def patch_compile_to_eager() -> Iterator[None]:
    """Let graphs be captured whole, and run as they are: the test is of the capture, and needs no C++ compiler."""
    compile_it = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, **options: compile_it(f, **options, backend="aot_eager"))
        yield


@torch.no_grad()
def test_a_residual_stream_in_bf16_begins_at_the_first_block(make_batch: Callable[..., Batch]) -> None:
    objective, batch, seen = small_clip(), make_batch(2), set[torch.dtype]()
    objective.run_as(Execution(residual=torch.bfloat16))
    for tower in (objective.model.visual.transformer, objective.model.transformer):
        for block in tower.resblocks:
            block.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        objective(batch)
    assert seen == {torch.bfloat16}


@torch.no_grad()
def test_a_caption_longer_than_the_tower_is_cut_and_counted(make_batch: Callable[..., Batch]) -> None:
    import open_clip

    objective = small_clip()
    texts = ["a b c d e f g h i j", "a b c d e f g h i j k", "short", None]
    given = ["" if text is None else text for text in texts]
    tokens = objective.tokens(given)
    assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=12)(given))
    assert [objective.tokens.num_cut([text]) for text in given] == [0, 1, 0, 0]
    assert float(objective(make_batch(4, caption=texts))[1]["cut_captions"]) == pytest.approx(1 / 3)


def test_the_words_that_a_tokenizer_keeps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "CACHED_WORDS", 20)
    tokens, plain = captions.CaptionTokens(12), captions.CaptionTokens(12)
    texts = [f"word{letter * number}" for number in range(1, 20) for letter in "xyz"]
    monkeypatch.setattr(plain, "_encode", plain.tokenizer.encode)
    for text in texts:
        assert torch.equal(tokens([text]), plain([text]))
        assert len(tokens.tokenizer.cache) <= 22
    assert torch.equal(tokens(["<end_of_text>"]), plain(["<end_of_text>"]))


@pytest.mark.parametrize(
    "nothing", [None, "", "   ", "\n\t", "\x00\x01\x7f", "\u200b\ufeff", "\u3000\u2003", "&nbsp;&#32;"]
)
def test_every_kind_of_empty_caption_is_missing(nothing: str | None) -> None:
    assert says_something([nothing, "x", "\u732b", "&amp;", "?"], "caption").tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("column", "row", "message"),
    [
        (np.array([1, 2]), 0, "the column 'text' holds int64; captions are texts, or null"),
        (["a", 3.5], 1, "its 'text' is a float; captions are texts, or null"),
        (["a", ["b", "c"]], 1, "its 'text' is a list"),
        ([b"a"], 0, "its 'text' is a bytes"),
    ],
)
def test_what_is_no_text_is_refused(column: Any, row: int, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        says_something(column, "text")
    assert caught.value.row == row


def test_the_export_names_what_the_run_was_trained_with(run_file: Callable[..., Path]) -> None:
    import open_clip

    objective = config_to_dict(replace(CONFIG, loss="sigmoid"))
    changes = {"objective": objective, "validation": None, "optimizer": {"lr": 0.002}, "steps": 1}
    for interpolation in ("bicubic", "bilinear"):
        path = run_file(interpolation, **changes)
        override = [f"mixture.augment.interpolation={interpolation}", "mixture.augment.scale=[0.9, 1.0]"]
        folder = train(load_run(path, override)).out / "open_clip"
        config = json.loads((folder / "open_clip_config.json").read_text())
        assert config["preprocess_cfg"]["interpolation"] == interpolation
        assert config["headrace"]["loss"] == "sigmoid"
        assert config["headrace"]["augment"]["scale"] == [0.9, 1.0]
    again = folder.parent / "again"
    export_weights(read_weights(folder.parent), again, form="open_clip", dtype="float32")
    for name in ("open_clip_config.json", "model.safetensors"):
        assert (again / "open_clip" / name).read_bytes() == (folder / name).read_bytes()
    loaded = open_clip.create_model(f"local-dir:{folder}")
    assert float(loaded.logit_bias.detach()) != -10.0, "trained, so not the one of the start"
    assert float(loaded.logit_bias.detach()) == pytest.approx(-10.0, abs=0.1)


def test_a_checkpoint_of_a_scale_without_dimension_goes_on(run_file: Callable[..., Path], tmp_path: Path) -> None:
    config = load_run(run_file(objective=config_to_dict(CONFIG)))
    old, new = small_clip(), small_clip()
    old.model.logit_scale = nn.Parameter(torch.tensor(3.25))
    optimizers = [AdamWConfig().build(objective) for objective in (old, new)]
    for parameter in old.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    save_checkpoint(
        tmp_path, old, optimizers[0], progress=Progress(step=1, stream={}), config=config, ranks=ALONE, layout=ALL_OF_IT
    )
    checkpoint = read_state(tmp_path / "00000001")
    restore(checkpoint, new, optimizers[1])
    assert new.model.logit_scale.tolist() == [float(old.model.logit_scale.detach())]
    moments = [
        optimizer.state[o.model.logit_scale]["exp_avg"] for optimizer, o in zip(optimizers, (old, new), strict=True)
    ]
    assert moments[1].tolist() == [float(moments[0])] != [0.0]

    # A config of then has fewer keys.
    then = {name: config_to_dict(CONFIG)[name] for name in ("kind", "model_cfg")}
    refuse_other_config(replace(checkpoint, config={**checkpoint.config, "objective": then}), config)


# Kills itself, as kill -9 does, when the line of its third step is written.
KILLED = """
import os, signal, sys
from headrace.train.config import load_run
from headrace.train.loop import train
train(load_run(sys.argv[1]), on_metrics=lambda line: line["step"] == 3 and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_run_in_micro_batches_that_was_killed_goes_on_to_the_last_bit(run_file: Callable[..., Path]) -> None:
    validation = load_run(run_file("named")).validation
    assert validation is not None
    changes = {
        "objective": config_to_dict(replace(CONFIG, loss="sigmoid")),
        "validation": {"dataset": validation.dataset, "every": 2},
        "images_per_micro_batch": 6,
        "checkpoint": {"every": 2},
        "steps": 5,
    }
    whole = train(load_run(run_file("whole", **changes))).out
    path = run_file("killed", **changes)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False).returncode == -9
    killed = train(load_run(path)).out
    lines = [
        [[line[name] for name in ("event", "step", "loss", "auc") if name in line] for line in read_metrics(file)]
        for file in (whole / "metrics.jsonl", killed / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]
    assert (whole / "open_clip" / "model.safetensors").read_bytes() == (
        killed / "open_clip" / "model.safetensors"
    ).read_bytes()
