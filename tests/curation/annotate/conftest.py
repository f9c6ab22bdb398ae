"""Drawn pictures, batches made of them, and a small job whose fetch is done."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from headrace.curation.annotate.annotator import AnnotationBatch
from headrace.curation.annotate.config import annotate_config
from headrace.curation.annotate.decode import decode
from headrace.curation.build.config import BuildConfig
from headrace.curation.fetch.config import InputConfig
from headrace.curation.job import Job
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.recipe import Recipe
from headrace.shards.commit import commit, committed
from headrace.shards.tar import ShardWriter
from headrace.shards.units import EngineConfig

Pixels = NDArray[np.uint8]


def draw_scene(seed: int, width: int = 320, height: int = 240) -> Pixels:
    """Return overlapping coloured shapes on a shaded background, with fine texture."""
    rng = np.random.default_rng([seed, 77])
    ramp = np.linspace(0, 90, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    image = Image.fromarray((rng.integers(0, 100, 3) + ramp).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(width // 10, width // 2), rng.integers(height // 10, height // 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((int(x - w), int(y - h), int(x + w // 2), int(y + h // 2)), fill=colour)
    texture = rng.integers(-8, 9, (height, width, 1))
    return np.asarray(np.asarray(image) + texture).clip(0, 255).astype(np.uint8)


def encode_image(pixels: Pixels, image_format: str = "JPEG", **options: object) -> bytes:
    """Return the file of an image."""
    output = io.BytesIO()
    Image.fromarray(pixels).save(output, image_format, **options)
    return output.getvalue()


@pytest.fixture
def scene() -> Callable[..., Pixels]:
    """Return `draw_scene`."""
    return draw_scene


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Return `encode_image`."""
    return encode_image


@pytest.fixture
def batch_of() -> Callable[..., AnnotationBatch]:
    """Return a function that makes a batch of pixels (None: does not decode) and captions."""

    def make(images: Sequence[Pixels | None], captions: Sequence[str | None] | None = None) -> AnnotationBatch:
        decoded = [None if pixels is None else decode(encode_image(pixels, "PNG")) for pixels in images]
        return AnnotationBatch(
            keys=[f"{number:09d}" for number in range(len(images))],
            captions=list(captions) if captions is not None else [None] * len(images),
            data=[None if pixels is None else encode_image(pixels, "PNG") for pixels in images],
            sha256=["0" * 64] * len(images),
            headers=[item and item.header for item in decoded],
            images=list(images),
            errors=[None if item else "damaged: test" for item in decoded],
        )

    return make


@pytest.fixture(scope="session")
def picture_files() -> dict[str, bytes]:
    """The same small picture in each format."""
    pixels = draw_scene(9, 40, 30)
    return {name: encode_image(pixels, name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


ROWS_PER_SHARD = 10


def row_data(number: int) -> bytes | None:
    """Return the bytes of one input row; None where the fetch failed. Rows 3, 4 and 5 of each shard do not decode."""
    place = number % ROWS_PER_SHARD
    if place == 2:
        return None
    data = encode_image(draw_scene(number, 96 + 8 * place, 80), "PNG" if place == 6 else "JPEG")
    bomb = encode_image(draw_scene(number), "PNG")
    bad = {3: data[:-40], 4: b"<html>not found</html>", 5: bomb[:16] + (60000).to_bytes(4, "big") * 2 + bomb[24:]}
    return bad.get(place, data)


def write_raw(job: Job, shard: int) -> None:
    """Write one raw shard as fetch does."""
    folder = Path(job.raw)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with ShardWriter(folder / f"{shard:05d}.tar") as writer:
        for place in range(ROWS_PER_SHARD):
            number = shard * ROWS_PER_SHARD + place
            data, key = row_data(number), f"{shard:05d}{place:04d}"
            if data is not None:
                writer.write(key, {"png" if place == 6 else "jpg": data, "txt": b"x"})
            row: dict[str, Any] = dict.fromkeys(OWN_SCHEMA.names)
            row |= {
                "key": key,
                "uid": hashlib.md5(str(number).encode()).hexdigest(),
                "caption": None if place == 7 else f"scene number {number}",
                "status": "success" if data is not None else "failed_to_download",
                "sha256": None if data is None or place == 8 else hashlib.sha256(data).hexdigest(),
                "input_row": number,
            }
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=OWN_SCHEMA), folder / f"{shard:05d}.parquet")
    commit(job.raw, f"{shard:05d}", {"count": len(rows)})


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """Return a function that makes a job of raw shards (once) and a recipe over it."""

    def make(name: str = "job", *, shards: int = 3, workers: int = 0, **annotate: Any) -> Recipe:
        job = Job(str(tmp_path / name))
        Path(job.url).mkdir(exist_ok=True)
        Path(job.url, "job.json").write_text('{"schema": 1}\n')
        for shard in range(shards):
            if f"{shard:05d}" not in committed(job.raw):
                write_raw(job, shard)
        return Recipe(
            job=job.url,
            unsafe_images="off",
            input=InputConfig(urls=("urls.parquet",)),
            # Looking for faces is slow, so only where a test asks for it.
            annotate=annotate_config(**{"faces": None, **annotate}),
            build=BuildConfig(blur_faces=False),
            engine=EngineConfig(executor="local" if workers else "inline", workers=workers),
        )

    return make


def folder_bytes(folder: str) -> dict[str, bytes]:
    """Return every file under a folder."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def annotation_files() -> Callable[[Recipe], dict[str, bytes]]:
    """Return a function that reads all that annotate wrote."""
    return lambda recipe: folder_bytes(f"{recipe.job}/annotations")


def draw_network(path: Path, layers: Sequence[tuple[str, int, NDArray[np.float32], Sequence[float]]]) -> Path:
    """Write a network of convolutions that each look at the image once: (output, stride, weights, biases)."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    nodes, tensors, outputs = [], [], []
    for name, stride, weights, biases in layers:
        tensors += [
            numpy_helper.from_array(np.asarray(weights, np.float32), f"w.{name}"),
            numpy_helper.from_array(np.asarray(biases, np.float32), f"b.{name}"),
        ]
        nodes.append(helper.make_node("Conv", ["image", f"w.{name}", f"b.{name}"], [name], strides=[stride, stride]))
        outputs.append(helper.make_tensor_value_info(name, kind, [10, len(biases), 32 // stride, 32 // stride]))
    # As CenterFace was exported: for ten images of 32 x 32.
    image = helper.make_tensor_value_info("image", kind, [10, 3, 32, 32])
    model = helper.make_model(
        helper.make_graph(nodes, "drawn", [image], outputs, tensors), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def green(stride: int, channels: int = 1, weight: float = 1.0) -> NDArray[np.float32]:
    """Return weights that see how much greener than red a cell is, 0 to `weight`."""
    cell = np.zeros((channels, 3, stride, stride), np.float32)
    cell[:, 1], cell[:, 0] = weight / 255 / stride**2, -weight / 255 / stride**2
    return cell


def write_green_centerface(path: Path, *, sides: float = 1, weight: float = 1) -> Path:
    """Write a CenterFace whose faces are green cells of 4 x 4 pixels: boxes 60 wide, 40 high, around them."""
    size = np.log(np.array([40, 60]) * sides / 4)
    points = [0.4, 0.3, 0.4, 0.7, 0.6, 0.5, 0.8, 0.35, 0.8, 0.65]
    flat = [(2, size, "scale"), (2, [0.0, 0.0], "offset"), (10, points, "points")]
    layers = [("heat", 4, green(4, weight=weight), [0.0])]
    layers += [(name, 4, np.zeros((count, 3, 4, 4), np.float32), list(biases)) for count, biases, name in flat]
    return draw_network(path, layers)


@pytest.fixture
def write_centerface() -> Callable[..., Path]:
    """Return `write_green_centerface`."""
    return write_green_centerface


@pytest.fixture
def green_centerface(tmp_path: Path) -> Path:
    """The file of a CenterFace that finds green cells of 4 x 4 pixels."""
    return write_green_centerface(tmp_path / "green.onnx")


@pytest.fixture
def green_picture() -> Callable[..., Pixels]:
    """Return a function that draws green cells at (row, column) on a grey picture."""

    def draw(cells: Sequence[tuple[int, int]], *, height: int = 480, width: int = 640) -> Pixels:
        pixels = np.full((height, width, 3), 128, np.uint8)
        for row, column in cells:
            pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = (0, 255, 0)
        return pixels

    return draw
