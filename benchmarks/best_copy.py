"""Which copy of a photograph does near_duplicates keep? Make copies, run select on each pair, count the originals.

    python benchmarks/best_copy.py TAR ... [--photographs 100]

The table of docs/select.md.
"""

import argparse
import hashlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator
from headrace.curation.annotate.annotators.hashes import Hashes, HashesConfig
from headrace.curation.annotate.annotators.quality import Quality, QualityConfig
from headrace.curation.annotate.decode import decode
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.select.database import Limits
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, run_select
from headrace.curation.select.steps import NearDuplicates
from headrace.shards.index import index_shard
from headrace.shards.payloads import read_payloads
from headrace.shards.units import EngineConfig

ANNOTATORS: tuple[Annotator, ...] = (Hashes(HashesConfig()), Quality(QualityConfig()))


def saved(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    """Return the file of an image."""
    output = io.BytesIO()
    image.save(output, image_format, **options)
    return output.getvalue()


def again(image: Image.Image, quality: int) -> Image.Image:
    """Return the image saved as JPEG and read back."""
    return Image.open(io.BytesIO(saved(image, quality=quality))).convert("RGB")


def bordered(image: Image.Image, share: float, colour: str) -> Image.Image:
    """Return the image within a border of a share of its longer side."""
    edge = round(share * max(image.size))
    result = Image.new("RGB", (image.width + 2 * edge, image.height + 2 * edge), colour)
    result.paste(image, (edge, edge))
    return result


def squared(image: Image.Image) -> Image.Image:
    """Return the image in the middle of a white square."""
    side = max(image.size)
    result = Image.new("RGB", (side, side), "white")
    result.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return result


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Return the image in another size."""
    size = max(8, round(image.width * factor)), max(8, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def marked(image: Image.Image) -> Image.Image:
    """Return the image with half-transparent text across it."""
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    font = ImageFont.load_default(size=image.width / 9)
    place = (image.width * 0.05, image.height * 0.45)
    ImageDraw.Draw(layer).text(place, "(c) example", fill=(255, 255, 255, 128), font=font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def gray(image: Image.Image) -> Image.Image:
    """Return the image without colour."""
    return image.convert("L").convert("RGB")


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "white border, jpeg 95": lambda image: saved(bordered(image, 0.1, "white"), quality=95),
    "black border, jpeg 90": lambda image: saved(bordered(image, 0.1, "black"), quality=90),
    "black border, png": lambda image: saved(bordered(image, 0.05, "black"), "PNG"),
    "padded to a square, jpeg 75": lambda image: saved(squared(image), quality=75),
    "gray, jpeg 95": lambda image: saved(gray(image), quality=95),
    "gray, png": lambda image: saved(gray(image), "PNG"),
    "half the colour, jpeg 95": lambda image: saved(Image.blend(image, gray(image), 0.5), quality=95),
    "jpeg 98, 4:4:4": lambda image: saved(image, quality=98, subsampling=0),
    "jpeg 95": lambda image: saved(image, quality=95),
    "jpeg 85": lambda image: saved(image, quality=85),
    "jpeg 75": lambda image: saved(image, quality=75),
    "jpeg 50": lambda image: saved(image, quality=50),
    "jpeg 30, then 95": lambda image: saved(again(image, 30), quality=95),
    "jpeg 40, then png": lambda image: saved(again(image, 40), "PNG"),
    "png": lambda image: saved(image, "PNG"),
    "webp 80": lambda image: saved(image, "WEBP", quality=80),
    "gif": lambda image: saved(image.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
    "90 % of the size, jpeg 95": lambda image: saved(scaled(image, 0.9), quality=95),
    "half the size, jpeg 95": lambda image: saved(scaled(image, 0.5), quality=95),
    "quarter of the size, jpeg 95": lambda image: saved(scaled(image, 0.25), quality=95),
    "half and back, jpeg 95": lambda image: saved(scaled(scaled(image, 0.5), 2), quality=95),
    "125 % of the size, jpeg 90": lambda image: saved(scaled(image, 1.25), quality=90),
    "twice the size, jpeg 85": lambda image: saved(scaled(image, 2), quality=85),
    "blurred, jpeg 95": lambda image: saved(image.filter(ImageFilter.GaussianBlur(1.5)), quality=95),
    "watermark, jpeg 90": lambda image: saved(marked(image), quality=90),
}
ORDERS: dict[str, tuple[str, ...]] = {
    "best copy": (),
    "width * height": ("width * height desc",),
    "bytes a pixel": ("content_width * content_height >= 1 desc", "file_bytes / (width * height) desc"),
}


def rows_of(pairs: list[tuple[bytes, bytes]]) -> Iterator[tuple[dict[str, object], bytes]]:
    """Yield raw rows and files: of each pair first the original."""
    for number, data in enumerate(data for pair in pairs for data in pair):
        header = decode(data).header
        assert header is not None
        row = {
            "key": f"00000{number:04d}",
            "uid": hashlib.sha256(f"{number}".encode()).hexdigest()[:32],
            "url": f"http://host/{number}",
            "status": "success",
            "width": header.width,
            "height": header.height,
            "sha256": hashlib.sha256(data).hexdigest(),
            "input_file": "list.csv",
            "input_row": number,
        }
        yield row, data


def write_job(folder: Path, pairs: list[tuple[bytes, bytes]]) -> tuple[Job, dict[str, str]]:
    """Write a raw shard and its annotations; return the job and the annotators' folders."""
    rows, data = map(list, zip(*rows_of(pairs), strict=True))
    job = Job(str(folder))
    (folder / "raw" / "commits").mkdir(parents=True)
    columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in OWN_SCHEMA}
    pq.write_table(pa.table(columns, schema=OWN_SCHEMA), folder / "raw" / "00000.parquet")
    (folder / "raw" / "commits" / "00000.json").write_text("{}")
    decoded = [decode(item) for item in data]
    batch = AnnotationBatch(
        keys=[str(row["key"]) for row in rows],
        captions=[None] * len(rows),
        data=data,
        sha256=[str(row["sha256"]) for row in rows],
        headers=[item.header for item in decoded],
        images=[item.pixels for item in decoded],
        errors=[item.error for item in decoded],
    )
    folders = {}
    for annotator in ANNOTATORS:
        schema = pa.schema([("key", pa.string()), *annotator.columns])
        table = pa.Table.from_pydict({"key": batch.keys, **annotator.annotate(batch)}, schema=schema)
        folders[annotator.name] = job.annotations(annotator.name, "0" * 16)
        write_annotations(folders[annotator.name], "00000", table, {})
    return job, folders


def kept_originals(job: Job, folders: dict[str, str], order: tuple[str, ...]) -> tuple[int, int]:
    """Return (pairs of which one was dropped for the other, those of which the original was kept)."""
    selection = Selection(
        steps=(NearDuplicates(distance=31, min_quality=0, order=order),),
        placement=Placement(seed=0, shuffle_window=1, samples_per_shard=10_000),
    )
    run_select(job, selection, folders, limits=Limits(threads=1), engine=EngineConfig(executor="inline"))
    table = pq.read_table(latest_decision(job).ledger.table).sort_by("key")
    kept = table["kept"].to_pylist()
    pairs = [pair for pair in zip(kept[::2], kept[1::2], strict=True) if sum(pair) == 1]
    return len(pairs), sum(original for original, _ in pairs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", help="WebDataset tars of photographs")
    parser.add_argument("--photographs", type=int, default=100, help="of each tar, evenly spaced")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of raw tables without sums
    files: list[bytes] = []
    for tar in arguments.tars:
        rows = index_shard(tar, fast=True).to_pylist()
        rows = rows[:: max(1, len(rows) // arguments.photographs)][: arguments.photographs]
        files += read_payloads(tar, [(row["offset"], row["size"]) for row in rows])
    print(f"| copy ({len(files)} photographs) | found | " + " | ".join(f"{name}, %" for name in ORDERS) + " |")
    print("| --- | --- |" + " --- |" * len(ORDERS))
    for name, make in COPIES.items():
        pairs = [(data, make(Image.open(io.BytesIO(data)).convert("RGB"))) for data in files]
        with tempfile.TemporaryDirectory() as folder:
            job, folders = write_job(Path(folder), pairs)
            counts = [kept_originals(job, folders, order) for order in ORDERS.values()]
        shares = " | ".join(f"{100 * kept / found:.0f}" if found else "" for found, kept in counts)
        print(f"| {name} | {counts[0][0]} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
