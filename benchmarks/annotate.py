"""Annotate: recall and false rate of PDQ by transform, languages and words found, images a CPU second by annotator.

    python benchmarks/annotate.py IMAGES.tar [--captions LIST.parquet] [--yunet MODEL.onnx] [--clip ViT-B-32]

Rates are without decoding, which is a line of its own and done once for all annotators.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Pixels
from headrace.curation.annotate.annotators.caption import CaptionConfig, CaptionFacts
from headrace.curation.annotate.annotators.caption_minhash import CaptionMinhash, CaptionMinhashConfig
from headrace.curation.annotate.annotators.clip import ClipScore, ClipScoreConfig
from headrace.curation.annotate.annotators.faces import FaceBoxes, FacesConfig
from headrace.curation.annotate.annotators.hashes import Hashes, HashesConfig, ImageHashes, centre_square, image_hashes
from headrace.curation.annotate.annotators.image import ImageConfig, ImageFacts
from headrace.curation.annotate.annotators.language import (
    Language,
    LanguageConfig,
    bundled_model,
    language_of,
    load_model,
)
from headrace.curation.annotate.annotators.quality import Quality, QualityConfig
from headrace.curation.annotate.annotators.text.lexicon import load_lexicon
from headrace.curation.annotate.annotators.unsafe_text import UnsafeText, UnsafeTextConfig
from headrace.curation.annotate.decode import decode
from headrace.curation.annotate.threads import one_thread_each
from headrace.shards.images.decode import decode_rgb
from headrace.shards.index import index_shard
from headrace.shards.parquet import read_table
from headrace.shards.payloads import read_payloads

MAX_SIDE = 512
DISTANCES = (20, 31)
LANGUAGES = Path(__file__).with_name("captions_by_language.tsv")
UNSAFE = Path(__file__).with_name("unsafe_captions.tsv")


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


def turned(pixels: Pixels, degrees: float) -> Pixels:
    """Return the image turned about its middle, with what lies beyond its edge repeated."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


TRANSFORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg quality 10": lambda pixels: reencoded(pixels, 10),
    "resize to 256": lambda pixels: long_side(pixels, 256),
    "gray": lambda pixels: pixels.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2),
    "brightness x 1.3": lambda pixels: np.minimum(pixels * 1.3, 255).astype(np.uint8),
    "pad to square, white": lambda pixels: padded(pixels, 255),
    "pad to square, white, jpeg quality 75": lambda pixels: reencoded(padded(pixels, 255), 75),
    "pad to square, black, jpeg quality 75, 256": lambda pixels: reencoded(long_side(padded(pixels, 0), 256), 75),
    "square from the middle": centre_square,
    "square from the middle, jpeg quality 75, 256": lambda pixels: reencoded(long_side(centre_square(pixels), 256), 75),
    "crop 98 %": lambda pixels: cropped(pixels, 0.98),
    "crop 95 %": lambda pixels: cropped(pixels, 0.95),
    "crop 90 %": lambda pixels: cropped(pixels, 0.9),
    "text watermark": watermarked,
    "turn 3 degrees": lambda pixels: turned(pixels, 3),
    "mirror image": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
}
VARIANTS = (("pdq",), ("pdq", "pdq_trimmed"), ("pdq", "pdq_trimmed", "pdq_centre"))


def words_of(hashes: list[ImageHashes], names: tuple[str, ...]) -> np.ndarray:
    """Return [images, variants, 4] of uint64."""
    data = b"".join(getattr(item, name) for item in hashes for name in names)
    return np.frombuffer(data, np.uint64).reshape(len(hashes), len(names), 4)


def nearest(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the least distance of any hash of one image to any of the other, image by image."""
    differing = np.bitwise_count(one[:, :, None] ^ other[:, None, :]).sum(axis=3)
    return differing.min(axis=(1, 2))


def recall_table(images: list[Pixels]) -> Iterator[str]:
    """Yield the lines of the recall table, then how often different photographs meet."""
    hashes = [image_hashes(pixels) for pixels in images]
    yield f"| copies of {len(images)} photographs found, % | PDQ <= 20 | <= 31 | + trimmed | <= 31 | + centre | <= 31 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, transform in TRANSFORMS.items():
        copies = [image_hashes(transform(pixels)) for pixels in images]
        found = [nearest(words_of(hashes, names), words_of(copies, names)) for names in VARIANTS]
        cells = [f"{100 * (apart <= limit).mean():.1f}" for apart in found for limit in DISTANCES]
        yield f"| {name} | {' | '.join(cells)} |"
    for names in VARIANTS:
        apart = np.array([pair for row in pairs_of(words_of(hashes, names)) for pair in row])
        met = [int((apart <= limit).sum()) for limit in DISTANCES]
        yield (
            f"{', '.join(names)}: of {len(apart)} pairs of different photographs {met[0]} are within 20, {met[1]} "
            f"within 31; least distance {apart.min()} of 256"
        )


def pairs_of(words: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the distances of each image to those before it."""
    for row in range(1, len(words)):
        yield nearest(words[:row], np.broadcast_to(words[row], words[:row].shape))


def text_lines() -> Iterator[str]:
    """Yield how many languages are told, and what the list of unsafe words finds."""
    captions = [line.split("\t") for line in LANGUAGES.read_text(encoding="utf-8").splitlines()]
    if importlib.util.find_spec("fasttext"):
        model = load_model(bundled_model())
        right = sum((language_of(model, text) or ("",))[0] == code for code, text in captions)
        yield f"language: {right} of {len(captions)} captions in {len({code for code, _ in captions})} languages"
    lexicon = load_lexicon(tuple(UnsafeText(UnsafeTextConfig()).files().values()))
    kinds: dict[str, list[bool]] = {}
    for line in UNSAFE.read_text(encoding="utf-8").split("\n"):
        kind, _, text = line.partition("\t")
        if text:
            kinds.setdefault(kind, []).append(bool(lexicon.find(text)))
    yield "unsafe words: " + ", ".join(f"{sum(found)} of {len(found)} {kind}" for kind, found in kinds.items())


def rate_table(files: list[bytes], captions: list[str], annotators: dict[str, Annotator]) -> Iterator[str]:
    """Yield images a CPU second, the best of three passes: the rate of one core that has nothing else to do."""
    yield "| step | images a CPU second |"
    yield "| --- | --- |"
    decoded, seconds = timed(lambda: [decode(data) for data in files])
    yield f"| decode (libjpeg-turbo) | {len(files) / seconds:,.0f} |"
    batch = AnnotationBatch(
        keys=[str(row) for row in range(len(files))],
        captions=[captions[row % len(captions)] for row in range(len(files))],
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


def read_captions(path: str | None) -> list[str]:
    """Return the captions of a list, or one of ours."""
    if path is None:
        return ["a photograph of a small dog on a wide green lawn"]
    table = read_table(path)
    name = "TEXT" if "TEXT" in table.column_names else "caption"
    return [text for text in table[name].to_pylist() if text]


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
    parser.add_argument("--captions", help="parquet with a column TEXT or caption, for the rates of text")
    parser.add_argument("--clip", help="name of an open_clip model, for its rate")
    parser.add_argument("--samples", type=int, default=600, help="photographs for the recall table; 0: no table")
    parser.add_argument("--rate-samples", type=int, default=64, help="photographs for the rates")
    arguments = parser.parse_args()
    rows = index_shard(arguments.tar, fast=True).slice(0, max(arguments.samples, arguments.rate_samples)).to_pylist()
    files = read_payloads(arguments.tar, [(row["offset"], row["size"]) for row in rows])
    images = [
        pixels if max(pixels.shape) <= MAX_SIDE else long_side(pixels, MAX_SIDE)
        for pixels in map(decode_rgb, files[: arguments.samples])
    ]
    with one_thread_each(torch=False):
        for line in recall_table(images) if len(images) > 1 else ():
            print(line, flush=True)
    annotators: dict[str, Annotator] = {
        "image": ImageFacts(ImageConfig()),
        "hashes": Hashes(HashesConfig()),
        "quality": Quality(QualityConfig()),
        "caption": CaptionFacts(CaptionConfig()),
        "caption_minhash": CaptionMinhash(CaptionMinhashConfig()),
        "unsafe_text": UnsafeText(UnsafeTextConfig()),
        "faces, haar": FaceBoxes(FacesConfig(detector="haar")),
    }
    if arguments.yunet:
        annotators["faces, yunet"] = FaceBoxes(FacesConfig(detector="yunet", model=arguments.yunet))
    if importlib.util.find_spec("fasttext"):
        annotators["language"] = Language(LanguageConfig())
    captions = read_captions(arguments.captions)
    for line in text_lines():
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder, one_thread_each(torch=bool(arguments.clip)):
        if arguments.clip:
            annotators[f"clip, {arguments.clip}"] = random_clip(arguments.clip, folder)
        for line in rate_table(files[: arguments.rate_samples], captions, annotators):
            print(line, flush=True)


if __name__ == "__main__":
    main()
