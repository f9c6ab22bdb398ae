"""A run file is read strictly, and a changed run is told apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from headrace.config import config_to_dict
from headrace.train.config import RunConfig, first_difference, load_run, run_digest
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.optim.schedules import CosineConfig


def test_a_mixture_may_stand_in_its_own_file(run_file: Callable[..., Path]) -> None:
    path = run_file()
    inline = load_run(path)
    data = yaml.safe_load(path.read_text())
    (path.parent / "mix.yaml").write_text(yaml.safe_dump(data["mixture"]))
    path.write_text(yaml.safe_dump({**data, "mixture": "mix.yaml"}))
    assert load_run(path) == inline
    assert load_run(path, ["mixture.seed=9", "steps=3"]).mixture.seed == 9
    assert load_run(path, ["mixture.seed=9", "steps=3"]).steps == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'; known keys here: lr, betas"),
        (
            "objective.widht=8",
            r"unknown key 'objective.widht'; did you mean 'width'\? known keys here: kind, model, patch",
        ),
        ("mixture.lane=8", "unknown key 'mixture.lane'"),
        ("validation.evry=8", "unknown key 'validation.evry'"),
        ("stepz=8", "unknown key 'stepz'"),
        ("steps=0", "steps must be at least 1, got 0"),
        ("steps=many", "steps"),
        ("objective.kind=gpt", "objective"),
        ("objective.model=9B", "unknown model '9B'; known models: tiny"),
        ("optimizer.betas=[0.9, 1.0]", r"betas must be in \[0, 1\)"),
        ("schedule.warmup_fraction=1", r"warmup_fraction must be in \[0, 1\)"),
        ("optimizer.lr=.inf", r"optimizer\.lr: input should be a finite number, got inf"),
        ("optimizer.lr=.nan", r"optimizer\.lr: input should be a finite number, got nan"),
        ("optimizer.betas=[.nan, 0.9]", r"optimizer\.betas\.0: input should be a finite number"),
        ("optimizer.eps=.inf", r"optimizer\.eps: input should be a finite number"),
        ("optimizer.weight_decay=.nan", r"optimizer\.weight_decay: input should be a finite number"),
        ("schedule.final_lr=.inf", r"schedule\.final_lr: input should be a finite number"),
        ("clip_grad_norm=.nan", "clip_grad_norm: input should be a finite number"),
        ("timeout_seconds=0", "timeout_seconds must be above 0"),
        ("mixture.sources.0.weight=.nan", r"weight: input should be a finite number"),
        ("optimizer.kind=lion", r"optimizer\.kind: unknown 'lion'; known: adafactor, adamw"),
        ("schedule.kind=wsd", r"schedule\.kind: unknown 'wsd'; known: cosine"),
        ("schedule={kind: rsqrt}", "schedule: warmup_steps 10,000 and cooldown_steps 50,000 do not fit into 12 steps"),
        ("out=s3://bucket/run", "out must be a local folder"),
        ("mixture.decoder=none", "mixture.decoder: none delivers bytes, and training takes pictures"),
        ("mixture=missing.yaml", "missing.yaml: no such file"),
    ],
)
def test_a_mistake_is_named_with_its_key(run_file: Callable[..., Path], override: str, message: str) -> None:
    path = run_file()
    with pytest.raises(ValueError, match=message) as caught:
        load_run(path, [override])
    assert str(path) in str(caught.value)


def test_free_fields_may_change_and_others_are_named(run_file: Callable[..., Path]) -> None:
    path = run_file()
    old = config_to_dict(load_run(path))

    def difference(*overrides: str) -> str | None:
        return first_difference(old, config_to_dict(load_run(path, overrides)))

    assert difference() is None
    assert difference("out=elsewhere", "checkpoint.every=7", "log_every=2", "images_per_micro_batch=4") is None
    assert difference("optimizer.lr=0.5") == "optimizer.lr: was 0.001, is 0.5"
    assert difference("optimizer.betas=[0.9, 0.5]") == "optimizer.betas.1: was 0.95, is 0.5"
    assert difference("objective.depth=3") == "objective.depth: was 2, is 3"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_a_number_that_cannot_be_is_refused_from_python_too(value: float) -> None:
    for name in ("lr", "eps", "weight_decay"):
        with pytest.raises(ValueError, match="lr and eps must be above 0"):
            AdamWConfig(**{name: value})
    for name in ("warmup_lr", "final_lr"):
        with pytest.raises(ValueError, match="must be at least 0 and finite"):
            CosineConfig(**{name: value})


def test_what_a_run_records_reads_back_as_itself(run_file: Callable[..., Path], tmp_path: Path) -> None:
    config = load_run(run_file(), ["optimizer.eps=1e-08", "schedule.warmup_lr=1e-6"])
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    assert load_run(again) == config


CLIP = {
    "kind": "clip",
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 4},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    },
}
SUPERVISED = {"kind": "supervised", "num_classes": 3, "patch": 4, "width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize(
    ("objective", "digest"),
    [
        (None, "c75f40f66536e43e30c4cd5637d87816d282f90ec55f670ee3ddd1a09989ca14"),
        (CLIP, "ac4dc3454fcca72dc835916edc828ecc4cc3e52d6b3aebeeeb7d2f4bc1a160dc"),
        (SUPERVISED, "fd4dc13f6c6847aec927df13e313609de453379a15c3c3e5f69abd943e53e42c"),
    ],
)
def test_runs_keep_the_digest_that_headrace_gave_them_at_commit_eec0c18(
    run_file: Callable[..., Path], objective: dict[str, object] | None, digest: str
) -> None:
    """Or a step that an older version skipped behind the last checkpoint would be computed."""
    path = run_file(steps=6) if objective is None else run_file(steps=6, objective=objective)
    assert run_digest(load_run(path)) == digest
    assert run_digest(load_run(path, ["optimizer.layer_decay=0.9"])) != digest
    assert run_digest(load_run(path, ["ema={decay: 0.9}"])) != digest


def test_every_field_is_explained() -> None:
    import dataclasses
    import inspect

    from headrace.train import config
    from headrace.train.evaluate import monitor_config
    from headrace.train.models import lora
    from headrace.train.objectives import aim, clip, finetune, masked, mixing, patch_config, supervised
    from headrace.train.optim import adamw, cooldown, milestones, schedules

    tuning, patches = (finetune, lora, mixing), (masked, patch_config)
    for module in (
        config,
        monitor_config,
        aim,
        *patches,
        clip,
        supervised,
        *tuning,
        adamw,
        cooldown,
        milestones,
        schedules,
    ):
        for cls in vars(module).values():
            if dataclasses.is_dataclass(cls) and cls.__name__.endswith("Config") and cls.__module__ == module.__name__:
                lines = inspect.getsource(cls).splitlines()
                for field in dataclasses.fields(cls):
                    if field.name not in cls.__annotations__:
                        continue  # said where the class has it from
                    place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{field.name}:"))
                    assert lines[place + 1].strip().startswith('"""'), f"{cls.__name__}.{field.name} has no docstring"
    assert RunConfig.__doc__
