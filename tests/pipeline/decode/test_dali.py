"""The samples, windows and faults of `dali` are those of `turbo`; one bad picture costs itself, never the process.

On the CPU here: the pipeline is that of a CUDA device but for one word.
"""

import dataclasses
import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headrace.demo.encode import jpeg_bomb, png_bomb
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import ChooseWindow, planned_views, view_windows
from headrace.pipeline.decode import dali as dali_module
from headrace.pipeline.decode import dali_pipeline
from headrace.pipeline.decode.dali import Dali
from headrace.pipeline.decode.dali_pipeline import DaliPipeline, Feed, dali_fault
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.decode.memory import DeviceMemory
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Augment, Mixture, Source, View

MIXTURE = Mixture(sources=(Source(name="s", url="s"),), image_size=32, decode_threads=2)
THREE_VIEWS = dataclasses.replace(
    MIXTURE, views=(View(), View(count=2, image_size=16, augment=Augment(scale=(0.05, 0.3))))
)

Pixels = NDArray[np.uint8]


def smooth(number: int, size: tuple[int, int] = (130, 90)) -> Pixels:
    noise = np.random.default_rng(number).integers(0, 256, (9, 13, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


def encode(pixels: Pixels, image_format: str = "JPEG", *, mode: str = "RGB", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(sink, image_format, **options)
    return sink.getvalue()


def items_of(files: Sequence[bytes], orientations: Sequence[int] = ()) -> list[Item]:
    """Return those that pass the gate, each in the row of its number."""
    items = []
    for row, data in enumerate(files):
        try:
            header = admit(data, orientation=orientations[row] if orientations else 0, max_pixels=1 << 26)
        except SampleError:
            continue
        items.append(Item(data, header, position=100 + row, row=row))
    return items


def decoded(
    decoder: Turbo | Dali, items: Sequence[Item], mixture: Mixture = MIXTURE, windows: Sequence[ChooseWindow] = ()
) -> tuple[list[Any], list[str]]:
    """Return the views, black where nothing was decoded, and the text of each answer, empty for none."""
    sizes = [view.image_size for view in planned_views(mixture)]
    views = decoder.empty(1 + max(item.row for item in items), sizes)
    for view in views:
        view[:] = 0
    answers = decoder.decode(items, windows or view_windows(mixture), views)
    for item, answer in zip(items, answers, strict=True):
        for view in views:
            view[item.row] = view[item.row] if answer is None else 0
    return list(views), [str(answer or "") for answer in answers]


@pytest.fixture
def dali() -> Iterator[Callable[..., Dali]]:
    """`dali(mixture)`: a decoder that is closed."""
    made = []

    def make(mixture: Mixture = MIXTURE, **options: Any) -> Dali:
        made.append(Dali(mixture, **options))
        return made[-1]

    yield make
    for decoder in made:
        decoder.close()


def decibels(one: Pixels, two: Pixels) -> float:
    error = ((one.astype(np.float64) - two) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-5)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flipped", [False, True])
def test_windows_are_upright_for_every_orientation(dali: Callable[..., Dali], orientation: int, flipped: bool) -> None:
    items = items_of([encode(smooth(0)), encode(smooth(1))], [orientation, 1])
    window = partial(_always, Window(20, 30, 40, 50, flipped))
    (theirs,), answers = decoded(Turbo(MIXTURE), items, windows=[window])
    (ours,), said = decoded(dali(), items, windows=[window])
    assert answers == said == ["", ""]
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def _always(window: Window, _position: int, _height: int, _width: int) -> Window:
    return window


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(
    "augment",
    [Augment(crop="pad", pad_value=90), Augment(crop="pad", interpolation="bicubic"), Augment(interpolation="bicubic")],
)
def test_padding_and_the_cubic_are_those_of_turbo(
    dali: Callable[..., Dali], augment: Augment, orientation: int
) -> None:
    mixture = dataclasses.replace(MIXTURE, augment=augment, image_size=33)
    items = items_of([encode(smooth(n, (90 + 9 * n, 131 - 5 * n)), quality=95) for n in range(12)], [orientation] * 12)
    (theirs,), _ = decoded(Turbo(mixture), items, mixture)
    (ours,), answers = decoded(dali(mixture), items, mixture)
    assert not any(answers)
    assert min(decibels(one, two) for one, two in zip(ours, theirs, strict=True)) > 42


def test_several_views_are_cut_from_one_picture(dali: Callable[..., Dali]) -> None:
    items = items_of([encode(smooth(n, (150 + n, 200 - n))) for n in range(20)], [n % 8 + 1 for n in range(20)])
    theirs, _ = decoded(Turbo(THREE_VIEWS), items, THREE_VIEWS)
    ours, answers = decoded(dali(THREE_VIEWS), items, THREE_VIEWS)
    assert not any(answers)
    for one, two in zip(ours, theirs, strict=True):
        assert one.shape == two.shape
        assert decibels(one, two) > 45


def test_a_square_does_not_depend_on_who_is_decoded_with_it(
    dali: Callable[..., Dali], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_of([encode(smooth(n)) for n in range(12)])
    (together,), _ = decoded(dali(), items)
    monkeypatch.setattr(dali_module, "MOST_RUN_PIXELS", 2 * 130 * 90)
    (in_parts,), _ = decoded(dali(dataclasses.replace(MIXTURE, decode_threads=1)), items[::-1])
    assert (together == in_parts).all()


def test_formats_that_are_not_plain_jpegs_are_those_of_turbo(
    dali: Callable[..., Dali], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = smooth(3)
    grey16 = np.arange(90 * 130, dtype=np.uint16).reshape(90, 130)
    files = [
        encode(pixels, "PNG"),
        encode(pixels, "WEBP"),
        encode(pixels, "GIF"),
        encode(grey16, "PNG", mode="I;16"),  # type: ignore[arg-type]
        encode(pixels, mode="CMYK"),
        encode(pixels, progressive=True),
        encode(pixels, keep_rgb=True),
        encode(smooth(4, (9, 11))),
    ]
    items = items_of(files)
    assert len(items) == len(files)
    monkeypatch.setattr(DaliPipeline, "run", None)
    (theirs,), _ = decoded(Turbo(MIXTURE), items)
    (ours,), answers = decoded(dali(), items)
    assert not any(answers)
    assert (ours == theirs).all()


@pytest.mark.parametrize(("large_pixels", "at_once"), [(130 * 90 - 1, [1]), (130 * 90, [2])])
def test_large_pictures_are_decoded_one_at_a_time_beside_dali(
    dali: Callable[..., Dali], monkeypatch: pytest.MonkeyPatch, large_pixels: int, at_once: list[int]
) -> None:
    lock, inside, most, together = threading.Lock(), 0, 0, threading.Event()
    genuine = Turbo.decode

    def watched(self: Turbo, *arguments: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if most > 1:
                together.set()
        together.wait(0.02 if at_once == [1] else 200)
        answers = genuine(self, *arguments)
        with lock:
            inside -= 1
        return answers

    monkeypatch.setattr(Turbo, "decode", watched)
    monkeypatch.setattr("headrace.pipeline.decode.decoder.LARGE_PIXELS", large_pixels)
    _, answers = decoded(dali(), items_of([encode(smooth(n), "PNG") for n in range(6)]))
    assert not any(answers)
    assert most in at_once


def test_grey_jpegs_and_every_sampling_go_through_dali(dali: Callable[..., Dali]) -> None:
    files = [encode(smooth(n), subsampling=n) for n in range(3)] + [encode(smooth(3), mode="L")]
    (theirs,), _ = decoded(Turbo(MIXTURE), items_of(files))
    (ours,), answers = decoded(dali(), items_of(files))
    assert not any(answers)
    assert decibels(ours, theirs) > 45


def test_a_window_outside_its_picture_is_refused_before_dali_sees_it(dali: Callable[..., Dali]) -> None:
    items = items_of([encode(smooth(0))])
    decoder = dali()
    for window in (Window(-1, 0, 5, 5, False), Window(60, 0, 31, 5, False), Window(0, 100, 5, 31, True)):
        with pytest.raises(ValueError, match=r"position 100: the window .* is not within the picture of 130 x 90"):
            decoded(decoder, items, windows=[partial(_always, window)])
    assert decoded(decoder, items)[1] == [""]


# -- what is damaged -------------------------------------------------------------------------------------------------


def _spoilt(whole: bytes) -> dict[str, bytes]:
    """Return every class of damaged bytes that the demo's web serves, and those that only a decoder sees."""
    scan = whole.index(b"\xff\xda")
    half = (scan + len(whole)) // 2
    huffman = whole.index(b"\xff\xc4") + 5
    return {
        "html": b"<!doctype html><html></html>" * 40,
        "empty": b"",
        "cut at 0.7": whole[: int(0.7 * len(whole))],
        "cut at 0.95": whole[: int(0.95 * len(whole))],
        "cut, with an end": whole[:half] + b"\xff\xd9",
        "zeros to the end": whole[:half] + bytes(len(whole) - half - 2) + b"\xff\xd9",
        "flipped bits": whole[:half] + bytes(byte ^ 0x55 for byte in whole[half : half + 30]) + whole[half + 30 :],
        "no such Huffman table": whole[:huffman] + b"\xff" * 16 + whole[huffman + 16 :],
        "png cut": encode(smooth(5), "PNG")[:2000],
        "webp cut": encode(smooth(5), "WEBP")[:600],
        "png bomb": png_bomb(60_000, 60_000),
        "jpeg bomb": jpeg_bomb(smooth(5), 65_000, 65_000),
    }


def test_every_class_of_fault_is_answered_as_turbo_does_and_costs_itself(dali: Callable[..., Dali]) -> None:
    good = [encode(smooth(n), quality=92) for n in range(6)]
    spoilt = _spoilt(encode(smooth(9), quality=92))
    decoder = dali()
    (alone,), _ = decoded(decoder, items_of(good))
    for name, data in spoilt.items():
        items = items_of([*good, data])
        (theirs,), theirs_said = decoded(Turbo(MIXTURE), items)
        (ours,), said = decoded(decoder, items)
        assert said == theirs_said, name
        assert (ours[:6] == alone).all(), name
        assert decibels(ours, theirs) > 45, name


def test_a_jpeg_whose_data_end_early_is_judged_as_turbo_judges_it(dali: Callable[..., Dali]) -> None:
    files = []
    for number in range(40):
        size = (100 + 7 * number % 60, 90 + 5 * number % 50)
        whole = encode(smooth(number, size), quality=95, subsampling=2 * (number % 2))
        scan = whole.index(b"\xff\xda") + 14
        cut = scan + (len(whole) - scan) * (number % 20) // 20
        files.append(whole[:cut] + b"\xff\xd9")
    items = items_of(files)
    _, theirs = decoded(Turbo(MIXTURE), items)
    _, ours = decoded(dali(), items)
    assert ours == theirs
    assert 10 < sum(map(bool, ours)) < 40  # of some the window ends above what is missing


def test_a_thousand_faults_cost_a_thousand_samples(dali: Callable[..., Dali]) -> None:
    rng = np.random.default_rng(0)
    good = [encode(smooth(n)) for n in range(8)]
    decoder, turbo, num_faults = dali(), Turbo(MIXTURE), 0
    spoilt = [list(_spoilt(whole).values()) for whole in good]
    while num_faults < 1000:
        files = []
        for _ in range(128):
            number = int(rng.integers(len(good)))
            is_fault = rng.random() < 0.3
            files.append(spoilt[number][int(rng.integers(len(spoilt[number])))] if is_fault else good[number])
            num_faults += is_fault
        items = items_of(files)
        (theirs,), theirs_said = decoded(turbo, items)
        (ours,), said = decoded(decoder, items)
        assert said == theirs_said
        assert decibels(ours, theirs) > 45


@pytest.mark.parametrize(
    "said", ["something\nelse", "Error, encountered:\n\nFailed to decode sample #{} : \nCurrent pipeline"]
)
def test_pictures_that_only_dali_refuses_are_delivered_by_turbo(
    dali: Callable[..., Dali], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str
) -> None:
    files = [encode(smooth(n)) for n in range(9)]
    run, num_runs = DaliPipeline.run, 0

    def refuse(self: DaliPipeline, feed: Feed) -> Any:
        nonlocal num_runs
        num_runs += 1
        for place, jpeg in enumerate(feed.jpegs):
            if jpeg.tobytes() in (files[4], files[7]):
                raise RuntimeError(said.format(place))
        return run(self, feed)

    decoder = dali()
    (alone,), _ = decoded(decoder, items_of(files))
    (theirs,), _ = decoded(Turbo(MIXTURE), items_of(files))
    monkeypatch.setattr(DaliPipeline, "run", refuse)
    with caplog.at_level("INFO"):
        (ours,), answers = decoded(decoder, items_of(files))
    assert not any(answers)
    assert (ours[[4, 7]] == theirs[[4, 7]]).all()
    assert (np.delete(ours, [4, 7], axis=0) == np.delete(alone, [4, 7], axis=0)).all()
    assert num_runs == (4 if "#" in said else 12)
    (record,) = caplog.records
    told = "Failed to decode sample #4 :" if "#" in said else "something else"
    assert record.getMessage() == f"DALI refused a run of pictures, so they are judged one by one: {told}"


def test_two_pictures_that_dali_refuses_are_no_broken_device(
    dali: Callable[..., Dali], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: DaliPipeline, feed: Feed) -> Any:
        raise RuntimeError(f"encountered:\nFailed to decode sample #{len(feed) - 1} : \nCurrent pipeline")

    decoder, items = dali(), items_of([encode(smooth(n)) for n in range(17)])
    (theirs,), _ = decoded(Turbo(MIXTURE), items)
    monkeypatch.setattr(DaliPipeline, "run", refuse)
    (ours,), answers = decoded(decoder, items[:2])
    assert not any(answers)
    assert (ours == theirs[:2]).all()
    with pytest.raises(RuntimeError, match="decoder dali decodes nothing on cpu any more: Failed to decode sample #0"):
        decoded(decoder, items)


def test_flat_pictures_in_a_refused_run_are_no_broken_device(dali: Callable[..., Dali]) -> None:
    grey = encode(np.full((90, 130, 3), 128, np.uint8))
    whole = encode(smooth(1))
    huffman = whole.index(b"\xff\xc4") + 5
    items = items_of([grey, grey, whole[:huffman] + b"\xff" * 16 + whole[huffman + 16 :]])
    (ours,), said = decoded(dali(), items)
    assert [bool(text) for text in said] == [False, False, True]
    assert (ours[:2] == 128).all()


def test_a_device_that_decodes_nothing_any_more_stops_the_run(
    dali: Callable[..., Dali], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = dali()

    def broken(_self: DaliPipeline, _feed: Feed) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(DaliPipeline, "run", broken)
    with pytest.raises(RuntimeError, match="decoder dali decodes nothing on cpu any more: the device is gone"):
        decoded(decoder, items_of([encode(smooth(n)) for n in range(4)]))


# -- where the squares lie, and where there is no DALI ---------------------------------------------------------------


def test_the_memory_of_a_device_holds_the_same_squares(dali: Callable[..., Dali]) -> None:
    torch = pytest.importorskip("torch")
    files = [encode(smooth(n)) for n in range(5)] + [
        encode(smooth(5), "PNG"),
        _spoilt(encode(smooth(6)))["cut, with an end"],
    ]
    items = items_of(files, [1, 6, 1, 5, 1, 1, 1])[::-1]
    ours, said = decoded(dali(THREE_VIEWS), items, THREE_VIEWS)
    tensors, also_said = decoded(dali(THREE_VIEWS, memory=DeviceMemory("cpu")), items, THREE_VIEWS)
    assert said == also_said
    for one, two in zip(ours, tensors, strict=True):
        assert isinstance(two, torch.Tensor)
        assert (two.numpy() == one).all()


def test_without_dali_the_fault_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    dali_fault.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(
        ValueError, match=r"decoder: dali is not installed .*; pip install 'headrace\[dali\]'"
    ) as caught:
        Dali(MIXTURE)
    assert "\n" not in str(caught.value)
    dali_fault.cache_clear()


def test_a_dali_that_does_not_decode_is_a_fault_and_not_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(_self: DaliPipeline, _settings: object) -> None:
        raise RuntimeError("CUDA driver version is insufficient")

    dali_fault.cache_clear()
    monkeypatch.setattr(dali_pipeline.DaliPipeline, "__init__", no_driver)
    assert dali_fault("cuda:0") == "does not work on cuda:0: CUDA driver version is insufficient"
    dali_fault.cache_clear()
