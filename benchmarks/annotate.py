"""Annotate: recall of PDQ on known transforms, and images a CPU second by annotator.

    python benchmarks/annotate.py IMAGES.tar [--yunet MODEL.onnx] [--clip ViT-B-32]

Rates are without decoding, which is a line of its own and done once for all annotators.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Pixels
from headrace.curation.annotate.annotators.caption import CaptionConfig, CaptionFacts
from headrace.curation.annotate.annotators.clip import ClipScore, ClipScoreConfig
from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig
from headrace.curation.annotate.annotators.hashes import Hashes, HashesConfig, ImageHashes, image_hashes
from headrace.curation.annotate.annotators.image import ImageConfig, ImageFacts
from headrace.curation.annotate.annotators.quality import Quality, QualityConfig
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText, UnsafeTextConfig
from headrace.curation.annotate.decode import decode
from headrace.shards.images.decode import decode_rgb
from headrace.shards.index import index_shard
from headrace.shards.payloads import read_payloads

MAX_SIDE = 512
DISTANCES = (20, 31)


def reencoded(pixels: Pixels, quality: int) -> Pixels:
    """Return what a JPEG of `quality` keeps."""
    return decode_rgb(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality))


def long_side(pixels: Pixels, side: int) -> Pixels:
    """Return the image with its long side of `side` pixels, by area averaging."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    return cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def padded(pixels: Pixels, value: int) -> Pixels:
    """Return the image in the middle of a square of one grey value."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    around = (top, side - height - top, left, side - width - left)
    return cv2.copyMakeBorder(pixels, *around, cv2.BORDER_CONSTANT, value=(value,) * 3)


def cropped(pixels: Pixels, share: float) -> Pixels:
    """Return the middle, `share` of each side."""
    height, width = pixels.shape[:2]
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    return pixels[top : height - top, left : width - left]


def watermarked(pixels: Pixels) -> Pixels:
    """Return the image with half-transparent white text across its middle."""
    image = Image.fromarray(pixels).convert("RGBA")
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    font = ImageFont.load_default(size=image.width / 9)
    place = (image.width * 0.05, image.height * 0.45)
    ImageDraw.Draw(layer).text(place, "(c) example photo", fill=(255, 255, 255, 128), font=font)
    return np.asarray(Image.alpha_composite(image, layer).convert("RGB"))


TRANSFORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg quality 10": lambda pixels: reencoded(pixels, 10),
    "resize to 256": lambda pixels: long_side(pixels, 256),
    "pad to square, white": lambda pixels: padded(pixels, 255),
    "pad to square, white, jpeg quality 75": lambda pixels: reencoded(padded(pixels, 255), 75),
    "pad to square, black, jpeg quality 75, 256": lambda pixels: reencoded(long_side(padded(pixels, 0), 256), 75),
    "crop 95 %": lambda pixels: cropped(pixels, 0.95),
    "text watermark": watermarked,
}


def distance(one: bytes, other: bytes) -> int:
    """Return the number of differing bits."""
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def nearest(one: ImageHashes, other: ImageHashes) -> int:
    """Return the least distance, any hash with any."""
    return min(distance(a, b) for a in (one.pdq, one.pdq_trimmed) for b in (other.pdq, other.pdq_trimmed))


def recall_table(images: list[Pixels]) -> Iterator[str]:
    """Yield the lines of the recall table, then the least distance of different images."""
    hashes = [image_hashes(pixels) for pixels in images]
    yield f"| transform ({len(images)} photographs) | PDQ <= 20 | <= 31 | with trimmed <= 20 | <= 31 |"
    yield "| --- | --- | --- | --- | --- |"
    for name, transform in TRANSFORMS.items():
        copies = [image_hashes(transform(pixels)) for pixels in images]
        plain = np.array([distance(a.pdq, b.pdq) for a, b in zip(hashes, copies, strict=True)])
        either = np.array([nearest(a, b) for a, b in zip(hashes, copies, strict=True)])
        cells = [f"{100 * (found <= limit).mean():.1f} %" for found in (plain, either) for limit in DISTANCES]
        yield f"| {name} | {' | '.join(cells)} |"
    pairs = np.array([nearest(a, b) for a, b in combinations(hashes, 2)])
    yield f"{len(pairs)} pairs of different photographs: least distance {pairs.min()} of 256"


def rate_table(files: list[bytes], annotators: dict[str, Annotator]) -> Iterator[str]:
    """Yield images a CPU second, the best of three passes: the rate of one core that has nothing else to do."""
    yield "| step | images a CPU second |"
    yield "| --- | --- |"
    decoded, seconds = timed(lambda: [decode(data) for data in files])
    yield f"| decode (libjpeg-turbo) | {len(files) / seconds:,.0f} |"
    batch = AnnotationBatch(
        keys=[str(row) for row in range(len(files))],
        captions=["a photograph of a small dog on a wide green lawn"] * len(files),
        data=list(files),
        sha256=["0" * 64] * len(files),
        headers=[item.header for item in decoded],
        images=[item.pixels for item in decoded],
        errors=[item.error for item in decoded],
    )
    for name, annotator in annotators.items():
        annotator.annotate(batch)
        _, seconds = timed(lambda annotator=annotator: annotator.annotate(batch))
        yield f"| {name} | {len(files) / seconds:,.0f} |"


def timed(work: Callable[[], list[object]]) -> tuple[list[object], float]:
    """Return the result of `work` and the CPU seconds of the fastest of three calls (one thread each)."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def random_clip(name: str, folder: str) -> ClipScore:
    """Return the annotator of an open_clip model with random weights: rates do not depend on them."""
    import open_clip
    from safetensors.torch import save_file

    path = str(Path(folder, "random.safetensors"))
    network = open_clip.create_model(name, load_weights=False)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return ClipScore(ClipScoreConfig(model=name, checkpoint=path, images_per_batch=32))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tar", help="WebDataset tar of photographs")
    parser.add_argument("--yunet", help="YuNet's ONNX file")
    parser.add_argument("--clip", help="name of an open_clip model, for its rate")
    parser.add_argument("--samples", type=int, default=600, help="photographs for the recall table; 0: no table")
    parser.add_argument("--rate-samples", type=int, default=64, help="photographs for the rates")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows = index_shard(arguments.tar, fast=True).slice(0, max(arguments.samples, arguments.rate_samples)).to_pylist()
    files = read_payloads(arguments.tar, [(row["offset"], row["size"]) for row in rows])
    images = [
        pixels if max(pixels.shape) <= MAX_SIDE else long_side(pixels, MAX_SIDE)
        for pixels in map(decode_rgb, files[: arguments.samples])
    ]
    for line in recall_table(images) if len(images) > 1 else ():
        print(line, flush=True)
    annotators: dict[str, Annotator] = {
        "image": ImageFacts(ImageConfig()),
        "hashes": Hashes(HashesConfig()),
        "quality": Quality(QualityConfig()),
        "caption": CaptionFacts(CaptionConfig()),
        "unsafe_text": UnsafeText(UnsafeTextConfig()),
        "faces, haar": FaceBoxes(FacesConfig()),
    }
    if arguments.yunet:
        annotators["faces, yunet"] = FaceBoxes(FacesConfig(detector="yunet", model=arguments.yunet))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.clip:
            annotators[f"clip, {arguments.clip}"] = random_clip(arguments.clip, folder)
        for line in rate_table(files[: arguments.rate_samples], annotators):
            print(line, flush=True)


if __name__ == "__main__":
    main()
