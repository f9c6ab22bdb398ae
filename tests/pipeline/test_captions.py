"""Captions of one picture: an epoch gives one of them, epochs differ, and whoever goes on reads the same."""

import dataclasses
import io
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from headrace.pipeline import Mixture, Source, open_stream
from headrace.shards.write import Sample, finish_dataset, write_shard

HELD: list[list[str] | None] = [["a", "b", "c"], ["d", "e"], ["f"], None, ["g", "", "h"], ["i", "j", "k", "l"]]
EPOCHS = 12


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six samples with several captions, one and none."""
    folder, sink = tmp_path_factory.mktemp("held"), io.BytesIO()
    Image.new("RGB", (16, 16)).save(sink, "JPEG")
    samples = [
        Sample(f"{number}", sink.getvalue(), "jpg", {"caption": texts[0] if texts else None, "captions": texts})
        for number, texts in enumerate(HELD)
    ]
    write_shard(str(folder), "00000", samples, pa.schema([("captions", pa.list_(pa.string()))]))
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


def mixture_of(url: str, captions: Any, seed: int = 0) -> Mixture:
    source = Source(name="s", url=url, captions=captions, chunk_samples=2)
    return Mixture(sources=(source,), lanes=2, image_size=8, seed=seed, index_cache="none", decode_threads=1)


def read(
    mixture: Mixture, batches: int, state: dict[str, Any] | None = None, **options: Any
) -> tuple[list[tuple[str, str | None]], dict[str, Any]]:
    """Return (key, caption) of every row of so many batches, and the state behind them."""
    with open_stream(mixture, global_batch=6, columns=["caption"], **options) as stream:
        if state is not None:
            stream.load_state_dict(state)
        taken = [next(stream) for _ in range(batches)]
        rows = [pair for batch in taken for pair in zip(batch.key, batch.columns["caption"], strict=True)]
        return rows, stream.state_dict()


def test_epochs_in_a_row_give_another_caption_and_as_many_as_there_are_give_all(held: str) -> None:
    rows, _ = read(mixture_of(held, "rotate"), EPOCHS)
    for number, texts in enumerate(HELD):
        given = [caption for key, caption in rows if key == str(number)]
        wanted = {text for text in texts or () if text} or {None}
        assert len(given) == EPOCHS
        assert all(set(given[start : start + len(wanted)]) == wanted for start in range(EPOCHS - len(wanted)))
    assert read(mixture_of(held, "rotate", seed=1), EPOCHS)[0] != rows


def test_a_stream_that_goes_on_gives_the_same_captions_at_any_world_size(held: str) -> None:
    mixture = mixture_of(held, "rotate")
    whole, _ = read(mixture, EPOCHS)
    _, state = read(mixture, 5)
    assert read(mixture, EPOCHS - 5, state)[0] == whole[30:]
    parts = [read(mixture, EPOCHS, rank=rank, world_size=2)[0] for rank in range(2)]
    assert sorted(map(str, [*parts[0], *parts[1]])) == sorted(map(str, whole))


def test_the_first_is_what_is_given_unless_asked_and_in_a_finite_pass(held: str) -> None:
    first = {(str(number), texts[0] if texts else None) for number, texts in enumerate(HELD)}
    rows, state = read(mixture_of(held, "first"), EPOCHS)
    assert set(rows) == first
    assert set(read(mixture_of(held, "rotate"), 1, once=True)[0]) == first
    plain = Source(name="s", url=held, chunk_samples=2)
    as_before = dataclasses.replace(mixture_of(held, "first"), sources=(plain,))
    assert read(as_before, 1, state)[1]["segments"] == state["segments"]
    assert len(state["segments"][0]["sources"][0]) == 5  # what states were before there was a choice
    with pytest.raises(ValueError, match="captions was 'first', this stream has 'rotate'"):
        read(mixture_of(held, "rotate"), 1, state)


def test_a_source_without_lists_of_captions_is_refused(tmp_path: Any) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sink, "JPEG")
    for name, schema, columns in (("none", [], {}), ("text", [("captions", pa.string())], {"captions": "a"})):
        url = str(tmp_path / name)
        write_shard(url, "00000", [Sample(key, sink.getvalue(), "jpg", columns) for key in "ab"], pa.schema(schema))
        finish_dataset(url, recipe_digest="test")
        with pytest.raises(ValueError, match=r"'s'.*captions.*set `captions: first`"):
            read(mixture_of(url, "rotate"), 1)
