"""What a run gives away says what it is, and holds no secret."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from headrace.train.config import load_run
from headrace.train.objectives.build import build_objective
from headrace.train.runs.export import export_model
from headrace.train.runs.folder import write_records
from headrace.train.runs.tensor_files import CONFIG_KEY
from headrace.train.runs.weights import read_weights


def test_exported_weights_and_records_hold_no_password_and_no_signature(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file())
    assert config.validation is not None
    signed = "https://me:pw1@host/data?sv=2024&sig=pw2"
    source = dataclasses.replace(config.mixture.sources[0], url=signed, index_dir="s3://k:pw3@bucket/index?token=pw4")
    config = dataclasses.replace(
        config,
        mixture=dataclasses.replace(config.mixture, sources=(source,)),
        validation=dataclasses.replace(config.validation, dataset=signed),
    )
    out = Path(config.out)
    out.mkdir()
    export_model(out, config, build_objective(config.objective, image_size=16, seed=0))
    write_records(config)
    texts = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert len(texts) == 3
    assert not any(f"pw{number}".encode() in text for text in texts for number in (1, 2, 3, 4))
    with safe_open(out / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()[CONFIG_KEY])
    assert told["validation"]["dataset"] == "https://me:***@host/data?sv=2024&sig=***"
    assert read_weights(out / "model.safetensors").model.image_size == 16


def test_a_full_disk_at_the_export_is_one_line(
    run_file: Callable[..., Path], no_more_than: Callable[[int], None]
) -> None:
    config = load_run(run_file())
    out = Path(config.out)
    out.mkdir()
    objective = build_objective(config.objective, image_size=16, seed=0)
    no_more_than(1000)
    with pytest.raises(OSError, match=r"could not be exported to .*the last checkpoint is whole: make room"):
        export_model(out, config, objective)
    assert list(out.iterdir()) == []
