"""The stream of `dali` is that of `turbo`: samples, replacements, crops, at every world size and after every resume."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headrace.demo.encode import jpeg_bomb, png_bomb
from headrace.pipeline import Augment, Mixture, Source, Stream, View, open_stream
from headrace.pipeline.augment.views import view_windows
from headrace.pipeline.decode.dali import Dali
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.decode.turbo import Turbo


def smooth(number: int, size: tuple[int, int] = (130, 90)) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).integers(0, 256, (9, 13, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


def encode(pixels: NDArray[np.uint8], image_format: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, image_format, **options)
    return sink.getvalue()


def decibels(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    error = ((one.astype(np.float64) - two) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-5)))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tar of 400 samples, one in fifty of which is one of the faults of the web, or what only a decoder sees."""
    folder = tmp_path_factory.mktemp("damaged")
    with tarfile.open(folder / "photographs.tar", "w") as archive:
        for number in range(400):
            whole = encode(smooth(number % 40, (90 + number % 40, 70 + number % 30)), quality=92)
            data = _faults(whole)[number // 50] if number % 50 == 7 else whole
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(folder / "photographs.tar")


def _faults(whole: bytes) -> list[bytes]:
    return [
        b"<html>not here</html>" * 20,
        whole[: int(0.7 * len(whole))],
        whole[: int(0.95 * len(whole))],
        encode(smooth(1), "PNG")[:3000],
        encode(smooth(1), "WEBP")[:700],
        png_bomb(60_000, 60_000),
        jpeg_bomb(smooth(1), 65_000, 65_000),
        whole[: len(whole) // 2] + b"\xff\xd9",
    ]


@pytest.fixture
def mixture_of(damaged: str) -> Callable[..., Mixture]:
    """`mixture_of(decoder)`: the damaged tar, two views."""

    kept = str(Path(damaged).parent / "index")
    source = Source(name="s", url=damaged, index_dir=kept, index_fast=True, chunk_samples=8, shuffle_window=64)

    def make(decoder: str, **keys: Any) -> Mixture:
        return Mixture(
            seed=3,
            lanes=4,
            image_size=32,
            sources=(source,),
            views=(View(), View(image_size=16, augment=Augment(scale=(0.1, 0.4)))),
            decoder=decoder,
            max_bad_fraction=0.2,
            decode_threads=2,
            io_threads=2,
            index_cache="none",
            **keys,
        )

    return make


def test_damaged_samples_are_replaced_by_the_same_ones_as_with_turbo(
    mixture_of: Callable[..., Mixture], tmp_path: Path
) -> None:
    given = {}
    for decoder in ("turbo", "dali"):
        quarantine = tmp_path / f"{decoder}.jsonl"
        with open_stream(mixture_of(decoder, quarantine=str(quarantine)), global_batch=64) as stream:
            batches = [next(stream) for _ in range(15)]
            given[decoder] = batches, stream.bad_samples, quarantine.read_text()
    (theirs, their_count, their_file), (ours, our_count, our_file) = given["turbo"], given["dali"]
    assert our_count == their_count
    assert sum(our_count.values()) > 10
    assert our_file == their_file
    for one, two in zip(ours, theirs, strict=True):
        assert one.key == two.key
        assert one.num_replaced == two.num_replaced
        for our_view, their_view in zip(one.views, two.views, strict=True):
            assert decibels(our_view, their_view) > 45


def test_a_finite_pass_gives_black_rows_where_turbo_does(mixture_of: Callable[..., Mixture]) -> None:
    valid = {}
    for decoder in ("turbo", "dali"):
        with open_stream(mixture_of(decoder), global_batch=48, once=True) as stream:
            batches = list(stream)
        assert not any(view[~batch.valid].any() for batch in batches for view in batch.views)
        valid[decoder] = [batch.valid.tolist() for batch in batches]
    assert valid["dali"] == valid["turbo"]
    assert sum(map(sum, valid["dali"])) < 400


def test_dali_resumes_exactly(
    mixture_of: Callable[..., Mixture], check_resumes: Callable[[Callable[[], Stream]], None]
) -> None:
    check_resumes(lambda: open_stream(mixture_of("dali"), global_batch=32), steps=4)  # type: ignore[call-arg]


def test_the_squares_are_the_same_at_every_world_size(mixture_of: Callable[..., Mixture]) -> None:
    def squares(world_size: int) -> dict[int, bytes]:
        found = {}
        for rank in range(world_size):
            with open_stream(mixture_of("dali"), global_batch=32, rank=rank, world_size=world_size) as stream:
                for batch in (next(stream) for _ in range(4)):
                    for row, position in enumerate(batch.position.tolist()):
                        found[position] = b"".join(view[row].tobytes() for view in batch.views)
        return found

    assert squares(1) == squares(2) == squares(4)


def test_no_thread_is_left_when_the_stream_is_closed(mixture_of: Callable[..., Mixture]) -> None:
    import threading

    with open_stream(mixture_of("dali"), global_batch=32) as stream:
        next(stream)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-")]


@pytest.mark.parametrize("name", ["imagenet-sample", "flickr8k-sample"])
def test_crops_of_photographs_are_those_of_turbo_over_fifty_decibels(shared_data: Path, name: str) -> None:
    files = []
    with tarfile.open(shared_data / f"{name}.tar") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith((".jpg", ".JPEG")) else None
            if file is not None and len(files) < 96:
                files.append(file.read())
    mixture = Mixture(sources=(Source(name="s", url="s"),))
    items = [
        Item(data, admit(data, orientation=0, max_pixels=1 << 26), position=row, row=row)
        for row, data in enumerate(files)
    ]
    squares = []
    for decoder in (Turbo(mixture), Dali(mixture)):
        (out,) = decoder.empty(len(items), [224])
        assert decoder.decode(items, view_windows(mixture), [out]) == [None] * len(items)
        squares.append(out)
        decoder.close()
    found = [decibels(one, two) for one, two in zip(*squares, strict=True)]
    assert np.mean(found) > 55
    assert min(found) > 50
