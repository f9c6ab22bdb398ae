"""Promises of what other packages add: found by entry point, named, never a replacement."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import extensions


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package `toy` with an entry point `toy_headrace:EXTENSION`; the test writes the module."""
    (tmp_path / "toy-1.0.dist-info").mkdir()
    (tmp_path / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    points = f"[{extensions.GROUP}]\ntoy = toy_headrace:EXTENSION\n"
    (tmp_path / "toy-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    extensions.installed.cache_clear()
    yield tmp_path / "toy_headrace.py"
    sys.modules.pop("toy_headrace", None)
    extensions.installed.cache_clear()


def test_an_installed_extension_adds_to_a_table(package: Path) -> None:
    package.write_text("from headrace.extensions import Extension\nEXTENSION = Extension(steps={'mine': int})\n")
    assert extensions.with_extensions("steps", {"rule": str}) == {"rule": str, "mine": int}
    assert extensions.with_extensions("annotators", {"image": str}) == {"image": str}


def test_a_name_that_exists_is_refused(package: Path) -> None:
    package.write_text("from headrace.extensions import Extension\nEXTENSION = Extension(steps={'rule': int})\n")
    with pytest.raises(ValueError, match="extension 'toy' adds 'rule' to steps, which exists already"):
        extensions.with_extensions("steps", {"rule": str})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("EXTENSION = {}", "is a dict; it must be a headrace.extensions.Extension"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("{}['x']", "KeyError: 'x'"),
        ("raise OSError('two\\nlines')", "OSError: two lines"),
    ],
)
def test_an_extension_that_cannot_be_loaded_is_named(package: Path, text: str, why: str) -> None:
    package.write_text(text)
    with pytest.raises(ValueError, match=rf"extension 'toy' \(toy_headrace:EXTENSION\) .*{why}$"):
        extensions.with_extensions("steps", {})
