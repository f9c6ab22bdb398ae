"""Promises of `headrace doctor`: it says what is there and what is not."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from headrace.cli import doctor

Run = Callable[..., tuple[int, str]]


def _findings(run: Run, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    code, text = run("doctor", *arguments, "--json")
    return code, {finding["name"]: finding for finding in json.loads(text)}


def test_it_names_versions_decoders_and_the_folder(run: Run, tmp_path: Path) -> None:
    code, found = _findings(run, tmp_path)
    assert code == 0
    assert found["headrace"]["text"].startswith(metadata.version("headrace"))
    assert f"duckdb {metadata.version('duckdb')}" in found["core"]["text"]
    assert [found[name]["verdict"] for name in ("JPEG", "PNG")] == ["ok", "ok"]
    assert str(tmp_path) in found["disk"]["text"]


def test_it_ends_with_numbers_and_the_next_command(run: Run, tmp_path: Path) -> None:
    _, found = _findings(run, tmp_path)
    counts, following = run("doctor", tmp_path)[1].splitlines()[-2:]
    assert counts.startswith(f"{sum(finding['verdict'] == 'ok' for finding in found.values())} ok, ")
    assert following == "next: headrace demo"


def test_it_says_what_decodes_and_resizes_the_stream_and_so_does_the_version(run: Run) -> None:
    from headrace.pipeline.decode import describe_decoding

    _, found = _findings(run)
    decodes, resizes = found["stream's JPEG"], found["stream's resizer"]
    assert decodes["text"].startswith("libjpeg-turbo, the rows" if decodes["verdict"] == "ok" else "simplejpeg, whole")
    assert resizes["text"].startswith("fast_image_resize" if resizes["verdict"] == "ok" else "Pillow")
    shrinks = found["fetch's resizing"]
    assert shrinks["text"].startswith("the C extension" if shrinks["verdict"] == "ok" else "NumPy, slowly")
    code, text = run("--version")
    assert code == 0
    assert text.splitlines()[1] == f"decodes by {describe_decoding()}"


def test_it_and_the_list_of_decoders_say_which_one_auto_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cli.decoders.cuda_device", lambda: "")
    _, found = _findings(run)
    dali = found["stream's DALI"]
    assert dali["verdict"] == "ok"
    assert dali["text"].startswith("DALI ")
    assert dali["text"].endswith("decoder auto is turbo")
    code, text = run("decoders")
    assert code == 0
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["auto", "turbo", "dali"]
    assert lines[0].endswith("Here it is turbo: no CUDA device.")
    monkeypatch.setattr("headrace.cli.decoders.cuda_device", lambda: "cuda:0")
    monkeypatch.setattr("headrace.pipeline.decode.choice.dali_fault", lambda _device: "")
    assert run("decoders")[1].splitlines()[0].endswith("Here it is dali: cuda:0.")


def test_an_absent_extra_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "ray" else version(name))
    code, found = _findings(run)
    assert code == 0
    assert found["ray"]["verdict"] == "absent"
    assert "pip install 'headrace[ray]'" in found["ray"]["text"]


def test_a_core_package_that_is_gone_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "duckdb" else version(name))
    code, found = _findings(run)
    assert code == 1
    assert found["core"]["text"] == "not installed: duckdb; install headrace again"


def test_a_format_that_pillow_was_built_without_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def encoded(name: str) -> bytes:
        raise KeyError(name)

    monkeypatch.setattr(doctor, "_encoded", encoded)
    code, found = _findings(run)
    assert code == 1  # PNG is needed
    assert found["WEBP"]["verdict"] == "warning"


def test_a_folder_that_is_not_there_is_one_line(run: Run, tmp_path: Path) -> None:
    code, text = run("doctor", tmp_path / "nothing")
    assert code == 1
    assert f"{tmp_path / 'nothing'}: no such folder" in text
