"""Evaluation sets as hashes: each image's sha256, and PDQ of it and of its mirror image, as annotate takes them.

The images are read anew in every run, because only their bytes say whether the set is still the same; hashes of bytes
seen before are taken from `ledger/evaluation/NAME/`. An image that does not decode is still looked for by its sha256,
and is counted.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.curation.annotate.annotators.hashes import Hashes, image_hashes
from headrace.lease import NO_FENCE, Fence
from headrace.shards.heartbeat import beat
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.formats import names_image
from headrace.shards.imports.folder import open_folder
from headrace.shards.parquet import open_parquet, read_table, write_parquet
from headrace.shards.payloads import read_payloads
from headrace.shards.tar import scan_tar
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units

IMAGES_PER_UNIT = 500
# Below this, starting worker processes takes longer than the hashing.
INLINE_IMAGES = 200
MAX_IMAGE_BYTES = 64 << 20
MAX_UNREADABLE = 0.01

VARIANTS = ("full", "trimmed", "full_flipped", "trimmed_flipped")
CENTRE_VARIANTS = ("centre", "centre_flipped")
"""Compared only where the rows have a hash of their centre: an older job is judged as it was."""
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("sha256", pa.string()),
        ("quality", pa.int16()),
        *((variant, pa.binary(32)) for variant in (*VARIANTS, *CENTRE_VARIANTS)),
        ("error", pa.string()),
    ],
    metadata={"headrace.hashes": str(Hashes.version)},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """Images that must not be trained on."""

    name: str
    """Name in the ledger."""
    url: str
    """Folder of images, dataset of shards, tar, or parquet with a column of image bytes; any fsspec URL."""

    def __post_init__(self) -> None:
        # The name is also that of a folder beside the ledger.
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name of an evaluation set: letters, digits, '-', '_' and '.' only, got {self.name!r}")


@dataclass(frozen=True, slots=True)
class Part:
    """Some images of a file: a whole image file, members of a tar, or a row group of a parquet file."""

    url: str
    names: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    row_group: int = -1


@dataclass(frozen=True, slots=True)
class HashUnit:
    """A unit of work: hash these parts into one table."""

    name: str
    parts: tuple[Part, ...]
    out: str
    fence: Fence = NO_FENCE
    """Asked before the table is put in its place."""


def hash_evaluation_set(
    evaluation: EvaluationSet,
    folder: str,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
    *,
    fence: Fence = NO_FENCE,
) -> pa.Table:
    """Return the table of `SCHEMA`, one row an image in the order of names; it is also left under `folder`.

    Raises ValueError if there is no image, or more than 1 % do not decode.
    """
    units = [replace(unit, fence=fence) for unit in evaluation_units(evaluation, urlpath.join(folder, evaluation.name))]
    atomic.remove_leftovers(urlpath.join(folder, evaluation.name))
    for name in files.list_names(urlpath.join(folder, evaluation.name), ".parquet")[len(units) :]:
        atomic.remove(urlpath.join(folder, evaluation.name, name))
    small = sum(len(unit.parts) for unit in units) <= INLINE_IMAGES and len(units) == 1
    run_units(hash_unit, units, EngineConfig(executor="inline") if small else engine, on_progress)
    table = pa.concat_tables([SCHEMA.empty_table(), *(_read(unit.out) for unit in units)]).combine_chunks()
    _check(table, evaluation)
    return table


def check_evaluation_set(evaluation: EvaluationSet) -> None:
    """Raise ValueError if a set is not there or holds no image, as far as names and schemas tell; no image is read."""
    if not files.exists(evaluation.url):
        raise ValueError(f"evaluation set {evaluation.name!r}: no such file or folder: {evaluation.url}")
    try:
        part = next(find_parts(evaluation.url), None)
        if part is not None and part.row_group >= 0:
            with open_parquet(part.url) as file:
                _image_column(file.schema, part.url)
    except ValueError as error:
        raise ValueError(f"evaluation set {evaluation.name!r}: {error}") from error
    if part is None:
        raise _no_images(evaluation)


def _no_images(evaluation: EvaluationSet) -> ValueError:
    return ValueError(
        f"evaluation set {evaluation.name!r}: no images at {evaluation.url}; give a folder of images, a dataset, "
        "a tar or a parquet file, or a folder of tars or of parquet files"
    )


def _check(table: pa.Table, evaluation: EvaluationSet) -> None:
    if not table.num_rows:
        raise _no_images(evaluation)
    errors = table.filter(pc.is_valid(table["error"]))
    if errors.num_rows > MAX_UNREADABLE * table.num_rows:
        first = errors.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"evaluation set {evaluation.name!r}: {errors.num_rows} of {table.num_rows} images do not decode, so their "
            f"copies would not be found; remove or repair them, first {first['name']}: {first['error']}"
        )


def hash_unit(unit: HashUnit) -> None:
    """Hash the images of a unit and write its table; hashes of bytes in an older table of the unit are kept."""
    known = _known(unit.out) if files.exists(unit.out) else {}
    rows = []
    for part in unit.parts:
        for name, data in read_part(part):
            sha256 = hashlib.sha256(data).hexdigest()
            rows.append({**(known.get(sha256) or _hash(data)), "name": name, "sha256": sha256})
            beat(images=1)
    unit.fence.check()
    write_parquet(unit.out, pa.Table.from_pylist(rows, SCHEMA))


def _known(url: str) -> dict[str, dict[str, Any]]:
    """Return the rows of an older table by sha256; none if another version of the hashes made it."""
    table = read_table(url)
    same = (table.schema.metadata or {}).get(b"headrace.hashes") == str(Hashes.version).encode()
    return {row["sha256"]: row for row in table.to_pylist()} if same else {}


def _hash(data: bytes) -> dict[str, object]:
    try:
        if len(data) > MAX_IMAGE_BYTES:
            raise ValueError(f"{len(data)} bytes, over {MAX_IMAGE_BYTES}")
        pixels = decode_rgb(data)
    except ValueError as error:
        return {"error": " ".join(str(error).split())[:200]}
    plain, flipped = image_hashes(pixels), image_hashes(np.ascontiguousarray(pixels[:, ::-1]))
    hashes = (plain.pdq, plain.pdq_trimmed, flipped.pdq, flipped.pdq_trimmed, plain.pdq_centre, flipped.pdq_centre)
    return {"quality": plain.quality, **dict(zip((*VARIANTS, *CENTRE_VARIANTS), hashes, strict=True))}


def _read(url: str) -> pa.Table:
    return read_table(url).cast(SCHEMA)


def evaluation_units(evaluation: EvaluationSet, folder: str) -> list[HashUnit]:
    """Return the units of work of a set, each with the place of its table under `folder`."""
    groups: list[list[Part]] = []
    room = 0
    for part in find_parts(evaluation.url):
        size = max(1, len(part.names))
        if part.row_group >= 0 or size > room:
            groups.append([])
            room = 0 if part.row_group >= 0 else IMAGES_PER_UNIT
        groups[-1].append(part)
        room -= size
    return [
        HashUnit(f"{evaluation.name}/{number:05d}", tuple(parts), urlpath.join(folder, f"{number:05d}.parquet"))
        for number, parts in enumerate(groups)
    ]


def find_parts(url: str) -> Iterator[Part]:
    """Yield the parts of an evaluation set in a fixed order.

    `url` is a tar, a parquet file, or a folder: of a dataset (its `shards/`), of tars, of parquet files, or of images
    at any depth. Raises ValueError if nothing is there.
    """
    if not files.exists(url):
        raise ValueError(f"evaluation set {url}: no such file or folder")
    if url.endswith(".tar"):
        yield from _tar_parts(url)
    elif url.endswith(".parquet"):
        yield from _parquet_parts(url)
    elif files.exists(urlpath.join(url, "dataset.json")) and files.list_names(urlpath.join(url, "shards"), ".tar"):
        for name in files.list_names(urlpath.join(url, "shards"), ".tar"):
            yield from _tar_parts(urlpath.join(url, "shards", name))
    elif files.list_names(url, ".tar"):
        for name in files.list_names(url, ".tar"):
            yield from _tar_parts(urlpath.join(url, name))
    elif files.list_names(url, ".parquet"):
        for name in files.list_names(url, ".parquet"):
            yield from _parquet_parts(urlpath.join(url, name))
    else:
        yield from _folder_parts(url)


def _tar_parts(url: str) -> Iterator[Part]:
    shard = urlpath.basename(url)
    images = [member for member in scan_tar(url, allow_missing_end=True) if names_image(member.name)]
    for start in range(0, len(images), IMAGES_PER_UNIT):
        some = images[start : start + IMAGES_PER_UNIT]
        spans = tuple((member.offset, member.size) for member in some)
        yield Part(url, tuple(f"{shard}/{member.name}" for member in some), spans)


def _parquet_parts(url: str) -> Iterator[Part]:
    with open_parquet(url) as file:
        groups = len(file.group_rows)
    for group in range(groups):
        yield Part(url, row_group=group)


def _folder_parts(url: str) -> Iterator[Part]:
    if not files.is_folder(url):
        if names_image(urlpath.basename(url)):
            yield Part(url, (urlpath.basename(url),))
        return
    # As `headrace import --follow-links` lists it: links are followed, as image folders are often made of them.
    folder = open_folder(url, follow_links=True)
    for name in filter(names_image, folder.paths):
        yield Part(urlpath.join(url, name), (name,))


def read_part(part: Part) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the images of a part."""
    if part.row_group >= 0:
        yield from _read_row_group(part)
    elif part.spans:
        yield from zip(part.names, read_payloads(part.url, part.spans), strict=True)
    else:
        yield part.names[0], files.read_bytes(part.url)


def read_images(url: str, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of some images of a set, in its order; of parquet whole row groups are read for them."""
    for part in find_parts(url):
        if part.names:
            places = [place for place, name in enumerate(part.names) if name in names]
            if not places:
                continue
            spans = tuple(part.spans[place] for place in places) if part.spans else ()
            part = replace(part, names=tuple(part.names[place] for place in places), spans=spans)
        yield from ((name, data) for name, data in read_part(part) if name in names)


def _read_row_group(part: Part) -> Iterator[tuple[str, bytes]]:
    with open_parquet(part.url) as file:
        column = _image_column(file.schema, part.url)
        values = file.read([column], groups=[part.row_group])[column]
    name = urlpath.basename(part.url)
    for row, value in enumerate(values.to_pylist()):
        data = value.get("bytes") if isinstance(value, dict) else value
        yield f"{name}/{part.row_group}/{row}", data or b""


def _image_column(schema: pa.Schema, url: str) -> str:
    """Return the column of image bytes: binary, or a struct with `bytes` as Hugging Face writes it."""
    found: Sequence[str] = [field.name for field in schema if _holds_bytes(field.type)]
    preferred = [name for name in ("image", "img", "jpg", "bytes") if name in found] or list(found)
    if not preferred:
        raise ValueError(f"{url}: no column of image bytes; columns: {', '.join(schema.names)}")
    return preferred[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return int(kind.get_field_index("bytes")) >= 0
    return bool(pa.types.is_binary(kind)) or bool(pa.types.is_large_binary(kind))
