"""A decoder of another package works on batches, and gives every view that the mixture names."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import extensions
from headrace.pipeline import Batch, Mixture, Stream, View, open_stream
from headrace.pipeline.decode import DECODERS, decoder_types

TOY = '''
"""A decoder that takes half a batch a call, in one thread, and picks the nearest pixel of each window."""

import threading

import numpy as np

from headrace.extensions import Extension
from headrace.pipeline.errors import SampleError
from headrace.shards.images.decode import decode_rgb

CALLS = []


class Nearest:
    """Nearest neighbour, for tests."""

    items_per_call = 4
    calls_at_once = 1

    def __init__(self, mixture):
        self.seed = mixture.seed

    def empty(self, num_items, sizes):
        return tuple(np.full((num_items, size, size, 3), 77, np.uint8) for size in sizes)

    def decode(self, items, windows_per_view, out):
        CALLS.append((threading.current_thread().name, len(items), self.seed))
        return [self.one(item, windows_per_view, out) for item in items]

    def one(self, item, windows, out):
        try:
            pixels = decode_rgb(item.data, header=item.header)
        except ValueError as error:
            return SampleError("decode", str(error))
        assert pixels.shape[:2][::-1] == item.header.upright_size
        for choose, view in zip(windows, out, strict=True):
            window = choose(item.position, *pixels.shape[:2])
            side = view.shape[1]
            rows = window.top + (np.arange(side) + 0.5) * window.height / side
            columns = window.left + (np.arange(side) + 0.5) * window.width / side
            cut = pixels[rows.astype(int)][:, columns.astype(int)]
            view[item.row] = cut[:, ::-1] if window.flipped else cut
        return None

    def close(self):
        CALLS.append("closed")


class Short(Nearest):
    """Forgets a picture."""

    def decode(self, items, windows_per_view, out):
        return super().decode(items, windows_per_view, out)[1:]


EXTENSION = Extension(decoders={"nearest": Nearest, "short": Short})
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Install the package; its calls are what it did."""
    folder = tmp_path / "site"
    (folder / "toy-1.0.dist-info").mkdir(parents=True)
    (folder / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (folder / "toy-1.0.dist-info" / "entry_points.txt").write_text(f"[{extensions.GROUP}]\ntoy = toy_dec:EXTENSION\n")
    (folder / "toy_dec.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(folder))
    extensions.installed.cache_clear()
    yield decoder_types()["nearest"].__init__.__globals__["CALLS"]  # type: ignore[misc]
    sys.modules.pop("toy_dec", None)
    extensions.installed.cache_clear()


@pytest.fixture
def two_views(mixture: Mixture, toy: list[object]) -> Mixture:
    """The mixture with a second, smaller view, decoded by the toy."""
    assert toy == []
    return dataclasses.replace(mixture, decoder="nearest", views=(View(), View(image_size=8)))


def test_a_decoder_of_a_package_gets_batches_and_gives_two_views(
    two_views: Mixture, mixture: Mixture, toy: list[object]
) -> None:
    with open_stream(two_views, global_batch=8) as stream:
        batches = [next(stream) for _ in range(4)]
    assert toy[-1] == "closed"
    assert {call for call in toy if call != "closed"} == {("headrace-decode_0", 4, 5)}
    with open_stream(dataclasses.replace(mixture, views=two_views.views), global_batch=8) as stream:
        for theirs in batches:
            ours = next(stream)
            assert [view.shape for view in theirs.views] == [(8, 16, 16, 3), (8, 8, 8, 3)]
            assert theirs.views[0] is theirs.images
            # Another filter, the same windows: smooth pictures come out nearly the same.
            for one, two in zip(theirs.views, ours.views, strict=True):
                assert np.abs(one.astype(int) - two.astype(int)).mean() < 12


def test_a_decoder_of_a_package_resumes_exactly(
    two_views: Mixture, check_resumes: Callable[[Callable[[], Stream]], None]
) -> None:
    check_resumes(lambda: open_stream(two_views, global_batch=8), steps=5)  # type: ignore[call-arg]


def test_the_parts_of_a_batch_hold_every_row_once_at_any_world_size(two_views: Mixture) -> None:
    def pixels(world_size: int) -> dict[int, bytes]:
        found = {}
        for rank in range(world_size):
            with open_stream(two_views, global_batch=8, rank=rank, world_size=world_size) as stream:
                for batch in (next(stream) for _ in range(3)):
                    for row, position in enumerate(batch.position.tolist()):
                        found[position] = b"".join(view[row].tobytes() for view in batch.views)
        return found

    assert pixels(1) == pixels(2) == pixels(4)


def test_the_end_of_a_finite_pass_is_black_in_every_view(two_views: Mixture) -> None:
    with open_stream(
        dataclasses.replace(two_views, sources=two_views.sources[1:]), global_batch=8, once=True
    ) as stream:
        last: Batch = list(stream)[-1]
    assert last.valid.tolist() == [True] * 3 + [False] * 5
    for view in last.views:
        assert not view[3:].any()
        assert view[:3].any(axis=(1, 2, 3)).all()


def test_a_decoder_is_part_of_the_state(two_views: Mixture) -> None:
    with open_stream(two_views, global_batch=8) as stream:
        state = stream.state_dict()
    other = dataclasses.replace(two_views, decoder="turbo")
    with (
        open_stream(other, global_batch=8) as stream,
        pytest.raises(ValueError, match="decoder was 'nearest', this stream has 'turbo'"),
    ):
        stream.load_state_dict(state)


def test_a_decoder_that_forgets_a_picture_is_named(two_views: Mixture) -> None:
    short = dataclasses.replace(two_views, decoder="short")
    with (
        open_stream(short, global_batch=8) as stream,
        pytest.raises(ValueError, match="decoder Short gave 3 answers for 4 pictures"),
    ):
        next(stream)


def test_an_unknown_decoder_is_refused_with_the_known_ones(mixture: Mixture, toy: list[object]) -> None:
    assert toy == []
    with pytest.raises(ValueError, match=r"decoder: unknown 'dalli'; did you mean 'dali'\? known: auto, turbo, "):
        dataclasses.replace(mixture, decoder="dalli")
    assert list(DECODERS) == ["turbo", "dali", "none"]
