"""Heads that are fitted together are what each would be alone, in one process or several, killed or not."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.evaluate import fit as fit_module
from headrace.train.evaluate.fit import Fit, FitBatch, FitFile, batch_moments
from headrace.train.evaluate.labels import Labels
from headrace.train.evaluate.probe_config import AUGMENTS, PROTOCOLS, ProbeConfig, protocol
from headrace.train.models.heads import AttentiveProbes, LinearProbes, Probes
from headrace.train.optim.lars import Lars
from headrace.train.parallel.ranks import ALONE

WIDTH, TOKENS, CLASSES = 8, 5, 3
CONFIG = ProbeConfig(
    train="a", test="b", epochs=2, lrs=(0.01, 0.1), weight_decays=(0.05, 0.5), warmup_epochs=1.0, clip_grad_norm=0.5
)


def batches(count: int, *, pooled: bool = False) -> list[FitBatch]:
    generator = torch.Generator().manual_seed(1)
    shape = (WIDTH,) if pooled else (TOKENS, WIDTH)
    return [
        FitBatch(
            [(torch.randn(7 + number, *shape, generator=generator) * 3 + 1).half()],
            torch.randint(CLASSES, (7 + number,), generator=generator),
        )
        for number in range(count)
    ]


def heads(kind: str, num_probes: int) -> Probes:
    torch.manual_seed(0)
    if kind != "attentive":
        probes = LinearProbes(width=WIDTH, classes=CLASSES, num_probes=num_probes)
        return probes if kind == "linear" else probes.without_norm()
    return AttentiveProbes(width=WIDTH, heads=2, classes=CLASSES, num_probes=num_probes)


def fitted(kind: str, config: ProbeConfig, parts: list[FitBatch]) -> Fit:
    fit = Fit([heads(kind, len(config.settings))], config, steps_per_epoch=2, ranks=ALONE)
    for part in parts:
        fit.take_step(part)
    return fit


class Plain(nn.Module):
    """One probe as anybody would write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        like = heads(kind, 1)
        self.kind = kind
        self.norm = nn.Identity() if kind == "bare" else nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
        self.own = nn.ParameterDict({name: p.detach().clone() for name, p in like.named_parameters_of(0).items()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(0, -2)).view(x.shape)
        if self.kind != "attentive":
            return functional.linear(x, self.own["weight"], self.own["bias"])
        keys, values = ((x @ self.own[name].T).unflatten(2, (2, -1)) for name in ("key", "value"))
        score = torch.einsum("blae,ae->bla", keys, self.own["query"].view(2, -1)) / math.sqrt(WIDTH // 2)
        pooled = torch.einsum("bla,blae->bae", score.softmax(dim=1), values).flatten(1)
        return pooled @ self.own["classifier"].T


@pytest.mark.parametrize("kind", ["attentive", "linear", "bare"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_each_probe_is_what_plain_torch_fits_alone(kind: str, optimizer: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    parts = batches(4, pooled=kind != "attentive")
    fit = fitted(kind, config, parts)
    for number, (lr, decay) in enumerate(config.settings):
        plain = Plain(kind)
        free = [p for name, p in plain.own.items() if name in ("query", "bias")]
        others = [p for name, p in plain.own.items() if name not in ("query", "bias")]
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": decay, "decayed": True}]
        groups += [{"params": free, "weight_decay": 0.0, "decayed": False}]
        alone: torch.optim.Optimizer = torch.optim.AdamW(groups)
        if optimizer == "sgd":
            alone = torch.optim.SGD(groups, momentum=0.9)
        if optimizer == "lars":
            alone = Lars(groups, momentum=0.9, trust_coefficient=0.001)
        # Two steps of warm-up, two of the cosine from the peak to 1e-5.
        for rate, part in zip((lr / 2, lr, lr, 1e-5 + (lr - 1e-5) / 2), parts, strict=True):
            for group in alone.param_groups:
                group["lr"] = rate
            alone.zero_grad()
            functional.cross_entropy(plain(part.sets[0].float()), part.label_B).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            alone.step()
        for name, parameter in fit.probes[0].named_parameters_of(number).items():
            torch.testing.assert_close(parameter, plain.own[name], atol=2e-5, rtol=2e-5)
        for name, buffer in plain.norm.named_buffers():
            torch.testing.assert_close(dict(fit.probes[0].norm.named_buffers())[name], buffer)


def test_a_batch_read_in_parts_gives_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted("attentive", CONFIG, batches(4))
    monkeypatch.setattr(fit_module, "PART_BYTES", 2 * whole.probes[0].row_bytes(TOKENS))
    in_parts = fitted("attentive", CONFIG, batches(4))
    for name, tensor in whole.heads.state_dict().items():
        torch.testing.assert_close(in_parts.heads.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_step_without_samples_moves_nothing() -> None:
    fit = fitted("linear", CONFIG, batches(1, pooled=True))
    before = {name: tensor.clone() for name, tensor in fit.heads.state_dict().items()}
    fit.take_step(FitBatch([torch.empty(0, WIDTH)], torch.empty(0, dtype=torch.int64)))
    assert fit.step == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in fit.heads.state_dict().items())


def test_moments_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "NORM_ROWS", 7)
    x = torch.randn(9, 5, 4) + torch.tensor([1e4, 0, -3, 100])
    count, mean, var = batch_moments(x, ALONE)
    expected = torch.var_mean(x.flatten(0, 1).double(), dim=0, correction=0)
    assert count == 45
    torch.testing.assert_close(mean, expected[1].float())
    torch.testing.assert_close(var, expected[0].float(), rtol=1e-3, atol=1e-4)
    assert batch_moments(torch.empty(0, 5, 4), ALONE)[0] == 0


def test_right_is_counted_by_what_the_labels_say() -> None:
    class AnyOfTwo(Labels):
        def right(self, choice_RB: Tensor, place_B: np.ndarray) -> Tensor:
            return super().right(choice_RB, place_B) | (choice_RB == 2)

    fit = fitted("linear", CONFIG, [])
    x = torch.randn(6, WIDTH)
    choice = fit.probes[0].eval()(x).argmax(dim=2)[0].numpy()
    place = np.arange(6)
    labels = Labels(url="a", label_N=choice)
    assert fit.count_right([([x], place)], labels) == ([[1.0] * 4], 6)
    wrong = (choice + 1) % 3
    assert fit.count_right([([x], place)], Labels(url="a", label_N=wrong)).accuracy == [[0.0] * 4]
    twice = fit.count_right([([x], place), ([x], place)], AnyOfTwo(url="a", label_N=wrong))
    assert twice.samples == 12
    assert twice.accuracy[0] == pytest.approx([(choice == 2).mean()] * 4)


@pytest.mark.parametrize("kind", ["attentive", "linear", "bare"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_fit_that_goes_on_from_its_file_is_bitwise_the_same(tmp_path: Path, kind: str, optimizer: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    parts = batches(4, pooled=kind != "attentive")
    whole = fitted(kind, config, parts)
    first = fitted(kind, config, parts[:2])
    path = tmp_path / "state.safetensors"
    FitFile(path, "a digest").save_when_due(first)
    again = fitted(kind, config, [])
    FitFile(path, "a digest").load_into(again)
    assert again.step == 2
    for part in parts[2:]:
        again.take_step(part)
    assert all(torch.equal(again.heads.state_dict()[name], x) for name, x in whole.heads.state_dict().items())


def test_the_file_of_another_probe_or_no_probe_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.safetensors"
    FitFile(path, "one").save_when_due(fitted("linear", CONFIG, batches(2, pooled=True)))
    for digest, text in (("another", "is of another probe"), ("one", "cannot be read")):
        fit = fitted("linear", CONFIG, [])
        FitFile(path, digest).load_into(fit)
        assert fit.step == 0
        assert text in caplog.text
        path.write_bytes(b"broken")


def test_a_fit_is_saved_at_the_end_of_an_epoch_and_within_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    file, parts = FitFile(path, "one"), batches(2, pooled=True)
    file.save_when_due(fitted("linear", CONFIG, parts[:1]))
    assert not path.exists()
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", -1.0)
    file.save_when_due(fitted("linear", CONFIG, parts[:1]))
    assert path.exists()


def test_the_published_protocol_of_aim_is_seven_rates_and_two_decays() -> None:
    config = ProbeConfig(train="a", test="b", **protocol("aim"))
    assert len(config.settings) == 14
    assert config.settings[0] == (5e-5, 0.05)
    assert config.settings[-1] == (2e-3, 0.1)
    assert (config.epochs, config.images_per_batch, config.warmup_epochs) == (100, 1024, 5)
    assert (config.clip_grad_norm, config.min_lr, config.augment) == (3.0, 1e-5, "aim")


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_is_a_config(name: str) -> None:
    assert ProbeConfig(train="a", test="b", **protocol(name)) == ProbeConfig(
        train="a", test="b", **protocol(name.replace("_", "-"))
    )


def test_the_scaling_study_is_probed_as_its_code_says_and_older_fits_are_found_again() -> None:
    study = ProbeConfig(train="a", test="b", **protocol("big-vision"))
    told = (study.head, study.layers, study.crop, study.center_fraction * 256, study.interpolation)
    assert told == ("few-shot", "end", "squash", 224, "bilinear")
    assert study.told["crop"] == "squash"
    assert "crop" not in ProbeConfig(train="a", test="b").told
    with pytest.raises(ValueError, match=r"crop: unknown 'square'; .*known: center, squash"):
        ProbeConfig(train="a", test="b", crop="square")  # type: ignore[arg-type]


def test_moco_v3_is_probed_as_the_paper_and_its_code_say() -> None:
    code, paper = (ProbeConfig(train="a", test="b", **protocol(name)) for name in ("moco-v3", "moco-v3-paper"))
    told = (paper.head, paper.layers, paper.norm, paper.optimizer, paper.epochs, paper.images_per_batch)
    assert told == ("linear", "end", "none", "sgd", 90, 4096)
    assert (paper.weight_decays, paper.warmup_epochs, paper.min_lr, paper.clip_grad_norm) == ((0.0,), 0.0, 0.0, 0.0)
    assert (code.images_per_batch, code.lrs) == (1024, (3 * 1024 / 256,))
    assert [lr * 256 / 4096 for lr in paper.lrs] == pytest.approx([0.1, 0.3, 1.0, 3.0, 10.0])
    crops = AUGMENTS[paper.augment]
    assert crops is not None
    assert (crops.scale, crops.flip, crops.interpolation) == ((0.08, 1.0), True, "bilinear")
    torch.manual_seed(0)
    weight = LinearProbes(width=300, classes=300, num_probes=1).weight[0]
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decays": (-0.1,)}, "weight decays must be at least 0"),
        ({"warmup_epochs": 10.0}, "warmup_epochs must be at least 0 and under the 10 epochs"),
        ({"optimizer": "adam"}, r"optimizer: unknown 'adam'; did you mean 'adamw'\? known: adamw, sgd, lars"),
        ({"layers": "end"}, "an attentive head reads tokens of blocks"),
        ({"norm": "none"}, "an attentive head reads tokens of blocks"),
        ({"head": "linear", "norm": "layer"}, "norm: unknown 'layer'; known: batch, none"),
        ({"augment": "x"}, "augment: unknown 'x'; known: none, crops, bilinear_crops, aim"),
        ({"lrs": ()}, "learning rates must be above 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**{"train": "a", "test": "b", **changes})
    with pytest.raises(ValueError, match="protocol: unknown 'x'; known: quick, aim, moco_v3"):
        protocol("x")
