"""The manifest of a dataset: every shard with its counts and sums, in columns.

A dataset may have 200,000 shards and a mixture ten datasets, so nothing here makes an object a shard until one is
asked for: `shards[number]` does. What the manifest claims is compared with the totals of dataset.json, and the first
row that cannot be is named.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.shards.columns import plain_numbers
from headrace.shards.errors import ShardError
from headrace.shards.parquet import ParquetReader
from headrace.text import shown

SUMMARY_NAME = "dataset.json"
MANIFEST_NAME = "shards.parquet"

# OWN: shards/NAME.tar beside shards/NAME.parquet. FOREIGN: NAME.tar in the folder, index/NAME.parquet under it or
# under the index_dir; img2dataset has its own NAME.parquet beside each tar, which must stay.
OWN_LAYOUT = "headrace"
FOREIGN_LAYOUT = "webdataset"

MANIFEST_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("index_sha256", pa.string()),
    ]
)

_TOTALS = ("num_shards", "num_samples", "num_bytes")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_NAME = r"^$|^\.|[/\\\x00]"  # for RE2
_ROWS = 8192
"""Rows that become Python objects at once."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard as the manifest has it; `sha256` is of the tar (null where it was indexed with --fast)."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str | None
    index_sha256: str


class Shards(Sequence[ShardEntry]):
    """The shards of a dataset by number: a sequence of `ShardEntry`, each made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        """`table` has MANIFEST_SCHEMA, checked."""
        self._table = table.combine_chunks()
        self._names, self._index_sums = (self._table[name].combine_chunks() for name in ("name", "index_sha256"))
        self.num_samples: NDArray[np.int64] = plain_numbers(table["num_samples"])
        """Samples of each shard."""
        self.num_bytes: NDArray[np.int64] = plain_numbers(table["num_bytes"])
        """Bytes of each tar."""

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, number: int) -> ShardEntry: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[ShardEntry, ...]: ...

    def __getitem__(self, number: int | slice) -> ShardEntry | tuple[ShardEntry, ...]:
        if isinstance(number, slice):
            return tuple(self[one] for one in range(*number.indices(len(self))))
        place = number + len(self) if number < 0 else number
        if not 0 <= place < len(self):
            raise IndexError(f"there is no shard {number} of {len(self)}")
        return ShardEntry(**self._table.slice(place, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ShardEntry]:
        for start in range(0, len(self), _ROWS):
            for row in self._table.slice(start, _ROWS).to_pylist():
                yield ShardEntry(**row)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and bool(self._table.equals(other._table))

    def __hash__(self) -> int:
        return hash((len(self), int(self.num_samples.sum()), int(self.num_bytes.sum())))

    def __repr__(self) -> str:
        return f"Shards({len(self)} of {int(self.num_samples.sum())} samples)"

    def name(self, number: int) -> str:
        """Return the name of a shard."""
        return str(self._names[number].as_py())

    def number_of(self, name: str) -> int | None:
        """Return the number of the shard of that name; None if there is none."""
        found = pc.index(self._names, name).as_py()
        return None if found < 0 else int(found)

    def index_sha256(self, number: int) -> str:
        """Return the sum of a shard's index."""
        return str(self._index_sums[number].as_py())

    @property
    def lack_sums(self) -> bool:
        """True if some shard has no sum of its tar: indexed with --fast."""
        return bool(self._table["sha256"].null_count)

    def digest(self) -> str:
        """Return what must be equal for a sample's number to mean the same sample: names, counts and sums."""
        hasher = hashlib.blake2b(digest_size=8)
        for start in range(0, len(self), _ROWS):
            part = self._table.slice(start, _ROWS)
            columns = (part[name].to_pylist() for name in ("name", "num_samples", "sha256"))
            text = "\n".join(f"{name} {count} {digest}" for name, count, digest in zip(*columns, strict=True))
            hasher.update((text if start == 0 else "\n" + text).encode())
        return hasher.hexdigest()


def remedy(layout: str) -> str:
    """Return what to do about a damaged manifest."""
    return "run headrace index again" if layout == FOREIGN_LAYOUT else "run the command that wrote the dataset again"


def parse_manifest(data: bytes, url: str, summary: Mapping[str, Any], layout: str) -> Shards:
    """Return the shards that the file `data` names. Raises ShardError, naming `url`, if it is not what `summary` says.

    `summary` is dataset.json.
    """
    expected = summary.get("manifest_sha256")
    if expected is None and summary["schema"] > 1:
        raise ShardError(f"{SUMMARY_NAME} does not hold the sha256 of this manifest; {remedy(layout)}", shard=url)
    try:
        table = ParquetReader(data, url).read(MANIFEST_SCHEMA.names)
        table = table.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
    except (ValueError, KeyError, OSError) as error:
        detail = str(error).removeprefix(f"{url}: ")
        raise ShardError(f"not a manifest of shards: {detail}; {remedy(layout)}", shard=url) from error
    _check_rows(table, url, layout)
    shards = Shards(table)
    _check_totals(summary, shards, url, remedy(layout))
    got = hashlib.sha256(data).hexdigest()
    if expected is not None and got != expected:
        raise ShardError(
            f"sha256 is {got}, {SUMMARY_NAME} says {shown(expected)}: one of them was changed; {remedy(layout)}",
            shard=url,
        )
    return shards


def _check_rows(table: pa.Table, url: str, layout: str) -> None:
    """Raise ShardError for the first row that cannot be, or that names a shard again."""
    bad = np.zeros(table.num_rows, np.bool_)
    bad |= _is_true(pc.match_substring_regex(table["name"], _NO_NAME), where_null=True)
    for column in ("num_samples", "num_bytes"):
        bad |= _is_true(pc.less(table[column], pc.subtract(table[column], table[column])), where_null=True)
    for column in ("sha256", "index_sha256"):
        fits = pc.match_substring_regex(table[column], "^[0-9a-f]{64}$")
        bad |= _is_true(pc.invert(fits), where_null=not _may_lack(column, layout))
    numbers = np.flatnonzero(bad)
    end = int(numbers[0]) if numbers.size else table.num_rows
    names = table["name"].slice(0, end)
    if pc.count_distinct(names).as_py() != end:
        seen: set[str] = set()
        for name in names.to_pylist():
            if name in seen:
                raise ShardError(f"names shard {shown(name)} twice; {remedy(layout)}", shard=url)
            seen.add(name)
    if numbers.size:
        _refuse_row(table.slice(end, 1).to_pylist()[0], url, layout)


def _is_true(mask: pa.ChunkedArray, *, where_null: bool) -> NDArray[np.bool_]:
    # Without a scalar of Python: to make one of it, pyarrow imports pandas.
    nulls = pc.is_null(mask)
    return plain_numbers(pc.coalesce(mask, nulls if where_null else pc.invert(nulls)).cast(pa.uint8())).view(np.bool_)


def _may_lack(column: str, layout: str) -> bool:
    """Only an index made from headers alone has no sum of its tar."""
    return column == "sha256" and layout == FOREIGN_LAYOUT


def _refuse_row(row: Mapping[str, Any], url: str, layout: str) -> None:
    name = row["name"] or ""
    if not name or name.startswith(".") or any(letter in name for letter in "/\\\0"):
        raise ShardError(f"{name!r} may not name a shard", shard=url)
    for column in ("num_samples", "num_bytes"):
        if row[column] is None or row[column] < 0:
            raise ShardError(f"{column} of shard {shown(name)} is {row[column]}; {remedy(layout)}", shard=url)
    for column in ("sha256", "index_sha256"):
        if not (row[column] is None and _may_lack(column, layout)) and not _DIGEST.fullmatch(row[column] or ""):
            raise ShardError(
                f"{column} of shard {shown(name)} is {shown(row[column])}, expected 64 hex digits; {remedy(layout)}",
                shard=url,
            )
    raise AssertionError(f"{url}: nothing is wrong with {row}")


def _check_totals(summary: Mapping[str, Any], shards: Shards, url: str, what_to_do: str) -> None:
    found = (len(shards), int(shards.num_samples.sum()), int(shards.num_bytes.sum()))
    for name, got in zip(_TOTALS, found, strict=True):
        expected = summary.get(name)
        if type(expected) is not int or expected != got:
            raise ShardError(
                f"{name} is {shown(expected)} in {SUMMARY_NAME}, {got} by the rows of {MANIFEST_NAME}: "
                f"one of them lost or gained shards; {what_to_do}",
                shard=url,
            )
