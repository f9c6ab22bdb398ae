"""What a step gave: of a sample with several captions the one that the stream took, and whose they all are."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from PIL import Image

from headrace.config import config_to_dict
from headrace.pipeline import Mixture, Source, open_stream
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.trace.find import Asked, find_samples
from headrace.trace.history import open_history
from headrace.trace.lookup import open_sources
from headrace.trace.replaced import read_replacements
from headrace.trace.step import trace_step

LISTS = pa.list_(pa.string())


@pytest.fixture
def held(tmp_path: Path) -> str:
    """Six samples with three captions each, of the rows a0, b0 and c0 and so on."""
    sink, url = io.BytesIO(), str(tmp_path / "held")
    Image.new("RGB", (16, 16)).save(sink, "JPEG")
    samples = []
    for number in range(6):
        rows = [f"{letter}{number}" for letter in "abc"]
        columns = {"caption": rows[0], "uid": rows[0], "captions": rows, "captions_of": rows}
        samples.append(Sample(f"{number}", sink.getvalue(), "jpg", columns))
    write_shard(url, "00000", samples, pa.schema([("captions", LISTS), ("captions_of", LISTS)]))
    finish_dataset(url, recipe_digest="test")
    return url


def test_a_traced_step_tells_the_captions_that_its_batch_had(held: str, tmp_path: Path) -> None:
    source = Source(name="s", url=held, captions="rotate", chunk_samples=2)
    mixture = Mixture(sources=(source,), lanes=2, image_size=8, index_cache="none", decode_threads=1)
    with open_stream(mixture, global_batch=6, columns=["caption"]) as stream:
        batches = [next(stream) for _ in range(3)]
    place = tmp_path / "mixture.yaml"
    place.write_text(yaml.safe_dump(config_to_dict(mixture)))
    opened = open_sources(open_history(str(place), global_batch=6))
    for step, batch in enumerate(batches):
        traced = trace_step(opened, read_replacements(opened), range(6 * step, 6 * step + 6), pictures=0)
        assert [sample.caption for sample in traced.samples] == batch.columns["caption"]


def test_a_uid_names_the_samples_that_hold_its_caption(held: str, tmp_path: Path) -> None:
    place = tmp_path / "mixture.yaml"
    place.write_text(yaml.safe_dump({"sources": [{"name": "s", "url": held}], "lanes": 2}))
    opened = open_sources(open_history(str(place), global_batch=6))
    found = find_samples(opened, Asked({"uid": ["a1", "c4", "d9"]}))
    assert sorted((match.text, match.sample) for match in found) == [("a1", 1), ("c4", 4)]
