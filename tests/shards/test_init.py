"""Promises of the names that other programs import from the ground floor."""

import subprocess
import sys

import pytest

import headrace.shards


def test_every_public_name_is_there() -> None:
    for name in headrace.shards.__all__:
        assert getattr(headrace.shards, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = headrace.shards.nothing


def test_importing_the_floor_imports_nothing_heavy() -> None:
    program = "import sys, headrace.shards; print(sorted({'numpy', 'pyarrow', 'PIL', 'fsspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_of_0_1_find_the_decoder_under_its_old_names() -> None:
    from headrace.shards import image, image_header
    from headrace.shards.images import decode, header

    assert image.decode_rgb is decode.decode_rgb
    assert image_header.read_header is header.read_header
