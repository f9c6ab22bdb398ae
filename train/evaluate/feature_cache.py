"""Features of a dataset on disk: float16, in committed pieces, mapped into memory where they are read.

    DIR/KEY/features.json        what they are of; KEY is its digest, so other weights or pictures have another folder
    DIR/KEY/00000000.f16         rows of consecutive places, [rows, S, L, D] or pooled [rows, S, D]
    DIR/KEY/00000000.json        written after it: its sha256, and the places that are damaged

A killed process loses the piece it was at. Whoever opens a cache compares every sum; a piece that differs is made anew.
"""

# S sets of blocks, L tokens, D width, N places of the dataset

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.atomic import atomic_file, remove_leftovers, write_atomic
from headrace.config import canonical_json
from headrace.files import sha256_of
from headrace.lease import only_writer
from headrace.train.evaluate.features import FeaturesConfig, as_half, iterate_features, num_wanted, open_pass
from headrace.train.evaluate.trunk import FrozenTrunk
from headrace.train.parallel.precision import uses_bf16
from headrace.train.parallel.ranks import Ranks

PIECE_BYTES = 256 << 20
MAX_PIECE_ROWS = 2048
HASHING_THREADS = 4
WAITING = "a cache of features"
VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """How the features of one dataset lie in files."""

    samples: int
    """Places, with the damaged ones, whose rows are 0."""
    row_shape: tuple[int, ...]
    """[S, L, D], or pooled [S, D]."""
    piece_rows: int
    """Rows of one file; the last one has fewer."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one place."""
        return 2 * math.prod(self.row_shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pieces."""
        return self.samples * self.row_bytes

    @property
    def num_pieces(self) -> int:
        """Number of files."""
        return -(-self.samples // self.piece_rows)

    def places(self, piece: int) -> range:
        """Return the places of one piece."""
        return range(piece * self.piece_rows, min((piece + 1) * self.piece_rows, self.samples))


def cache_shape(row_shape: tuple[int, ...], samples: int, images_per_batch: int) -> CacheShape:
    """Return the layout for rows of this shape: pieces of whole batches, about `PIECE_BYTES` each."""
    rows = min(MAX_PIECE_ROWS, PIECE_BYTES // (2 * math.prod(row_shape)))
    return CacheShape(
        samples=samples, row_shape=row_shape, piece_rows=max(1, rows // images_per_batch) * images_per_batch
    )


class FeatureCache:
    """The whole features of one dataset, a `Store` for every process that can read the folder."""

    def __init__(self, folder: Path, shape: CacheShape, has_N: NDArray[np.bool_], ranks: Ranks) -> None:
        self.folder, self.shape, self.has_N = folder, shape, has_N
        self._ranks = ranks

    def own(self, place_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return every `size`-th of the places: any process reads any of them."""
        return place_B[self._ranks.rank :: self._ranks.size]

    def read(self, place_B: NDArray[np.int64]) -> list[Tensor]:
        """Return float16 features of each set of blocks.

        A piece is mapped for as long as its rows are copied, so what was read before takes none of this process's
        memory.
        """
        rows = np.empty((len(place_B), *self.shape.row_shape), np.float16)
        piece_B = place_B // self.shape.piece_rows
        for piece in np.unique(piece_B).tolist():
            here = np.flatnonzero(piece_B == piece)
            mapped = np.memmap(
                _piece(self.folder, piece),
                np.float16,
                "r",
                shape=(len(self.shape.places(piece)), *self.shape.row_shape),
            )
            rows[here] = mapped[place_B[here] - piece * self.shape.piece_rows]
        return [torch.from_numpy(rows[:, which]).contiguous() for which in range(self.shape.row_shape[0])]


def open_cache(root: Path, trunk: FrozenTrunk, url: str, config: FeaturesConfig, ranks: Ranks) -> FeatureCache:
    """Return the features of a dataset, made where they are not there yet; each process makes a part of them.

    Called on all ranks, which see one folder. Raises ValueError where the disk has not the room, or another command
    writes them.
    """
    facts, samples = features_facts(trunk, url, config)
    row_shape = (len(config.layer_sets), *config.row_shape(trunk.encoder.shape))
    shape = cache_shape(row_shape, samples, config.images_per_batch)
    facts["piece_rows"] = shape.piece_rows
    folder = root / hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:32]
    missing = _missing(folder, shape, share(shape.num_pieces, ranks.rank, ranks.size))
    if ranks.is_first:
        log.info("cache %s: %s bytes of features of %s", folder, f"{shape.num_bytes:,}", url)
    with contextlib.ExitStack() as stack:
        # What is whole is read by any number of commands; one writes.
        if not ranks.sum([len(missing)], WAITING)[0]:
            return FeatureCache(folder, shape, _has(folder, shape), ranks)
        if ranks.is_first:
            stack.enter_context(only_writer(str(folder)))
            remove_leftovers(str(folder))
            write_atomic(str(folder / "features.json"), (json.dumps(facts, indent=1) + "\n").encode())
        ranks.wait(WAITING)
        # Another command may have made some until it let go of the folder.
        missing = [piece for piece in missing if not _is_whole(folder, shape, piece, silent=True)]
        rows = sum(len(shape.places(piece)) for piece in missing)
        _check_room(folder, int(ranks.sum([rows], WAITING)[0]) * shape.row_bytes)
        for run in runs_of(missing):
            _make(folder, shape, run, trunk=trunk, url=url, config=config)
        ranks.wait(WAITING)
    return FeatureCache(folder, shape, _has(folder, shape), ranks)


def features_facts(trunk: FrozenTrunk, url: str, config: FeaturesConfig) -> tuple[dict[str, Any], int]:
    """Return what decides the values, as JSON-able data, and the number of places."""
    with contextlib.closing(open_pass(url, trunk.encoder.shape, config)) as stream:
        samples = num_wanted(stream, config)
        # The sums of the shards are in the state of the stream, and how pictures are cut, resized and decoded.
        pictures = {name: value for name, value in stream.state_dict().items() if name != "global_batch"}
        shards = stream.sources[0].digest()
    facts = {
        "version": VERSION,
        "weights": trunk.digest(),
        "shards": shards,
        "pictures": pictures,
        "layers": [list(layers) for layers in config.layer_sets],
        "pooled": config.pooled,
        "samples": samples,
        "bf16": uses_bf16("auto", trunk.device),
    }
    return facts, samples


def share(total: int, number: int, of: int) -> range:
    """Return which of `total` pieces are those of process `number` among `of`."""
    first, last = (total * each // of for each in (number, number + 1))
    return range(first, last)


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{folder}: the features take {need:,} bytes more, {free:,} are free there; name another folder, "
            "pool them (a linear head), or leave the cache out: the trunk then runs in every epoch"
        )


def _missing(folder: Path, shape: CacheShape, pieces: range) -> list[int]:
    """Return the pieces that are not there, or are not what was committed; of the latter with a warning."""
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        whole = pool.map(lambda piece: _is_whole(folder, shape, piece), pieces)
        return [piece for piece, good in zip(pieces, whole, strict=True) if not good]


def _is_whole(folder: Path, shape: CacheShape, piece: int, *, silent: bool = False) -> bool:
    path = _piece(folder, piece)
    record = _record(folder, piece)
    if record is None:
        return False
    if not path.is_file() or path.stat().st_size != len(shape.places(piece)) * shape.row_bytes:
        fault = "is not there with all its bytes"
    elif sha256_of(str(path)) != record.get("sha256"):
        fault = "its sha256 is another than when it was written"
    else:
        return True
    if not silent:
        log.warning("%s: %s; it is made anew", path, fault)
    return False


def runs_of(pieces: list[int]) -> Iterator[range]:
    """Yield consecutive pieces together: the stream is opened once for each."""
    start = 0
    for end in range(1, len(pieces) + 1):
        if end == len(pieces) or pieces[end] != pieces[end - 1] + 1:
            yield range(pieces[start], pieces[end - 1] + 1)
            start = end


def _make(folder: Path, shape: CacheShape, run: range, *, trunk: FrozenTrunk, url: str, config: FeaturesConfig) -> None:
    """Write consecutive pieces, each committed before the next one begins."""
    places = range(shape.places(run[0]).start, shape.places(run[-1]).stop)
    batches = iterate_features(trunk, url, config, part=places)
    batch = next(batches, None)
    for piece in run:
        here = shape.places(piece)
        rows = np.zeros((len(here), *shape.row_shape), np.float16)
        whole_N = np.zeros(len(here), np.bool_)
        # Pieces are whole batches, so that none lies in two.
        while batch is not None and batch.place_B[0] < here.stop:
            inside = batch.place_B - here.start
            whole_N[inside] = True
            for which, x in enumerate(batch.sets):
                rows[inside, which] = as_half(x, url).cpu().numpy()
            batch = next(batches, None)
        _commit(folder, piece, rows, (np.flatnonzero(~whole_N) + here.start).tolist())


def _commit(folder: Path, piece: int, rows: NDArray[np.float16], damaged: list[int]) -> None:
    data = rows.reshape(-1).view(np.uint8).data
    with atomic_file(str(_piece(folder, piece))) as path:
        path.write_bytes(data)
    record = {"sha256": hashlib.sha256(data).hexdigest(), "damaged": damaged}
    write_atomic(str(_piece(folder, piece).with_suffix(".json")), json.dumps(record).encode())


def _has(folder: Path, shape: CacheShape) -> NDArray[np.bool_]:
    has_N = np.ones(shape.samples, np.bool_)
    for piece in range(shape.num_pieces):
        record = _record(folder, piece)
        if record is None:
            raise ValueError(f"{_piece(folder, piece)}: is not there; every process must see one folder")
        has_N[record["damaged"]] = False
    return has_N


def _record(folder: Path, piece: int) -> dict[str, Any] | None:
    try:
        record = json.loads(_piece(folder, piece).with_suffix(".json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("damaged"), list) else None


def _piece(folder: Path, piece: int) -> Path:
    return folder / f"{piece:08d}.f16"
