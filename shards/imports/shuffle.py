"""A shuffle of inputs that can be read forwards only: rows of parquet files, tars on a server.

One row of a parquet file costs its whole row group, so to pick a thousand at random for each shard would read all of
the source for each. Instead the source is read once, into OUT/spool, and a shard picks its inputs there. The spool
needs as much disk as the source's images for as long as the import runs.

A file of the spool holds one run of inputs: their images, then one line of JSON an input, sorted by the shard it goes
to, then for each shard where its lines begin (int64), and where the last line ends.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from headrace import atomic, files, urlpath
from headrace.shards.imports.source import Input, Source, SourceUnit
from headrace.shards.permutation import make_key, permute
from headrace.shards.units import EngineConfig, run_units

INPUTS_PER_FILE = 1000
_FOLDER = "spool"

IntArray = NDArray[np.int64]


def places_of(inputs: IntArray, num_inputs: int, seed: int) -> IntArray:
    """Return where inputs stand after the shuffle that `seed` names."""
    return permute(inputs, num_inputs, make_key(seed, "import"))


def order_of(num_inputs: int, seed: int | None) -> Sequence[int] | IntArray:
    """Return which input stands at each place; without a seed, the input itself."""
    if seed is None:
        return range(num_inputs)
    return np.argsort(places_of(np.arange(num_inputs, dtype=np.int64), num_inputs, seed))


@dataclass(frozen=True, slots=True)
class Spool:
    """The inputs of a source, spread by the shards that they go to."""

    out: str
    num_inputs: int
    per_shard: int
    seed: int

    @property
    def num_shards(self) -> int:
        """Output shards."""
        return -(-self.num_inputs // self.per_shard)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the spool."""
        count = -(-self.num_inputs // INPUTS_PER_FILE)
        return tuple(urlpath.join(self.out, _FOLDER, f"{number:06d}") for number in range(count))

    def fill(self, source: Source, engine: EngineConfig) -> None:
        """Read the source forwards once; what an earlier, killed run spread is kept."""
        fills = []
        for number, url in enumerate(self.files):
            if not files.exists(url):
                first = number * INPUTS_PER_FILE
                inputs = source.unit(range(first, min(first + INPUTS_PER_FILE, self.num_inputs)))
                fills.append(_Fill(self, url, inputs, first))
        run_units(_spread, fills, engine)

    def shard(self, number: int) -> "SpooledUnit":
        """Return the inputs of one output shard."""
        return SpooledUnit(self.files, number, self.num_shards)

    def remove(self) -> None:
        """Remove the files."""
        for url in self.files:
            atomic.remove(url)
        atomic.remove_leftovers(urlpath.join(self.out, _FOLDER))
        if urlpath.is_local(self.out) and files.exists(urlpath.join(self.out, _FOLDER)):
            urlpath.local_path(urlpath.join(self.out, _FOLDER)).rmdir()


@dataclass(frozen=True, slots=True)
class SpooledUnit:
    """The inputs of one output shard, in its order."""

    files: tuple[str, ...]
    shard: int
    num_shards: int

    def read(self) -> Iterator[Input]:
        """Yield the inputs in order."""
        found: list[tuple[int, str, int, int | None, dict[str, object]]] = []
        for url in self.files:
            trailer = files.size_of(url) - 8 * (self.num_shards + 1)
            start, stop = np.frombuffer(files.read_range(url, trailer + 8 * self.shard, 16), "<i8").tolist()
            for line in files.read_range(url, start, stop - start).splitlines() if stop > start else ():
                place, offset, size, fields = json.loads(line)
                found.append((place, url, offset, size, fields))
        for _, url, offset, size, fields in sorted(found, key=lambda item: item[0]):
            image = None if size is None else files.read_range(url, offset, size) if size else b""
            yield Input(image=image, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Fill:
    spool: Spool
    url: str
    inputs: SourceUnit
    first: int

    @property
    def name(self) -> str:
        return f"inputs from {self.first}"


def _spread(fill: _Fill) -> None:
    """Write one file of the spool."""
    spool, lines = fill.spool, dict[int, list[str]]()
    run = np.arange(fill.first, min(fill.first + INPUTS_PER_FILE, spool.num_inputs), dtype=np.int64)
    places = places_of(run, spool.num_inputs, spool.seed).tolist()
    with atomic.atomic_file(fill.url) as path, path.open("wb") as file:
        for place, item in zip(places, fill.inputs.read(), strict=True):
            offset, size = file.tell(), None if item.image is None else len(item.image)
            file.write(item.image or b"")
            fields = {name: value for name, value in asdict(item).items() if name != "image"}
            lines.setdefault(place // spool.per_shard, []).append(json.dumps([place, offset, size, fields]))
        begins = []
        for shard in range(spool.num_shards):
            begins.append(file.tell())
            file.write("".join(f"{line}\n" for line in lines.get(shard, ())).encode())
        file.write(np.array([*begins, file.tell()], "<i8").tobytes())
