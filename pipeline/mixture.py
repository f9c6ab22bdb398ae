"""What the user chooses: sources, weights, order, views, budgets.

One YAML file read by `headrace.config.load_config`; frozen from there on. `seed`, `lanes`, `segments`, `image_size`,
`augment`, `views`, `decoder`, `resizer`, `jpeg_scaling` and its margin, and the sources are the order and the pictures;
the rest is how they are fetched and may change at every restart.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal

from headrace.patience import Patience
from headrace.pipeline.augment.config import MAX_IMAGE_SIZE, Augment, View
from headrace.pipeline.augment.presets import preset_views, written_out
from headrace.pipeline.captions import CaptionsTaken
from headrace.pipeline.labels import Labels
from headrace.pipeline.order.segments import MAX_POSITION
from headrace.shards.cache import MIN_CACHE_BYTES
from headrace.text import known_words, shown

MAX_LANES = 4096
MAX_SOURCES = 1000
MAX_SEGMENTS = 1000
MAX_VIEWS = 100
NO_DECODER = "none"
"""The `decoder` that delivers bytes."""

__all__ = ["Augment", "Labels", "Mixture", "Segment", "Source", "View"]


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One dataset in a mixture."""

    name: str
    """Short and unique; part of the order's key, so that a moved dataset keeps its order."""
    url: str
    """A dataset with an index, at any fsspec URL; or a tar, a glob or a `{000..999}` pattern of tars without one."""
    weight: float = 1.0
    """Share of the mixture, in proportion to the other weights; 0 = it begins in a later segment."""
    repeat: int = 0
    """The source ends after so many epochs, and the others go on in proportion; 0 = it never ends."""
    fraction: float = 1.0
    """Part of the dataset that is used: of any 64 samples in a row so many. 0.1 lies inside 0.2, at every seed."""
    index_dir: str = ""
    """Where the index lies, if not in the dataset; for tars without one, where it is kept (~/.cache/headrace)."""
    index_fast: bool = False
    """Index tars that have no index by their headers only: no checksums, labels or captions."""
    labels: Labels | None = None
    """How its labels become those of the mixture; null = they are delivered as they are."""
    captions: CaptionsTaken = "first"
    """What the column `caption` is: the sample's, or with `rotate` another one of its `captions` in each epoch."""
    shuffle_window: int = 16384
    """Samples, for the whole job; a lane gets its part of it, at least one chunk."""
    chunk_samples: int = 64
    """Consecutive samples that are read at once."""

    def __post_init__(self) -> None:
        _check(bool(self.name), "name must not be empty")
        _check(bool(self.url), f"source {self.name!r}: url must not be empty")
        _check(0 <= self.weight < float("inf"), f"source {self.name!r}: weight must be at least 0, got {self.weight}")
        _check(self.repeat >= 0, f"source {self.name!r}: repeat must be at least 0, got {self.repeat}")
        _check(0 < self.fraction <= 1, f"source {self.name!r}: fraction must be over 0 to 1, got {self.fraction}")
        _check(self.shuffle_window >= 0, f"shuffle_window must be at least 0, got {self.shuffle_window}")
        _check(self.chunk_samples >= 1, f"chunk_samples must be at least 1, got {self.chunk_samples}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """What changes at a position; everything else goes on as before."""

    start: int
    """Position (samples of the whole job) from which it holds: a multiple of the global batch."""
    weights: dict[str, float] = field(default_factory=dict)
    """New weights by the name of the source; 0 = the source rests from here on."""
    lanes: int = 0
    """New number of lanes; 0 = as before."""

    def __post_init__(self) -> None:
        _check(self.start > 0, f"start must be over 0, got {self.start}: what holds from 0 on is in `sources`")
        _check(self.start < MAX_POSITION, f"start must be under 2**62, got {self.start}")
        _check(bool(self.weights or self.lanes), f"segment from {self.start} changes nothing: give weights or lanes")
        _check(0 <= self.lanes <= MAX_LANES, f"lanes must be 1..{MAX_LANES}, got {self.lanes}")
        for name, weight in self.weights.items():
            _check(0 <= weight < float("inf"), f"weights.{name} must be at least 0, got {weight}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Everything that decides which sample stands where, and how it is delivered."""

    seed: int = 0
    """Seed of the order and of every crop and flip."""
    sources: tuple[Source, ...]
    """The datasets, with their weights."""
    lanes: int = 16
    """The world size divides the lanes and the lanes divide the global batch."""
    segments: tuple[Segment, ...] = ()
    """What changes in mid-run, by ascending position: weights, sources that begin or rest, lanes."""
    image_size: int = 224
    """Side of the delivered square, pixels."""
    preset: Literal["", "aim", "moco_v3", "byol", "simclr", "swav", "clip", "simmim", "eval"] = ""
    """Short for the `augment` and `views` of a paper; `augment` keys beside it change all its views."""
    augment: Augment = Augment()  # noqa: RUF009 (frozen)
    """How a picture becomes the delivered square."""
    views: tuple[View, ...] = ()
    """Views of every picture, decoded once: two crops, many small ones. Empty = one, of `image_size` and `augment`."""
    decoder: str = "auto"
    """What decodes: `turbo` is libjpeg-turbo in threads, `dali` NVIDIA DALI in batches, `none` delivers the bytes;
    extensions may add others. `auto`: that of the state loaded, else `dali` on a CUDA device where it works, else
    `turbo`."""
    hw_decoder_load: float = 1.0
    """For `dali` on a CUDA device: the share of a batch's JPEGs that the hardware decoder gets, 0 to 1. In between, the
    pixels of a sample depend on its place in the batch, by a level here and there."""
    resizer: Literal["auto", "fast", "pillow"] = "auto"
    """What resizes for `turbo`; they differ by one level. `auto`: that of the state loaded, else `fast` if it works."""
    jpeg_scaling: Literal["off", "on"] = "off"
    """`on`: large JPEGs are decoded at 1/2, 1/4 or 1/8 where every window stays large enough; faster, not exact."""
    jpeg_scaling_margin: float = 1.5
    """So many times the delivered side a window keeps at least, each way, in the picture that is scaled."""
    jpeg_regions: bool = True
    """Decode only the rows and columns of a JPEG that its windows need; the pixels are those of the whole, bit by bit.
    A fault elsewhere in the file then goes unnoticed. Where the library for it is missing, whole JPEGs are decoded."""
    memory_bytes: int = 4 << 30
    """Most compressed bytes in flight, on one rank."""
    max_bad_fraction: float = 0.01
    """Share of damaged samples that is accepted. Stop when so many were damaged that chance does not explain it."""
    max_bad_consecutive: int = 100
    """Stop after so many damaged samples in a row."""
    quarantine: str = ""
    """File (JSON lines) that names each damaged sample; rank N of several writes FILE.N. Empty = none."""
    verify_crc: bool = True
    """Check each image against the index before decoding; costs a few hundredths of decoding."""
    max_pixels: int = 64 << 20
    """Larger images are refused from their header."""
    decode_threads: int = 0
    """0 = as many as this process may use cores, divided by the ranks on its host (`LOCAL_WORLD_SIZE`).
    With `dali` those of DALI's own pool."""
    io_threads: int = 8
    """Reads in flight."""
    prefetch_batches: int | None = None
    """Batches kept ready; null = as many as take 256 MiB of pixels, at least 2 and at most 16."""
    read_timeout_seconds: float = 30.0
    """A read that brings nothing for so long is tried again."""
    read_patience_seconds: float = 300.0
    """How long a read may go on failing (a server restarts, a link drops) before it stops the run."""
    read_retries: int | None = None
    """If given, a read stops the run after so many tries more, however long they took."""
    slow_read_seconds: float = 10.0
    """A read under way for so long is named in the log, with the bytes that have come; again after twice as long."""
    hedge_reads: Literal["off", "on"] = "off"
    """Ask a second time for what takes longer than 99 of 100 reads from afar did; the first answer counts."""
    cache_dir: str = ""
    """Local folder that keeps what was read from afar, for all processes of this machine. Empty = none."""
    cache_bytes: int = 64 << 30
    """Most bytes that the files in `cache_dir` take; what was not used for longest makes room."""
    index_cache: str = "auto"
    """Local folder that keeps what streams need of each index, so that no index is parsed twice. `auto` is
    `headrace/indexes` in the user's cache folder, `none` keeps nothing."""
    index_cache_bytes: int = 20 << 30
    """Most bytes in `index_cache`, some 45 a sample; what was not used for longest makes room."""

    written_out = staticmethod(written_out)

    def __post_init__(self) -> None:
        if self.preset:
            self._write_out_preset()
        _check(0 < len(self.sources) <= MAX_SOURCES, f"sources must be 1..{MAX_SOURCES}, got {len(self.sources)}")
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        _check(not twice, f"two sources are named {', '.join(twice)}")
        _check(1 <= self.lanes <= MAX_LANES, f"lanes must be 1..{MAX_LANES}, got {self.lanes}")
        _check(1 <= self.image_size <= MAX_IMAGE_SIZE, f"image_size must be 1..{MAX_IMAGE_SIZE}, got {self.image_size}")
        _check(sum(view.count for view in self.views) <= MAX_VIEWS, f"views must be at most {MAX_VIEWS}")
        first = self.views[0].image_size if self.views else 0
        _check(
            first in (0, self.image_size),
            f"views.0.image_size is {first}, image_size {self.image_size}: the first view is what `images` holds, "
            "so leave it out there",
        )
        _check_decoder(self.decoder)
        _check(
            not self.views or self.decoder != NO_DECODER,
            f"views: decoder {NO_DECODER} delivers bytes, of which there is one view; leave views out",
        )
        _check(0 <= self.hw_decoder_load <= 1, f"hw_decoder_load must be 0..1, got {self.hw_decoder_load}")
        _check_index_dirs(self.sources)
        self._check_segments()
        _check(self.jpeg_scaling_margin >= 1, f"jpeg_scaling_margin must be at least 1, got {self.jpeg_scaling_margin}")
        _check(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction must be 0..1, got {self.max_bad_fraction}")
        _check("://" not in self.quarantine, f"quarantine must be a local file, got {self.quarantine}")
        _check(self.slow_read_seconds > 0, f"slow_read_seconds must be over 0, got {self.slow_read_seconds}")
        _check("://" not in self.cache_dir, f"cache_dir must be a local folder, got {self.cache_dir}")
        _check(
            bool(self.index_cache) and "://" not in self.index_cache,
            f"index_cache must be auto, none or a local folder, got {self.index_cache!r}",
        )
        _check(self.read_timeout_seconds > 0, f"read_timeout_seconds must be over 0, got {self.read_timeout_seconds}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            _check(value is None or value >= least, f"{name} must be at least {least}, got {value}")

    def _write_out_preset(self) -> None:
        """Put the preset's values where a file's are put by `written_out`: there is one way to say them from here on.

        A file's own keys are known there; here a value may be a default, so that both are refused.
        """
        views = preset_views(self.preset, image_size=self.image_size)
        many = sum(view.count for view in views) > 1
        _check(
            self.augment == Augment() and not (many and self.views),
            f"preset {self.preset} gives augment and views: take views=preset_views({self.preset!r}, flip=False) "
            "to change its augments",
        )
        first = views[0].augment
        assert first is not None
        for name, value in {"preset": "", "augment": first, "views": views if many else self.views}.items():
            object.__setattr__(self, name, value)

    def _beginnings(self) -> dict[str, int]:
        """Return the number of the segment in which each source begins; 0 = at once."""
        begins = {source.name: 0 for source in self.sources if source.weight}
        for number, segment in enumerate(self.segments, 1):
            begins = {name: number for name, weight in segment.weights.items() if weight} | begins
        return begins

    def _check_segments(self) -> None:
        names = [source.name for source in self.sources]
        weights = {source.name: source.weight for source in self.sources}
        _check(len(self.segments) <= MAX_SEGMENTS, f"segments must be at most {MAX_SEGMENTS}, got {len(self.segments)}")
        _check(any(weights.values()), "every source has weight 0: one must begin at once")
        last = 0
        for number, segment in enumerate(self.segments):
            where = f"segments.{number}"
            _check(segment.start > last, f"{where}.start is {segment.start}, not behind {last}: order them by position")
            unknown = [name for name in segment.weights if name not in weights]
            _check(not unknown, f"{where}.weights: no source is named {', '.join(unknown)}; known: {', '.join(names)}")
            weights |= segment.weights
            _check(any(weights.values()), f"{where}: every source has weight 0 from position {segment.start} on")
            last = segment.start
        begins = self._beginnings()
        never = [name for name in names if name not in begins]
        _check(not never, f"source {', '.join(map(repr, never))}: weight 0, and no segment changes it: leave it out")
        _check_places(names, begins)

    @property
    def patience(self) -> Patience:
        """How long reads go on failing before they stop the run."""
        seconds = self.read_patience_seconds if self.read_retries is None else 0.0
        return Patience(timeout_seconds=self.read_timeout_seconds, retries=self.read_retries or 0, seconds=seconds)


def _check_places(names: list[str], begins: dict[str, int]) -> None:
    """Refuse a source that stands in front of one which begins earlier: numbers and order of a run would change."""
    known = [name for name in names if name in begins]
    for name, following in itertools.pairwise(known):
        _check(
            begins[name] <= begins[following],
            f"source {name!r} begins in a later segment than {following!r}: put it behind that in `sources`",
        )


def _check_index_dirs(sources: tuple[Source, ...]) -> None:
    """Refuse two lots of tars that keep their index in one folder: each opening would throw the other's away."""
    from headrace.shards.foreign.unindexed import names_tars  # loads what makes an index

    kept: dict[str, Source] = {}
    for source in sources:
        if source.index_dir and names_tars(source.url):
            first = kept.setdefault(source.index_dir, source)
            _check(
                first.url == source.url,
                f"sources {first.name!r} and {source.name!r} keep the index of different tars in one index_dir, "
                f"{source.index_dir}: give each its own",
            )


def _check_decoder(name: str) -> None:
    from headrace.pipeline.decode import AUTO, decoder_types  # the decoders know what a mixture is

    known = [AUTO, *decoder_types()]
    _check(name in known, f"decoder: unknown {shown(name)}; {known_words(name, known)}")


_LEAST = {
    "memory_bytes": 1,
    "max_bad_consecutive": 1,
    "max_pixels": 1,
    "decode_threads": 0,
    "io_threads": 1,
    "prefetch_batches": 1,
    "cache_bytes": MIN_CACHE_BYTES,
    "index_cache_bytes": 1 << 20,
    "read_patience_seconds": 0,
    "read_retries": 0,
}
