"""What a recipe says about its input and about fetching.

The input, the recipe's seed and `samples_per_shard` fix the rows of every raw shard, so a job refuses to go on when
they change; the rest (concurrency, deadlines, caps) may change between two runs.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.curation.blocklist import BlocklistConfig
from headrace.curation.fetch.net.address import parse_allowed
from headrace.curation.fetch.signals.config import NO_SIGNALS, SignalsConfig
from headrace.curation.raw.schema import ERROR_CLASSES, LISTED_COLUMNS, RESERVED_COLUMNS, TRANSIENT_CLASSES
from headrace.shards.images.formats import EXTENSIONS
from headrace.text import shown

# Raised whenever the same image would be changed to other bytes; a job keeps the number that it began with.
# 1: OpenCV's INTER_AREA, and every JPEG written with all of its chroma.
RESIZING = 2

_RESERVED_LOWER = frozenset(RESERVED_COLUMNS)


def check_error_classes(setting: str, names: tuple[str, ...]) -> None:
    """Raise ValueError for a class that is not known."""
    unknown = sorted(set(names) - set(ERROR_CLASSES))
    if unknown:
        raise ValueError(f"{setting}: unknown {', '.join(unknown)}; known: {', '.join(ERROR_CLASSES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class InputConfig:
    """The URL list, or raw shards that exist already: `urls` or `raw`, never both."""

    urls: tuple[str, ...] = ()
    """Lists of URLs: files, folders or globs, local or at any fsspec URL."""
    raw: str | None = None
    """Output folder of img2dataset (webdataset format), used as it is; nothing is fetched."""
    format: Literal["auto", "txt", "csv", "tsv", "json", "jsonl", "parquet"] = "auto"
    """Format of the lists; `auto` goes by the suffix, before one of .gz, .bz2, .xz, .zst."""
    url_column: str = "url"
    """Column of the URL. A txt list has no columns: one URL a line."""
    caption_column: str | None = "caption"
    """Column of the caption; null: the list has none."""
    sha256_column: str | None = None
    """Column of the expected sha256 (hex) of the bytes; another image is then a failure of class sha256-mismatch."""
    md5_column: str | None = None
    """Column of the expected md5 (hex); another image is a failure of class md5-mismatch."""
    sha512_column: str | None = None
    """Column of the expected sha512 (hex); another image is a failure of class sha512-mismatch."""
    bbox_column: str | None = None
    """Column of boxes, [[x0, y0, x1, y1], ...] as fractions of width and height: see `fetch.boxes`."""
    columns: tuple[str, ...] = ()
    """Further columns carried into the raw parquet."""
    date_column: str | None = None
    """Of the columns, the one with a date or year of the row: the fetch report counts by its year."""
    reuse: tuple[str, ...] = ()
    """Earlier jobs, and outputs of img2dataset: a row whose URL has an image there takes it without a request."""
    reuse_failures: tuple[str, ...] = ()
    """Error classes of rows there that are taken over instead of asking again."""

    @property
    def listed_columns(self) -> dict[str, str]:
        """Our name -> the list's, of the columns that say something of the image."""
        names = (self.sha256_column, self.md5_column, self.sha512_column, self.bbox_column)
        return {own: name for own, name in zip(LISTED_COLUMNS, names, strict=True) if name is not None}

    def __post_init__(self) -> None:
        if bool(self.urls) == (self.raw is not None):
            raise ValueError("input needs either urls (lists to fetch) or raw (img2dataset's output), not both")
        if self.reuse and self.raw is not None:
            raise ValueError("input.reuse is for lists of urls; input.raw fetches nothing")
        check_error_classes("reuse_failures", self.reuse_failures)
        if self.urls and self.date_column is not None and self.date_column not in self.columns:
            raise ValueError(f"date_column: {shown(self.date_column)} is not carried; name it in input.columns too")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns names one column twice: {', '.join(self.columns)}")
        taken = [name for name in self.columns if name.lower() in _RESERVED_LOWER or name in self.listed_columns]
        if taken:
            raise ValueError(
                f"columns: headrace writes {', '.join(taken)} itself; known own columns: {RESERVED_COLUMNS}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """How a URL list is downloaded. The defaults are safe for a list nobody has read."""

    engine: Literal["headrace", "img2dataset"] = "headrace"
    """What asks for the URLs; `img2dataset` is the real one, after our screening, and needs `accept_unscreened`."""
    accept_unscreened: bool = False
    """Accept that img2dataset follows redirects by itself, wherever they lead, and reads bodies of any size."""
    samples_per_shard: int = 10_000
    """Rows of the list in each raw shard, failures included."""
    concurrency: int = 64
    """Most URLs in flight in each process; fewer while much fails."""
    per_host: int = 4
    """Most URLs in flight to one host name, in each process; fewer while it answers 429, 503 or not in time."""
    retries: int = 2
    """Further attempts, with growing pauses, where one can help: timeouts, connections, DNS, 429 and 5xx."""
    backoff_seconds: float = 0.5
    """Pause before the first retry; doubles each time, less a jitter; a longer Retry-After counts."""
    connect_seconds: float = 5.0
    """Limit for connection and TLS handshake with one address."""
    attempt_seconds: float = 20.0
    """Limit for one attempt, redirects and body included."""
    deadline_seconds: float = 60.0
    """Limit for one URL, all attempts and pauses together; waiting for a free slot does not count."""
    min_bytes_per_second: int = 1000
    """An answer that stays under this for `slow_seconds` is given up, and not tried again; 0: never."""
    slow_seconds: float = 3.0
    """How long an answer may drip, from its first byte on."""
    outage_seconds: float = 600.0
    """Wait this long where nobody can be reached any more, then stop without committing; 0: take it for an answer."""
    max_redirects: int = 5
    """Redirects followed; scheme and address are checked again at each."""
    max_bytes: int = 20_000_000
    """Cap on a body, while it streams; also on what it decompresses to."""
    max_pixels: int = 67_108_864
    """Cap on width x height as the header says, before anything is decoded."""
    honor_opt_out: bool = True
    """Obey the owners' signals that `signals` names; false: read none of them."""
    blocklist: BlocklistConfig = field(default_factory=BlocklistConfig)
    """Images and URLs that are not stored, nor named anywhere."""
    signals: SignalsConfig = field(default_factory=SignalsConfig)
    """Which signals are read and obeyed."""
    user_agent: str = "Mozilla/5.0 (compatible; headrace)"
    """User-Agent header."""
    accept: str | None = "*/*"
    """Accept header. A server that may choose sends the original for `*/*`, as to curl; null leaves the header out."""
    allow_private: tuple[str, ...] = ()
    """Exact ADDRESS:PORT pairs that may be fetched although they are not public, for example 127.0.0.1:8000."""
    resize: Literal["none", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "none"
    """`none` keeps the bytes as fetched; the others are img2dataset's resize_mode."""
    image_size: int = 256
    """Side that resizing aims at, in pixels: the shorter one (keep_ratio, center_crop) or the longer one."""
    resize_only_if_bigger: bool = True
    """Leave images alone whose side is `image_size` or less."""
    encode_format: Literal["jpeg", "png", "webp", "avif"] = "jpeg"
    """Format of images that are encoded again, as they were resized, blurred or cut."""
    encode_quality: int = 95
    """Quality of images that are encoded again; png has none."""
    min_image_size: int = 0
    """Images whose shorter side is less, by their header, fail with class image-too-small."""
    max_image_area: int | None = None
    """Images of more pixels fail with class image-too-large; null: `max_pixels` alone holds."""
    max_aspect_ratio: float | None = None
    """Images whose longer side is more than so many times the shorter one fail with class image-too-long."""
    formats: tuple[str, ...] = ()
    """Formats that are taken, for example jpeg and webp; others fail with class image-format. Empty: all known ones."""
    boxes: Literal["blur", "crop"] = "blur"
    """What becomes of the boxes of `input.bbox_column`: each is blurred, or the image is cut to what holds them all."""
    boxes_upright: bool = False
    """The boxes are of the image as one sees it; false: of the pixels without Exif orientation, as DataComp's are."""
    hashes: tuple[Literal["md5", "sha512"], ...] = ()
    """Further sums of the bytes as fetched, as columns of the raw parquet."""
    exif: bool = False
    """Write the Exif fields of the bytes as fetched to the column `exif` of the raw parquet, as JSON."""
    output_format: Literal["webdataset", "files", "parquet"] = "webdataset"
    """Where images lie: tars; single files in `raw/00000/`; or `raw/images/00000.parquet`. Later stages read tars."""
    retry_classes: tuple[str, ...] = TRANSIENT_CLASSES
    """Error classes that `--retry-failed` fetches again."""

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low:g} to {high:g}, got {getattr(self, name)}")
        if not re.fullmatch(r"[\x20-\x7e]{1,512}", self.user_agent):
            raise ValueError("user_agent must be 1 to 512 printable ASCII characters")
        if self.accept is not None and not re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]{0,510}[\x21-\x7e])?", self.accept):
            raise ValueError(
                f"accept must be 1 to 512 printable ASCII characters, or null for no header; got {shown(self.accept)}"
            )
        check_error_classes("retry_classes", self.retry_classes)
        if self.engine == "img2dataset" and not self.accept_unscreened:
            raise ValueError(
                "engine: img2dataset follows redirects by itself, to any address, looks names up again, reads bodies "
                "of any size and knows of all signals X-Robots-Tag only; say accept_unscreened: true if you accept that"
            )
        strange = sorted(set(self.formats) - set(EXTENSIONS))
        if strange:
            raise ValueError(f"formats: unknown {', '.join(strange)}; known: {', '.join(EXTENSIONS)}")
        if len(set(self.hashes)) != len(self.hashes):
            raise ValueError(f"hashes names one sum twice: {', '.join(self.hashes)}")
        if self.max_aspect_ratio is not None and not 1 <= self.max_aspect_ratio < math.inf:
            raise ValueError(f"max_aspect_ratio must be at least 1, or null for no limit; got {self.max_aspect_ratio}")
        if self.max_image_area is not None and self.max_image_area < 1:
            raise ValueError(f"max_image_area must be at least 1 pixel, or null; got {self.max_image_area}")
        parse_allowed(self.allow_private)

    @property
    def obeyed(self) -> SignalsConfig:
        """The signals that are read and obeyed."""
        return self.signals if self.honor_opt_out else NO_SIGNALS

    @property
    def made_columns(self) -> tuple[str, ...]:
        """Names of the columns that the raw parquets have besides the usual ones."""
        return (*self.hashes, *(["exif"] if self.exif else []))

    @property
    def output(self) -> dict[str, Any]:
        """What fixes the columns and files of every raw shard, so that a job keeps it."""
        return {"exif": self.exif, "hashes": list(self.hashes), "output_format": self.output_format}


_BOUNDS = (
    ("samples_per_shard", 1, 1_000_000),
    ("concurrency", 1, 4096),
    ("per_host", 1, 4096),
    ("retries", 0, 20),
    ("backoff_seconds", 0.0, 600.0),
    ("connect_seconds", 0.01, 600.0),
    ("attempt_seconds", 0.01, 3600.0),
    ("deadline_seconds", 0.01, 3600.0),
    ("min_bytes_per_second", 0, 1 << 31),
    ("slow_seconds", 0.25, 3600.0),
    ("outage_seconds", 0.0, 86_400.0),
    ("max_redirects", 0, 20),
    ("max_bytes", 1, 1 << 31),
    ("max_pixels", 1, 1 << 31),
    ("image_size", 1, 8192),
    ("encode_quality", 1, 100),
    ("min_image_size", 0, 65_535),
)
