"""One table of formats: what reads, what writes and what names are about the same ones."""

import pytest

from headrace.shards.images import header, pillow
from headrace.shards.images.formats import EXTENSIONS, FORMATS, IMAGE_EXTENSIONS, names_image


def test_every_format_has_a_reader_a_plugin_and_an_extension() -> None:
    assert set(FORMATS) == set(header._READERS) == set(pillow.PLUGINS) == set(EXTENSIONS)


def test_an_extension_belongs_to_one_format() -> None:
    assert len(set(IMAGE_EXTENSIONS)) == len(IMAGE_EXTENSIONS)
    assert all(extension == extension.lower() for extension in IMAGE_EXTENSIONS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JPG", True),
        ("a.b.tiff", True),
        ("d.jpg/a.txt", False),
        ("jpg", False),
        ("a.jpg.txt", False),
        ("", False),
        ("a/._b.jpg", False),
        (".jpg", False),
    ],
)
def test_names_of_images(name: str, expected: bool) -> None:
    assert names_image(name) is expected
