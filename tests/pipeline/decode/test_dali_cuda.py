"""On a CUDA device: the samples are those of the CPU, the squares near them, and a delivered batch is complete."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headrace.pipeline import Mixture, View, open_stream
from headrace.pipeline.augment.views import planned_views, view_windows
from headrace.pipeline.decode.dali import Dali
from headrace.pipeline.decode.dali_pipeline import DaliPipeline, Feed, dali_fault
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.mixture import Source


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not _has_cuda(), reason="needs a CUDA device")]

MIXTURE = Mixture(
    sources=(Source(name="s", url="s"),), image_size=64, views=(View(), View(image_size=32)), decode_threads=4
)


def smooth(number: int, size: tuple[int, int] = (260, 180)) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).integers(0, 256, (9, 13, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


def encode(pixels: NDArray[np.uint8], image_format: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, image_format, **options)
    return sink.getvalue()


def decibels(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    error = ((one.astype(np.float64) - two) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-5)))


def _items(files: list[bytes]) -> list[Item]:
    return [
        Item(data, admit(data, orientation=row % 8 + 1, max_pixels=1 << 26), position=row, row=row)
        for row, data in enumerate(files)
    ]


def _decoded(decoder: Turbo | Dali, items: list[Item]) -> tuple[list[NDArray[np.uint8]], list[str]]:
    views = decoder.empty(len(items), [view.image_size for view in planned_views(MIXTURE)])
    answers = decoder.decode(items, view_windows(MIXTURE), views)
    on_host = [view if isinstance(view, np.ndarray) else view.cpu().numpy() for view in views]
    return on_host, [str(answer or "") for answer in answers]


@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
def test_squares_of_a_device_are_those_of_turbo(hw_decoder_load: float) -> None:
    assert dali_fault("cuda:0") == ""
    files = [encode(smooth(n), quality=90, subsampling=n % 3) for n in range(40)]
    files += [encode(smooth(41), "PNG"), encode(smooth(42), progressive=True), encode(smooth(43), keep_rgb=True)]
    items = _items(files)
    theirs, _ = _decoded(Turbo(MIXTURE), items)
    decoder = Dali.for_device(dataclasses.replace(MIXTURE, hw_decoder_load=hw_decoder_load), "cuda:0")
    ours, answers = _decoded(decoder, items)
    decoder.close()
    assert not any(answers)
    for one, two in zip(ours, theirs, strict=True):
        found = [decibels(a, b) for a, b in zip(one, two, strict=True)]
        assert np.mean(found) > 40
        assert min(found) > 30


@pytest.mark.parametrize("hw_decoder_load", [0.0, 1.0])
def test_a_corrupt_picture_costs_itself_on_a_device(hw_decoder_load: float) -> None:
    good = [encode(smooth(n), quality=92) for n in range(16)]
    spoilt = [good[3][:-500], good[5][: len(good[5]) // 2]]
    decoder = Dali.for_device(dataclasses.replace(MIXTURE, hw_decoder_load=hw_decoder_load), "cuda:0")
    alone, _ = _decoded(decoder, _items(good))
    _, theirs_said = _decoded(Turbo(MIXTURE), _items(good + spoilt))
    for _ in range(3):
        ours, said = _decoded(decoder, _items(good + spoilt))
        assert said == theirs_said
        for view, (one, two) in enumerate(zip(ours, alone, strict=True)):
            unlike = {row: int(np.abs(one[row].astype(int) - two[row]).max()) for row in range(16)}
            assert not any(unlike.values()), f"view {view}, levels by row: {unlike}"
    decoder.close()


def test_what_a_device_refuses_is_delivered_and_the_others_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encode(smooth(n)) for n in range(8)]
    run, refusals = DaliPipeline.run, 0

    def refuse(self: DaliPipeline, feed: Feed) -> Any:
        nonlocal refusals
        if any(jpeg.tobytes() == files[4] for jpeg in feed.jpegs):
            refusals += 1
            raise RuntimeError("cannot read this one")
        return run(self, feed)

    decoder = Dali.for_device(MIXTURE, "cuda:0")
    (alone, _), _ = _decoded(decoder, _items(files))
    (theirs, _), _ = _decoded(Turbo(MIXTURE), _items(files))
    monkeypatch.setattr(DaliPipeline, "run", refuse)
    (ours, _), answers = _decoded(decoder, _items(files))
    decoder.close()
    assert not any(answers)
    assert refusals >= 4
    assert (ours[4] == theirs[4]).all()
    assert (np.delete(ours, 4, axis=0) == np.delete(alone, 4, axis=0)).all()


def test_a_stream_on_a_device_gives_tensors_of_the_samples_of_the_cpu(mixture: Mixture) -> None:
    import torch

    with (
        open_stream(mixture, global_batch=8) as host,
        open_stream(mixture, global_batch=8, device="cuda") as stream,
    ):
        assert (host.decoder, stream.decoder, stream.device) == ("turbo", "dali", "cuda:0")
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(12):
            theirs, ours = next(host), next(stream)
            for _ in range(4):
                busy = busy @ busy * 1e-3  # the consumer's kernels are late: memory must not be given away under them
            kept = ours.images.clone()
            assert ours.images.is_cuda
            assert ours.images.dtype == torch.uint8
            assert ours.key == theirs.key
            del ours
            assert decibels(kept.cpu().numpy(), theirs.images) > 35


def test_the_end_of_a_finite_pass_is_black_on_a_device(mixture: Mixture) -> None:
    dali = dataclasses.replace(mixture, decoder="dali", sources=mixture.sources[1:])
    with open_stream(dali, global_batch=8, once=True, device="cuda") as stream:
        last = list(stream)[-1]
    assert last.valid.tolist() == [True] * 3 + [False] * 5
    assert not last.images[3:].any()
    assert last.images[:3].any()


def test_turbo_on_a_device_writes_into_pinned_memory(mixture: Mixture) -> None:
    import torch

    turbo = dataclasses.replace(mixture, decoder="turbo")
    with open_stream(turbo, global_batch=8) as host, open_stream(turbo, global_batch=8, device="cuda") as stream:
        for _ in range(3):
            theirs, ours = next(host), next(stream)
            assert isinstance(ours.images, np.ndarray)
            assert torch.from_numpy(ours.images).is_pinned()
            assert (ours.images == theirs.images).all()


def test_dali_on_a_device_resumes_with_the_same_pixels(mixture: Mixture) -> None:
    dali = dataclasses.replace(mixture, decoder="dali", hw_decoder_load=0.0)
    with open_stream(dali, global_batch=8, device="cuda") as stream:
        next(stream)
        state = stream.state_dict()
        rest = [(batch.key, batch.images.cpu().numpy()) for batch in (next(stream) for _ in range(3))]
    with open_stream(dali, global_batch=8, device="cuda") as stream:
        stream.load_state_dict(state)
        for key, images in rest:
            batch = next(stream)
            assert batch.key == key
            assert (batch.images.cpu().numpy() == images).all()
