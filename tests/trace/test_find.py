"""Which samples a text names."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from headrace.trace.find import Asked, find_samples
from headrace.trace.sample import open_one


def picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (24, 16), "#336699").save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture
def tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two tars of others, each with the keys 000000000 and 000000001, which look as if they named the first tar."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("000", "001"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in range(2):
                member = tarfile.TarInfo(f"{number:09d}.jpg")
                member.size = len(picture())
                tar.addfile(member, io.BytesIO(picture()))
    return str(tmp_path / "*.tar")


def test_a_key_of_several_tars_of_others_names_a_sample_of_each(tars: str) -> None:
    matches = find_samples(open_one(tars), Asked({"key": ["000000001", "000000002"]}))
    assert [(match.text, match.sample) for match in matches] == [("000000001", 1), ("000000001", 3)]


def test_a_key_that_names_its_shard_is_looked_up_there_alone(
    datasets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_one(datasets["large"])
    looked: list[int] = []
    column: Callable[..., object] = type(opened).column

    def counted(self: object, source: int, shard: int, names: list[str]) -> object:
        looked.append(shard)
        return column(self, source, shard, names)

    monkeypatch.setattr(type(opened), "column", counted)
    (match,) = find_samples(opened, Asked({"key": ["00002000003"]}))
    assert (match.sample, looked) == (2 * 9 + 3, [2])
