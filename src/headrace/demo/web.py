"""What stands on the small web, and what must become of each thing: the truth that the table is checked against.

Invariant: a site is a pure function of its seed; only ports and one local path enter later, when its addresses are
filled in. The one thing a reader would get wrong: nothing outside this package knows the truth. The run uses it in one
place, the size of the cut, and afterwards in the table.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pdqhash
from PIL import Image

from headrace.demo.scenes import Pixels, Scene, caption, draw, draw_attributes, generator
from headrace.shards.permutation import make_key, permute

# Two different pictures of the small web are at least this far apart in PDQ's 256 bits: the defaults link up to 31.
MIN_DISTANCE = 56
MAX_TRIES = 50

# Outcomes that count as the fault having been found, beside the names of the steps of the recipe.
CLEANED = "cleaned"
BLURRED = "blurred"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """How the server answers one path."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "image/jpeg"),)
    """Values may hold `{server}`, `{private}` and the like."""
    manner: str = "plain"
    """`plain`, `chunked` (no length), `cut` (closes half way), `endless` (never stops) or `drip` (over `seconds`)."""
    seconds: float = 0.0
    failures: int = 0
    """This many first requests are answered 503."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row of the URL list and what must become of it."""

    url: str
    """May hold `{server}`, `{slow}`, `{closed}`, `{private}` (host:port) and `{secret}` (a local path)."""
    caption: str
    kind: str
    fault: bool
    """True: planted, to be found. False: a near-miss, to survive."""
    found_by: tuple[str, ...] = ()
    """Steps (`fetch:REASON` for a class of failure) that count as finding the fault, or CLEANED, BLURRED."""
    reply: Reply | None = None
    """None where nobody may ever ask."""
    group: str = ""
    """Two entries of one group show one picture; either may be the one that is kept."""
    pixels: Pixels | None = None
    """The upright picture, where the built sample is compared with it."""
    face_box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1 as fractions of the upright picture."""

    @property
    def path(self) -> str:
        """The path on the server, without the query."""
        return "/" + self.url.split("//", 1)[1].split("/", 1)[1] if "//" in self.url else ""

    @property
    def reaches_the_cut(self) -> bool:
        """True if a faultless curation ranks this row by score."""
        if not self.fault:
            return True
        return (
            bool({"top_fraction", "near_duplicates", CLEANED, BLURRED} & set(self.found_by))
            and self.kind != "copy_exact"
        )

    @property
    def is_true_pair(self) -> bool:
        """True if the caption belongs to the image."""
        return self.kind != "wrong_caption"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The whole small web."""

    seed: int
    entries: tuple[Entry, ...]
    """In the order of the URL list."""
    evaluation: tuple[tuple[str, bytes], ...]
    """(file name, bytes) of the held-out images."""
    secret: bytes
    """An image for the local path that `file://` URLs name; it must never be read."""

    @property
    def true_share(self) -> float:
        """Share of true pairs among the rows that reach the cut if nothing goes wrong before it."""
        ranked = [entry for entry in self.entries if entry.reaches_the_cut]
        return sum(entry.is_true_pair for entry in ranked) / len(ranked)

    def rows(self, addresses: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return (url, caption) with the addresses filled in."""
        return [(filled(entry.url, addresses), entry.caption) for entry in self.entries]


class Planner:
    """Collects entries; hands out pictures that no two entries share by accident."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.entries: list[Entry] = []
        self.evaluation: list[tuple[str, bytes]] = []
        self._hashes: list[np.ndarray] = []
        self._count = 0

    def rng(self, name: str) -> np.random.Generator:
        """Return the next generator; every call gives another."""
        self._count += 1
        return generator(self.seed, "web", name, self._count)

    def picture(self, name: str, make: Callable[[np.random.Generator], Pixels]) -> Pixels:
        """Return the first picture `make` gives that is far from every earlier one, mirrored too."""
        for _ in range(MAX_TRIES):
            pixels = make(self.rng(name))
            found = [pdq(pixels), pdq(pixels[:, ::-1])]
            if all(distance(item, other) >= MIN_DISTANCE for item in found for other in self._hashes):
                self._hashes.append(found[0])
                return pixels
        raise ValueError(f"seed {self.seed}: no new picture for {name} in {MAX_TRIES} tries; choose another seed")

    def scene(
        self, name: str, scene: Scene | None = None, *, size: tuple[int, int] | None = None
    ) -> tuple[Scene, Pixels]:
        """Return a scene and its picture."""
        scene = scene or draw_attributes(self.rng(name))
        width, height = size or random_size(self.rng(name))
        return scene, self.picture(name, lambda rng: draw(scene, rng, width=width, height=height))

    def caption(self, scene: Scene) -> str:
        """Return a true caption of `scene`."""
        return caption(self.rng("caption"), scene)

    def url(self, kind: str, extension: str = "jpg", *, host: str = "server") -> str:
        """Return a new address. Its path says nothing of the truth."""
        self._count += 1
        name = f"{make_key('path', self.seed, kind, self._count):016x}"
        return f"http://{{{host}}}/{name[:2]}/{name[2:]}.{extension}"

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self.entries.append(entry)

    def finish(self, secret: bytes) -> Site:
        """Return the site, its rows in an order that says nothing of the truth."""
        count = len(self.entries)
        places = permute(np.arange(count, dtype=np.int64), count, make_key("rows", self.seed))
        entries = tuple(self.entries[int(place)] for place in places)
        return Site(seed=self.seed, entries=entries, evaluation=tuple(self.evaluation), secret=secret)


def filled(text: str, addresses: Mapping[str, str]) -> str:
    """Return `text` with every `{name}` of `addresses` replaced."""
    for name, value in addresses.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return a width and height of 96 to 200 pixels, one in ten up to 400."""
    scale = 2 if rng.random() < 0.1 else 1
    width, height = (int(value) * scale for value in rng.integers(96, 201, 2))
    return width, height


def pdq(pixels: Pixels) -> np.ndarray:
    """Return the PDQ hash of the picture brought to 256 x 256, as 256 bits."""
    square = np.asarray(Image.fromarray(pixels).resize((256, 256), Image.Resampling.BOX))
    return np.asarray(pdqhash.compute(square)[0], np.uint8)


def distance(left: np.ndarray, right: np.ndarray) -> int:
    """Return the number of differing bits."""
    return int((left != right).sum())


def plan_site(seed: int) -> Site:
    """Return the small web of `seed`."""
    from headrace.demo.faults import plan_faults
    from headrace.demo.pictures import plan_pictures

    planner = Planner(seed)
    plan_pictures(planner)
    plan_faults(planner)
    return planner.finish(secret_image(planner))


def secret_image(planner: Planner) -> bytes:
    """Return an image that would pass every check, had it not been on a local disk."""
    from headrace.demo.encode import encode

    return encode(planner.scene("secret")[1])
