"""The photographs that the loaders are measured with: those of a tar, and mosaics of 1, 4 and 12 megapixels of them.

A mosaic lays sample photographs side by side at quality 75, in their own scale: its detail is of photographs, not of an
enlargement. Everything is written once, in the format of each loader: tars, MDS, LitData's chunks.
"""

import io
import json
import random
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from headrace.shards.imports.run import ImportConfig, import_images, open_source

SAMPLES_PER_SHARD = 75
MOSAICS = {"1 MP": (1224, 816, 96), "4 MP": (2464, 1632, 48), "12 MP": (4240, 2832, 16)}
"""Name -> width, height, how many are made."""
KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"subsampling": "4:2:0", "progressive": True},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoSet:
    """One set of JPEGs on disk."""

    name: str
    folder: str
    shards: tuple[str, ...] = field(default=())
    batch: int = 64

    @property
    def url(self) -> str:
        """Our dataset: the tars and their index."""
        return str(Path(self.folder, "dataset"))

    @property
    def mds(self) -> str:
        """MosaicML Streaming's copy."""
        return str(Path(self.folder, "mds"))

    @property
    def litdata(self) -> str:
        """LitData's copy."""
        return str(Path(self.folder, "litdata"))

    def payloads(self) -> list[bytes]:
        """Return every JPEG."""
        found = []
        for shard in self.shards:
            found += [data for name, data in read_tar(shard) if name.endswith("jpg")]
        return found

    def to_json(self) -> str:
        """Return it for a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PhotoSet":
        """Return what `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "shards": tuple(data["shards"])})


def read_tar(path: str) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of every file."""
    found = []
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found.append((member.name, file.read()))
    return found


def photo_set(name: str, source: str, folder: Path) -> PhotoSet:
    """Write the JPEGs of a tar in every format."""
    folder.mkdir(parents=True)
    config = ImportConfig(samples_per_shard=SAMPLES_PER_SHARD)
    import_images(open_source(source, config), str(folder / "dataset"), config)
    shards = tuple(str(path) for path in sorted(folder.glob("dataset/**/*.tar")))
    large = name.startswith(("4 MP", "12 MP"))
    made = PhotoSet(name=name, folder=str(folder), shards=shards, batch=16 if large else 64)
    _write_mds(made)
    _write_litdata(made)
    return made


def mosaic_set(size: str, kind: str, photographs: list[bytes], folder: Path) -> PhotoSet:
    """Make mosaics of one size and kind."""
    width, height, count = MOSAICS[size]
    rng = random.Random(0)
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs[:100]]
    tar = folder.with_suffix(".tar")
    with tarfile.open(tar, "w") as archive:
        for number in range(count):
            sink = io.BytesIO()
            _mosaic(opened, rng, width, height).save(sink, "JPEG", quality=75, **KINDS[kind])
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = sink.tell()
            sink.seek(0)
            archive.addfile(member, sink)
    made = photo_set(f"{size} {kind}", str(tar), folder)
    tar.unlink()
    return made


def _mosaic(photographs: list[Image.Image], rng: random.Random, width: int, height: int) -> Image.Image:
    whole, top = Image.new("RGB", (width, height)), 0
    while top < height:
        row: list[Image.Image] = []
        while sum(one.width for one in row) < width:
            row.append(rng.choice(photographs))
        left, high = 0, min(one.height for one in row)
        for one in row:
            whole.paste(one.crop((0, 0, one.width, high)), (left, top))
            left += one.width
        top += high
    return whole


def _write_mds(photos: PhotoSet) -> None:
    try:
        from streaming import MDSWriter
    except ImportError:
        return
    with MDSWriter(out=photos.mds, columns={"jpeg": "bytes"}, size_limit=1 << 26) as writer:
        for data in photos.payloads():
            writer.write({"jpeg": data})


def _write_litdata(photos: PhotoSet) -> None:
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        return
    Path(photos.litdata).mkdir()
    writer = BinaryWriter(photos.litdata, chunk_bytes=1 << 26)
    for number, data in enumerate(photos.payloads()):
        writer[number] = {"jpeg": data}
    writer.done()
    writer.merge()
