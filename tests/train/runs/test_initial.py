"""A run may start from weights of elsewhere, and says what it took."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective, released_names
from headrace.train.runs.initial import initial_weights
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run

SUPERVISED = {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 2, "heads": 2}


def objective_of(config: RunConfig, seed: int | None = None) -> Objective:
    return build_objective(
        config.objective, image_size=config.mixture.image_size, seed=config.seed if seed is None else seed
    )


def own(objective: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in released_names(objective, objective.state_dict()).items()}


@pytest.fixture
def config(run_file: Callable[..., Path]) -> RunConfig:
    return load_run(run_file(validation=None, steps=3))


def taken_by(config: RunConfig, path: Path, **rename: str) -> tuple[dict[str, Tensor], Any]:
    objective = objective_of(config, seed=99)
    initial = initial_weights(objective, path, rename)
    initial.load_into(objective)
    return own(objective), initial


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("what", ["", "checkpoints/00000003", "model.safetensors"], ids=["run", "checkpoint", "export"])
def test_a_run_starts_from_another(run_file: Callable[..., Path], config: RunConfig, what: str) -> None:
    train(config)
    weights = load_file(Path(config.out) / "model.safetensors")
    found, initial = taken_by(config, Path(config.out) / what)
    assert equal(found, weights)
    assert (initial.left_out, initial.fresh) == ((), ())
    path = run_file("next", validation=None, steps=1, seed=8, init_from=str(Path(config.out) / what))
    train(load_run(path, ["optimizer.lr=1e-12", "schedule.warmup_fraction=0"]))
    after = load_file(path.parent / "next" / "model.safetensors")
    assert all(torch.allclose(after[name], weights[name], atol=1e-8) for name in weights)
    report = json.loads((path.parent / "next" / "init.json").read_text())
    assert report["taken"] == sorted(weights)
    line = read_metrics(path.parent / "next" / "metrics.jsonl")[0]
    assert (line["event"], line["taken"], line["left_out"], line["fresh"]) == ("init", len(weights), 0, 0)


def test_a_resumed_run_does_not_start_again(run_file: Callable[..., Path], config: RunConfig) -> None:
    train(config)
    changes = {"validation": None, "steps": 6, "seed": 8, "init_from": config.out, "checkpoint": {"every": 3}}
    whole = load_run(run_file("whole", **changes))
    train(whole)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    cut = load_run(run_file("cut", **changes))
    with pytest.raises(KeyboardInterrupt):
        train(cut, on_metrics=stop)
    Path(config.out).rename(config.out + "-moved")  # it is not needed any more
    train(cut)
    assert [line.get("loss") for line in read_metrics(Path(cut.out) / "metrics.jsonl")] == [
        line.get("loss") for line in read_metrics(Path(whole.out) / "metrics.jsonl")
    ]
    with pytest.raises(ValueError, match="init_from: was "):
        train(load_run(run_file("cut", **{**changes, "init_from": None})))


def test_l3m_names_are_mapped(config: RunConfig, tmp_path: Path) -> None:
    """As its own files have them: q, k and v apart, a table of positions, names of a preprocessor of several blocks."""
    ours, theirs = own(objective_of(config)), dict[str, Tensor]()
    for name, tensor in ours.items():
        other = name.replace("preprocessor.", "preprocessor.blocks.0.")
        if other.endswith("attn.qkv.weight"):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[other.replace("qkv", f"{letter}_proj")] = part.contiguous()
        else:
            theirs[other] = tensor
    theirs["preprocessor.blocks.0.pos_embed"] = torch.zeros(1, 16, 16)
    theirs["head.decoder_pos_embed"] = torch.zeros(1, 16, 16)
    path = tmp_path / "l3m.pth"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in theirs.items()}, "iteration": 3}, path)
    found, initial = taken_by(config, path)
    assert equal(found, ours)
    assert "(l3m)" in str(initial)
    assert (initial.left_out, initial.fresh) == ((), ())
    del theirs["trunk.blocks.1.attn.k_proj.weight"]
    save_file(theirs, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="q, k and v are not all there"):
        taken_by(config, tmp_path / "part.safetensors")
    theirs["trunk.blocks.1.attn.k_proj.weight"] = torch.zeros(3)
    save_file(theirs, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part\.safetensors: .*q, k and v are not all there, of one shape"):
        taken_by(config, tmp_path / "part.safetensors")


def test_a_released_file_gives_its_trunk(config: RunConfig, tmp_path: Path) -> None:
    ours = own(objective_of(config))
    theirs = {name: tensor for name, tensor in ours.items() if not name.startswith("head.")}
    released = theirs | {"head.cls_token": torch.zeros(1, 1, 16), "trunk.blocks.0.attn.attn_mask": torch.zeros(1, 16)}
    (tmp_path / "aim").mkdir()
    save_file(released, tmp_path / "aim" / "model.safetensors", {"format": "pt"})
    found, initial = taken_by(config, tmp_path / "aim")
    assert equal({name: found[name] for name in theirs}, theirs)
    assert "(released AIM)" in str(initial)
    assert initial.fresh == tuple(sorted(name for name in ours if name.startswith("head.")))
    torch.save(theirs, tmp_path / "aim.pth")
    assert equal({name: taken_by(config, tmp_path / "aim.pth")[0][name] for name in theirs}, theirs)


def test_another_objective_takes_the_trunk_and_says_what_is_left(
    run_file: Callable[..., Path], config: RunConfig
) -> None:
    train(config)
    path = run_file("labels", validation=None, objective=SUPERVISED, init_from=config.out)
    found, initial = taken_by(load_run(path), Path(config.out))
    weights = load_file(Path(config.out) / "model.safetensors")
    trunk = [name for name in weights if not name.startswith("head.")]
    assert all(torch.equal(found[name], weights[name]) for name in trunk)
    assert initial.fresh == ("head.bias", "head.weight")
    assert all(name.startswith("head.") for name in initial.left_out)
    (line,) = (line for line in plan_run(load_run(path)) if line.startswith("init_from"))
    assert "left out: head." in line
    assert "drawn afresh: head.bias, head.weight" in line


def test_an_open_clip_file_is_taken_as_it_is(run_file: Callable[..., Path], tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"width": 16, "layers": 1, "heads": 2, "context_length": 8}
    model = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    config = load_run(run_file(validation=None, objective={"kind": "clip", "model_cfg": model}))
    theirs = open_clip.CLIP(**model).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "open_clip_model.safetensors")
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        found, initial = taken_by(config, path)
        assert "(open_clip)" in str(initial)
        assert (initial.left_out, initial.fresh) == ((), ())
        assert equal(found, {name: theirs[name] for name in found})
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in theirs.items()}}, tmp_path / "e.pt"
    )
    assert taken_by(config, tmp_path / "e.pt")[1].fresh == ()
    larger = {"kind": "clip", "model_cfg": model | {"vision_cfg": vision | {"image_size": 32}}}
    other = load_run(run_file("larger", validation=None, objective=larger), ["mixture.image_size=32"])
    assert taken_by(other, tmp_path)[1].facts()["resampled"] == ["visual.positional_embedding"]


def test_names_are_mapped_by_the_run_file(config: RunConfig, tmp_path: Path) -> None:
    ours = own(objective_of(config))
    other = {f"student.{name}" if name.startswith("trunk.") else name: tensor for name, tensor in ours.items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"fills a part of the trunk: .* tensors are missing: trunk\.blocks\.0"):
        taken_by(config, tmp_path / "other.safetensors")
    found, initial = taken_by(config, tmp_path / "other.safetensors", **{"student.": "", "student.trunk.": "trunk."})
    assert equal(found, ours)
    found, initial = taken_by(config, tmp_path / "other.safetensors", **{"student.trunk": "trunk", "head.": ""})
    assert initial.fresh == tuple(sorted(name for name in ours if name.startswith("head.")))
    with pytest.raises(ValueError, match=r"init_rename: no name in .* begins with 'teacher\.'"):
        taken_by(config, tmp_path / "other.safetensors", **{"teacher.": ""})


def test_what_does_not_fit_is_refused_by_name(run_file: Callable[..., Path], config: RunConfig, tmp_path: Path) -> None:
    ours = own(objective_of(config))
    path = tmp_path / "w.safetensors"
    save_file(ours | {"head.decoder_pred.bias": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=r"head\.decoder_pred\.bias has the shape \[3\], this run's \[48\].*init_rename"
    ):
        taken_by(config, path)
    assert "head.decoder_pred.bias" in taken_by(config, path, **{"head.decoder_pred.bias": ""})[1].fresh
    save_file(ours | {"head.decoder_pred.bias": torch.full((48,), float("nan"))}, path)
    with pytest.raises(ValueError, match="not finite"):
        taken_by(config, path)
    save_file({"a.b": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"nothing fits: it has a\.b; this run has head\."):
        taken_by(config, path)
    for bad, message in ((tmp_path / "no", "no such file or folder"), (tmp_path / "dcp", "dcp_to_torch_save")):
        (tmp_path / "dcp").mkdir(exist_ok=True)
        (tmp_path / "dcp" / ".metadata").touch()
        with pytest.raises(ValueError, match=message):
            taken_by(config, bad)
    with pytest.raises(ValueError, match="must be a local file or folder"):
        load_run(run_file(init_from="s3://a/b"))
    with pytest.raises(ValueError, match="init_rename maps names of init_from"):
        load_run(run_file(init_rename={"a": "b"}))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return (os.mkdir, (str(self.target),))


def test_what_a_pickle_says_is_never_run(config: RunConfig, tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    torch.save({"model": own(objective_of(config)), "extra": _Payload(target)}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": _Payload(target)}))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "evil.pth").read_bytes()[:900])
    # A stack that is empty, a number cut short: each another kind of error in torch.
    (tmp_path / "empty.pth").write_bytes(b"\x80\x02]q\x00a.")
    (tmp_path / "short.pth").write_bytes(b"\x80\x02J\x00.")
    for name in ("evil.pth", "plain.pth", "cut.pth", "empty.pth", "short.pth"):
        with pytest.raises(ValueError, match="nothing else in it is run") as caught:
            taken_by(config, tmp_path / name)
        assert "set to `False`" not in str(caught.value)  # torch's advice would run it
    assert not target.exists()
