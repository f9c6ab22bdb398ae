"""`headrace features`: features of a whole dataset as files that any program reads.

    FOLDER/features.json            what they are of
    FOLDER/00000000.parquet         rows of consecutive places: place, key, columns of the index, features

A folder is the result itself. For a `.parquet` or `.npy` file it stands beside it until all pieces are there, is joined
and removed. A piece is there whole or not at all, and its bytes follow from weights, dataset and options alone: a
killed process loses the piece it was at, and what it wrote in the end is what an undisturbed one writes.
"""

# S sets of blocks, L tokens, D width, N rows

import contextlib
import json
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from headrace.atomic import remove_leftovers, write_atomic
from headrace.lease import only_writer
from headrace.pipeline.augment.config import INTERPOLATIONS, Interpolation
from headrace.shards.columns import with_own_values
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.parquet import write_parquet
from headrace.text import without_secrets
from headrace.train.evaluate.feature_cache import features_facts, runs_of, share
from headrace.train.evaluate.feature_join import join_pieces
from headrace.train.evaluate.features import FeatureRows, FeaturesConfig, as_half, iterate_features, keys_at
from headrace.train.evaluate.trunk import FrozenTrunk, open_trunk, read_layers
from headrace.train.parallel.ranks import join_ranks

PIECE_BYTES = 64 << 20
VERSION = 1
MANIFEST = "features.json"
LABEL = "label"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesConfig:
    """Which features of a dataset are written, and beside what."""

    out: str
    """A `.parquet` or `.npy` file, or a folder."""
    layers: tuple[str, ...] = ("last6",)
    """Sets of blocks whose outputs are averaged: lastN, all, or numbers such as 3,4,5; each is a column of its own."""
    tokens: bool = False
    """Keep every token; else their mean."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the numbers."""
    columns: tuple[str, ...] | None = None
    """Columns of the index beside them; None = label, where there is one."""
    samples: int = 0
    """The first of the dataset; 0 = all."""
    untrained: bool = False
    """Fresh weights from the run's seed."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224)."""
    interpolation: Interpolation = "bilinear"
    """How a picture is resized."""
    images_per_batch: int = 256
    """Images that go through the trunk at once, of one process."""

    def __post_init__(self) -> None:
        if self.images_per_batch < 1 or self.samples < 0 or not self.layers:
            raise ValueError("images_per_batch must be at least 1, samples at least 0, layers not empty")
        if not 0 < self.center_fraction <= 1:
            raise ValueError(f"center_fraction must be within 0..1, got {self.center_fraction}")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers: one is given twice: {', '.join(self.layers)}")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype: unknown {self.dtype!r}; known: float16, float32")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: unknown {self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
        if "://" in self.out:
            raise ValueError(f"out must be a local file or folder, got {self.out}")

    @property
    def is_folder(self) -> bool:
        """True if the pieces are the result."""
        return Path(self.out).suffix not in (".parquet", ".npy")

    @property
    def folder(self) -> Path:
        """Where pieces lie."""
        return Path(self.out) if self.is_folder else Path(f"{self.out}.pieces")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of features."""
        if len(self.layers) == 1:
            return ("features",)
        return tuple(f"features_{text.replace(',', '-')}" for text in self.layers)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureJob:
    """Everything that decides the files."""

    trunk: FrozenTrunk
    url: str
    config: FilesConfig
    wanted: FeaturesConfig
    samples: int
    piece_rows: int
    manifest: dict[str, Any]
    """Of the whole, but for what is known at the end."""

    @property
    def num_pieces(self) -> int:
        """Files of a whole folder."""
        return -(-self.samples // self.piece_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the features."""
        return self.samples * _row_bytes(self.trunk, self.wanted, self.config)

    def path(self, piece: int) -> Path:
        """Return the file of a piece."""
        return self.config.folder / f"{piece:08d}.parquet"

    def places(self, piece: int) -> range:
        """Return the places of a piece."""
        return range(piece * self.piece_rows, min((piece + 1) * self.piece_rows, self.samples))

    def missing(self, pieces: range) -> list[int]:
        """Return the pieces that are not there."""
        return [piece for piece in pieces if not self.path(piece).is_file()]


def write_features(
    checkpoint: Path, url: str, config: FilesConfig, *, part: tuple[int, int] = (0, 1), device: str = "auto"
) -> dict[str, Any]:
    """Write the features of a dataset, or go on where a killed process was; return what is there, as JSON-able data.

    Under torchrun each process makes its share; with `part` (i, n) this command makes the i-th of n shares, and the
    last one to end joins them. Raises ValueError where other features lie at `out`, OSError where there is no room.
    """
    with join_ranks(device) as ranks:
        trunk = open_trunk(checkpoint, untrained=config.untrained, device=ranks.device)
        job = plan_features(trunk, url, config)
        # Rank 0 looks for all, as another part may end at this moment.
        if ranks.from_first(_is_finished(job), "the features that are there"):
            if ranks.is_first and not config.is_folder:
                _remove_pieces(job)  # of a process that was killed behind the join
            return {"finished": True, **_facts(job)}
        mine = share(job.num_pieces, part[0] * ranks.size + ranks.rank, part[1] * ranks.size)
        with ranks.first_writes("the folder of features") as writes:
            if writes:
                _begin(job, mine if part[1] > 1 else range(job.num_pieces))
        for run in runs_of(job.missing(mine)):
            _make(job, run)
        ranks.wait("the features")
        # Rank 0 looks for all: a moment later the joined pieces are gone.
        missing = ranks.from_first(0 if _is_finished(job) else len(job.missing(range(job.num_pieces))))
        if not missing:
            with ranks.first_writes("the joined features") as writes:
                if writes:
                    _finish(job)
    return {"finished": not missing, "missing_pieces": missing, **_facts(job)}


def plan_features(trunk: FrozenTrunk, url: str, config: FilesConfig) -> FeatureJob:
    """Return what is to be made. Raises ValueError for a column or blocks that are not there."""
    layers = [read_layers(text, trunk.encoder) for text in config.layers]
    columns = config.columns
    if columns is None:
        columns = (LABEL,) if LABEL in _index_schema(open_dataset(url)).names else ()
    wanted = FeaturesConfig(
        layers=layers[0],
        more_layers=tuple(layers[1:]),
        pooled=not config.tokens,
        samples=config.samples,
        center_fraction=config.center_fraction,
        interpolation=config.interpolation,
        images_per_batch=config.images_per_batch,
        columns=columns,
    )
    facts, samples = features_facts(trunk, url, wanted)
    if not samples:
        raise ValueError(f"{url} has no samples")
    batches = PIECE_BYTES // _row_bytes(trunk, wanted, config) // config.images_per_batch
    piece_rows = max(1, batches) * config.images_per_batch
    manifest = {
        **{"version": VERSION, "checkpoint": str(trunk.path), "step": trunk.step},
        **{"objective": trunk.model.objective.kind, "weights_sha256": facts.pop("weights")},
        **{"dataset": without_secrets(url), "shards_digest": facts.pop("shards"), "samples": samples},
        **{"layers": dict(zip(config.names, map(list, layers), strict=True)), "tokens": config.tokens},
        **{"shape": list(wanted.row_shape(trunk.encoder.shape)), "dtype": config.dtype, "columns": list(columns)},
        **{"image_size": trunk.image_size, "center_fraction": config.center_fraction},
        **{"interpolation": config.interpolation},
        **{"pixel_mean": list(trunk.normalise.mean), "pixel_std": list(trunk.normalise.std)},
        **{"pictures": facts["pictures"], "bf16": facts["bf16"]},
        **{"images_per_batch": config.images_per_batch, "piece_rows": piece_rows},
    }
    return FeatureJob(
        trunk=trunk,
        url=url,
        config=config,
        wanted=wanted,
        samples=samples,
        piece_rows=piece_rows,
        manifest=json.loads(json.dumps(manifest)),
    )


def _row_bytes(trunk: FrozenTrunk, wanted: FeaturesConfig, config: FilesConfig) -> int:
    size = 2 if config.dtype == "float16" else 4
    return size * len(wanted.layer_sets) * math.prod(wanted.row_shape(trunk.encoder.shape))


def _index_schema(dataset: Dataset) -> pa.Schema:
    shard = next((number for number, entry in enumerate(dataset.shards) if entry.num_samples), 0)
    return dataset.index(shard).schema


def _facts(job: FeatureJob) -> dict[str, Any]:
    told = ("samples", "shape", "dtype", "layers", "dataset", "step")
    return {"out": job.config.out, **{name: job.manifest[name] for name in told}}


def manifest_of(config: FilesConfig) -> Path:
    """Return where the finished features say what they are."""
    return config.folder / MANIFEST if config.is_folder else Path(config.out).with_suffix(".json")


def _is_finished(job: FeatureJob) -> bool:
    """True if the result is there. Raises ValueError if something else is."""
    path, out = manifest_of(job.config), Path(job.config.out)
    found = _read(path)
    if found is None and out.is_file():
        raise ValueError(f"{out}: is there, and {path} does not say what it is; name another --out")
    if found is not None:
        _refuse_other(found, job, path)
    return found is not None and "rows" in found and out.exists()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is no manifest of features; name another --out")
    return found


def _refuse_other(found: dict[str, Any], job: FeatureJob, path: Path) -> None:
    for name, value in job.manifest.items():
        if name != "checkpoint" and found.get(name) != value:
            what = f"{name}: was {found.get(name)!r}, is {value!r}"
            raise ValueError(f"{path}: is of other features, {what[:300]}; name another --out, or remove it")


def _begin(job: FeatureJob, pieces: range) -> None:
    """Make the folder and say in it what comes. Raises OSError if there is no room."""
    folder, path = job.config.folder, job.config.folder / MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    found = _read(path)
    if found is not None:
        _refuse_other(found, job, path)
    elif any(not name.name.startswith(".") for name in folder.iterdir()):
        raise ValueError(f"{folder}: is not empty, and {MANIFEST} is not in it; name another --out")
    else:
        write_atomic(str(path), _json(job.manifest))
    each = job.num_bytes / max(1, job.num_pieces)
    need, free = each * len(job.missing(pieces)), shutil.disk_usage(folder).free
    need += 0 if job.config.is_folder else job.num_bytes
    if need > free:
        raise OSError(f"{folder}: features take about {need:,.0f} bytes more, {free:,} are free there; make room")
    log.info(
        "%s: %d pieces of features of %s, %d are missing", folder, job.num_pieces, job.url, len(job.missing(pieces))
    )


def _json(data: dict[str, Any]) -> bytes:
    return f"{json.dumps(data, indent=1)}\n".encode()


def _make(job: FeatureJob, run: range) -> None:
    """Write consecutive pieces, each whole before the next one begins."""
    places = range(job.places(run[0]).start, job.places(run[-1]).stop)
    dataset = open_dataset(job.url)
    types = {name: with_own_values(_index_schema(dataset).field(name).type) for name in job.wanted.columns}
    batches = iterate_features(job.trunk, job.url, job.wanted, part=places)
    batch = next(batches, None)
    for piece in run:
        here, found = job.places(piece), []
        # Pieces are whole batches, so that none lies in two.
        while batch is not None and batch.place_B[0] < here.stop:
            found.append(batch_table(batch, job.config, types))
            batch = next(batches, None)
        there = [table.column("place").to_numpy() for table in found]
        lost = np.setdiff1d(np.arange(here.start, here.stop), np.concatenate([*there, np.empty(0, np.int64)]))
        damaged = [
            {"place": place, "key": key} for place, key in zip(lost.tolist(), keys_at(dataset, lost), strict=True)
        ]
        _commit(job, piece, found, damaged)


def batch_table(rows: FeatureRows, config: FilesConfig, types: dict[str, pa.DataType]) -> pa.Table:
    """Return a batch as rows: place, key, columns of the index, and a list of fixed length for each set of blocks."""
    columns: dict[str, pa.Array] = {"place": pa.array(rows.place_B, pa.int64()), "key": pa.array(rows.key, pa.string())}
    for name, values in rows.columns.items():
        # Numbers come as arrays, what is missing as -1 or NaN; all else as it stands in the index.
        columns[name] = pa.array(values) if isinstance(values, np.ndarray) else pa.array(values, types[name])
    for name, x in zip(config.names, rows.sets, strict=True):
        numbers = (as_half(x, rows.url) if config.dtype == "float16" else x).cpu().numpy()
        flat = pa.array(np.ascontiguousarray(numbers).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, math.prod(numbers.shape[1:]))
    return pa.table(columns)


def _commit(job: FeatureJob, piece: int, tables: list[pa.Table], damaged: list[dict[str, Any]]) -> None:
    if not tables:
        raise ValueError(
            f"{job.url}: every sample of places {job.places(piece)} is damaged, from {damaged[0]['key']} on"
        )
    table = pa.concat_tables(tables)
    told = {"shape": job.manifest["shape"], "damaged": damaged}
    write_parquet(str(job.path(piece)), table.replace_schema_metadata({"headrace.features": json.dumps(told)}))


def _finish(job: FeatureJob) -> None:
    """Join the pieces, if they are not the result themselves, and say what it is."""
    folder, config = job.config.folder, job.config
    try:
        with only_writer(str(folder)):
            if _is_finished(job):  # by another part, in the meantime
                if not config.is_folder:
                    _remove_pieces(job)  # to lock the folder is to make it
                return
            remove_leftovers(str(folder))
            if not config.is_folder:
                # Else a joined file would be nobody's where a kill comes between it and what says that it is whole.
                write_atomic(str(manifest_of(config)), _json(job.manifest))
            paths = [job.path(piece) for piece in range(job.num_pieces)]
            rows, damaged = join_pieces(paths, None if config.is_folder else Path(config.out), manifest=job.manifest)
            write_atomic(str(manifest_of(config)), _json({**job.manifest, "rows": rows, "damaged": damaged}))
            if not config.is_folder:
                _remove_pieces(job)
    except ValueError as error:
        if "is being written by another process" not in str(error):
            raise
        log.info("%s: another part joins the pieces", folder)
    log.info("%s: features of %d samples", config.out, job.samples)


def _remove_pieces(job: FeatureJob) -> None:
    """Remove what was joined; the folder stays if something else lies in it."""
    remove_leftovers(str(job.config.folder))
    for path in (*map(job.path, range(job.num_pieces)), job.config.folder / MANIFEST):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        job.config.folder.rmdir()
