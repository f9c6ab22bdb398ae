"""What no decoder gets to see: bombs, scans without end, halves of files."""

import io

import numpy as np
import pytest
from PIL import Image

from headrace.pipeline.decode.gate import admit
from headrace.pipeline.errors import SampleError


def jpeg(**options: object) -> bytes:
    """A picture of noise, 48 x 32."""
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", **options)
    return sink.getvalue()


def test_a_whole_picture_passes_with_the_orientation_of_the_index() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for data in (jpeg(), jpeg(progressive=True), jpeg(restart_marker_rows=1)):
        header = admit(data, orientation=6, max_pixels=1 << 20)
        assert (header.format, header.width, header.height, header.orientation) == ("jpeg", 48, 32, 6)
    assert admit(jpeg(exif=exif), orientation=0, max_pixels=1 << 20).orientation == 3
    assert admit(jpeg(exif=exif), orientation=1, max_pixels=1 << 20).orientation == 1


def test_a_jpeg_of_hundreds_of_scans_is_refused_at_once() -> None:
    whole = jpeg(progressive=True)
    first = whole.index(b"\xff\xda")
    after = whole.index(b"\xff", first + 14)
    while whole[after + 1] == 0:
        after = whole.index(b"\xff", after + 1)
    data = whole[:first] + whole[first:after] * 800 + whole[after:]
    with pytest.raises(SampleError, match="over 100 scans"):
        admit(data, orientation=1, max_pixels=1 << 20)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}])
def test_half_a_jpeg_with_an_end_marker_is_refused(options: dict[str, object]) -> None:
    whole = jpeg(**options)
    with pytest.raises(SampleError, match="truncated"):
        admit(whole[: len(whole) // 2] + b"\xff\xd9", orientation=1, max_pixels=1 << 20)


def test_a_cut_png_and_a_bomb_are_refused() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (48, 32)).save(sink, "PNG")
    with pytest.raises(SampleError, match="truncated") as caught:
        admit(sink.getvalue()[:-12], orientation=1, max_pixels=1 << 20)
    assert caught.value.reason == "decode"
    with pytest.raises(SampleError, match="48 x 32 pixels are over the cap of 1535"):
        admit(sink.getvalue(), orientation=1, max_pixels=48 * 32 - 1)
