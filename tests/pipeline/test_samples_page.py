"""The examples of docs/samples.md run as they stand there, over data that has what they name."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from headrace.config import build_config
from headrace.pipeline import Mixture
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.strict_yaml import parse_yaml

PAGE = Path(__file__).parents[2] / "docs" / "samples.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [text for language, text in BLOCKS if language == kind]


@pytest.fixture
def page_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture.yaml in the current folder over 300 labelled, captioned pictures with an embedding."""
    sink = io.BytesIO()
    Image.new("RGB", (40, 32), "red").save(sink, "JPEG")
    picture = sink.getvalue()
    samples = [
        Sample(
            f"{number:03d}",
            picture,
            "jpg",
            {"label": number % 10, "caption": f"picture {number}", "clip_embedding": [0.5, 1.0]},
        )
        for number in range(300)
    ]
    write_shard(str(tmp_path / "data"), "0", samples, pa.schema([("clip_embedding", pa.list_(pa.float16()))]))
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    (tmp_path / "mixture.yaml").write_text(
        f"lanes: 1\nindex_cache: none\nsources:\n  - {{name: s, url: {tmp_path / 'data'}}}\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.full  # open_clip takes 20 s to load on a busy machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("page_mixture")
def test_the_python_of_the_page_runs() -> None:
    pytest.importorskip("open_clip")
    assert len(blocks("python")) == 3
    from headrace.pipeline import open_stream

    names = {"open_stream": open_stream, "np": np}
    for text in blocks("python"):
        exec(compile(text, str(PAGE), "exec"), names)
        if "clip_embedding" in text:
            embeddings = np.array(names["batch"].columns["clip_embedding"], np.float16)  # type: ignore[attr-defined]
            assert embeddings.shape == (256, 2)
    assert names["batch"].columns["tokens"].shape == (256, 77)  # type: ignore[attr-defined]
    with open_stream("mixture.yaml", global_batch=4, map=names["cutout"]) as stream:  # type: ignore[arg-type]
        black = (next(stream).images == 0).all(axis=3).sum(axis=(1, 2))
    assert (black >= 64 * 64).all()
    assert "open_clip" in sys.modules


def test_the_yaml_of_the_page_is_a_mixture() -> None:
    for text in blocks("yaml"):
        data = {"sources": [{"name": "s", "url": "u"}], **parse_yaml(text)}
        build_config(Mixture, data)
