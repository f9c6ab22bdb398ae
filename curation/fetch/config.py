"""What a recipe says about its input and about fetching.

The input, the recipe's seed and `samples_per_shard` fix the rows of every raw shard, so a job refuses to go on when
they change; the rest (concurrency, deadlines, caps) may change between two runs.
"""

import re
from dataclasses import dataclass
from typing import Literal

from headrace.curation.fetch.net.address import parse_allowed
from headrace.curation.raw.schema import ERROR_CLASSES, RESERVED_COLUMNS, TRANSIENT_CLASSES
from headrace.text import shown

_RESERVED_LOWER = frozenset(RESERVED_COLUMNS)


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
    columns: tuple[str, ...] = ()
    """Further columns carried into the raw parquet."""

    def __post_init__(self) -> None:
        if bool(self.urls) == (self.raw is not None):
            raise ValueError("input needs either urls (lists to fetch) or raw (img2dataset's output), not both")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns names one column twice: {', '.join(self.columns)}")
        taken = [name for name in self.columns if name.lower() in _RESERVED_LOWER]
        if taken:
            raise ValueError(
                f"columns: headrace writes {', '.join(taken)} itself; known own columns: {RESERVED_COLUMNS}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """How a URL list is downloaded. The defaults are safe for a list nobody has read."""

    samples_per_shard: int = 10_000
    """Rows of the list in each raw shard, failures included."""
    concurrency: int = 64
    """URLs in flight in each process."""
    per_host: int = 4
    """URLs in flight to one host name, in each process."""
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
    outage_seconds: float = 600.0
    """Wait this long where nobody can be reached any more, then stop without committing; 0: take it for an answer."""
    max_redirects: int = 5
    """Redirects followed; scheme and address are checked again at each."""
    max_bytes: int = 20_000_000
    """Cap on a body, while it streams; also on what it decompresses to."""
    max_pixels: int = 67_108_864
    """Cap on width x height as the header says, before anything is decoded."""
    honor_opt_out: bool = True
    """Leave images whose server sends X-Robots-Tag noai, noimageai, noindex, noimageindex or TDM-Reservation 1."""
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
    encode_quality: int = 95
    """JPEG quality of resized images."""
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
        unknown = sorted(set(self.retry_classes) - set(ERROR_CLASSES))
        if unknown:
            raise ValueError(f"retry_classes: unknown {', '.join(unknown)}; known: {', '.join(ERROR_CLASSES)}")
        parse_allowed(self.allow_private)


_BOUNDS = (
    ("samples_per_shard", 1, 1_000_000),
    ("concurrency", 1, 4096),
    ("per_host", 1, 4096),
    ("retries", 0, 20),
    ("backoff_seconds", 0.0, 600.0),
    ("connect_seconds", 0.01, 600.0),
    ("attempt_seconds", 0.01, 3600.0),
    ("deadline_seconds", 0.01, 3600.0),
    ("outage_seconds", 0.0, 86_400.0),
    ("max_redirects", 0, 20),
    ("max_bytes", 1, 1 << 31),
    ("max_pixels", 1, 1 << 31),
    ("image_size", 1, 8192),
    ("encode_quality", 50, 100),
)
