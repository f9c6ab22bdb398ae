"""Open a dataset: its manifest, where each shard and each index lies.

Immutable and small: nothing is held open, and opening reads two small files. What they claim is compared with each
other: a manifest that lost a row, names a shard twice or lacks a sum is refused. The index may lie in another folder
than the tars (`index_dir`, for data that is read-only), so always ask `tar_url` and `index`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa

from headrace import files, urlpath
from headrace.config import build_config
from headrace.shards.errors import ShardError
from headrace.shards.group import BY_RULE, GroupConfig
from headrace.shards.index import INDEX_SCHEMA, parse_index_part
from headrace.shards.manifest import (
    FOREIGN_LAYOUT,
    MANIFEST_NAME,
    OWN_LAYOUT,
    SUMMARY_NAME,
    ShardEntry,
    Shards,
    parse_manifest,
    remedy,
)
from headrace.shards.undo import Undo, with_rows_back
from headrace.text import shown, without_secrets

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
"""1 had no `manifest_sha256` and no `not_held`; it is still read."""
READ_VERSIONS = (1, 2)
# Columns that `headrace index --fast` can fill: all others need bytes of the samples.
FAST_COLUMNS = ("key", "offset", "size")

ReadBytes = Callable[[str], bytes]
"""URL -> the whole file: a stream reads in a way that it can stop."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset."""

    url: str
    index_base: str
    layout: str
    shards: Shards
    classes: tuple[str, ...] = ()
    recipe_digest: str | None = None
    group: GroupConfig = BY_RULE
    """How the members of its tars become samples."""
    manifest_sha256: str = field(default="", compare=False)
    """Of the manifest that was opened."""
    not_held: tuple[str, ...] = ()
    """Columns that the index of some shard was made without (`headrace index --fast`): null there means not read."""
    stamps: Mapping[str, str] = field(default_factory=dict, compare=False)
    """By shard, what changes with the content of a tar that has no sum, where that is known: mtime or ETag."""
    undo: Undo | None = field(default=None, compare=False)
    """Of a dataset as it was before samples were taken down (`forgotten.as_of`): how its indexes looked."""

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.shards.num_samples.sum())

    def tar_url(self, shard: int) -> str:
        """Return where the tar of shard number `shard` lies."""
        name = f"{self.shards.name(shard)}.tar"
        return urlpath.join(self.url, "shards", name) if self.layout == OWN_LAYOUT else urlpath.join(self.url, name)

    def index_url(self, shard: int) -> str:
        """Return where the index of shard number `shard` lies."""
        folder = "shards" if self.layout == OWN_LAYOUT else "index"
        return urlpath.join(self.index_base, folder, f"{self.shards.name(shard)}.parquet")

    def version(self, shard: int) -> str:
        """Return what differs where the content of a tar does: its sum, or what else is known of it."""
        entry = self.shards[shard]
        stamp = self.stamps.get(entry.name, "")
        return entry.sha256 or f"{entry.num_bytes} {entry.index_sha256} {stamp}".rstrip()

    @property
    def commits_folder(self) -> str:
        """The folder whose `commits/` hold one record a shard."""
        return self.index_base if self.layout == OWN_LAYOUT else urlpath.join(self.index_base, "index")

    def commit_name(self, shard: int) -> str:
        """Return the name of the record of shard number `shard`."""
        name = self.shards.name(shard)
        return name if self.layout == OWN_LAYOUT else foreign_commit_name(name)

    def missing_columns(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return which of `columns` the index does not hold, whatever stands in it."""
        return tuple(name for name in columns if name in self.not_held)

    def require_columns(self, columns: Iterable[str]) -> None:
        """Raise ValueError if the index does not hold one of `columns`, saying what to run."""
        missing = self.missing_columns(columns)
        if missing:
            elsewhere = f" --index-dir {self.index_base}" if self.index_base != self.url else ""
            raise ValueError(
                f"{self.url}: its index was made with --fast and does not hold {', '.join(missing)}; "
                f"run without --fast: headrace index {self.url}{elsewhere}"
            )

    def index(self, shard: int, *, read: ReadBytes = files.read_bytes) -> pa.Table:
        """Read the index of one shard, by `read`. Raises ShardError if it does not fit the manifest."""
        return self.index_part(shard, None, read=read)[0]

    def index_part(
        self, shard: int, columns: Sequence[str] | None, *, read: ReadBytes = files.read_bytes
    ) -> tuple[pa.Table, tuple[str, ...]]:
        """Read those of `columns`, FAST_COLUMNS among them, that the index of a shard has; name all that it has.

        Raises ShardError as `index` does.
        """
        url, entry = self.index_url(shard), self.shards[shard]
        if self.undo is not None and entry.name in self.undo.rows:
            return self._index_before(entry, columns, read)
        try:
            return read_checked(url, read, lambda data: _check_index(data, url, entry, columns))
        except (ShardError, FileNotFoundError) as error:
            self.check_unchanged(read, error)
            raise

    def _index_before(
        self, entry: ShardEntry, columns: Sequence[str] | None, read: ReadBytes
    ) -> tuple[pa.Table, tuple[str, ...]]:
        """Read the index of a shard of which samples were taken down since."""
        assert self.undo is not None
        now = self.undo.current.number_of(entry.name)
        if now is None:  # nothing of it is left
            table, names = INDEX_SCHEMA.empty_table(), tuple(INDEX_SCHEMA.names)
            table = table if columns is None else table.select([name for name in columns if name in names])
        else:
            table, names = replace(self, shards=self.undo.current, undo=None).index_part(now, columns, read=read)
        table = with_rows_back(table, self.undo.rows[entry.name])
        if table.num_rows != entry.num_samples:
            raise ShardError(
                f"{table.num_rows} rows with those that were taken down, {entry.num_samples} before: the dataset was "
                "built again since",
                shard=self.index_url(self.shards.number_of(entry.name) or 0),
            )
        return table, names

    def check_unchanged(self, read: ReadBytes, cause: Exception | None = None) -> None:
        """Raise ShardError, from `cause`, if the dataset is not the one that was opened, as samples were taken down."""
        if self.layout != OWN_LAYOUT or not self.manifest_sha256:
            return
        try:
            summary = json.loads(read(urlpath.join(self.index_base, SUMMARY_NAME)))
            same = summary.get("manifest_sha256") == self.manifest_sha256
        except FileNotFoundError:
            same = False
        except (OSError, ValueError, AttributeError):
            return
        if not same:
            raise ShardError(
                "the dataset was changed since it was opened (a take-down by headrace forget, or another build): what "
                "was opened is not there any more; open it again",
                shard=self.url,
            ) from cause


def read_checked(url: str, read: ReadBytes, check: Callable[[bytes], T]) -> T:
    """Return `check` of the bytes at `url`; of other bytes, if there are any when they are read again.

    Raises what `check` raises of bytes that came twice: the fault of a proxy passes, that of the file stays.
    """
    data = read(url)
    try:
        return check(data)
    except ValueError as error:
        again = read(url)
        if again == data:
            raise
        result = check(again)
        log.warning("%s; read again, it is whole", error)
        return result


def _check_index(
    data: bytes, url: str, entry: ShardEntry, columns: Sequence[str] | None
) -> tuple[pa.Table, tuple[str, ...]]:
    table, names = parse_index_part(data, url, columns)
    if table.num_rows != entry.num_samples:
        raise ShardError(f"the index has {table.num_rows} rows, the manifest says {entry.num_samples}", shard=url)
    got = hashlib.sha256(data).hexdigest()
    if got != entry.index_sha256:
        raise ShardError(f"sha256 of the index is {got}, the manifest says {entry.index_sha256}", shard=url)
    for name in FAST_COLUMNS:
        if table.column(name).null_count:
            raise ShardError(f"{table.column(name).null_count} rows have no {name}", shard=url)
    return table, names


def open_dataset(url: str, *, index_dir: str | None = None, read: ReadBytes = files.read_bytes) -> Dataset:
    """Open the dataset at `url`, whose files `read` reads. Raises ValueError if there is none, saying what to run."""
    base = index_dir if index_dir is not None else url
    summary_url = urlpath.join(base, SUMMARY_NAME)
    try:
        summary = read_checked(summary_url, read, lambda data: _parse_summary(data, summary_url))
    except FileNotFoundError:
        raise ValueError(_why_missing(url, base)) from None
    except NotADirectoryError:
        raise ValueError(f"{url} is a file; a dataset is a folder: headrace import makes one of it") from None
    layout = summary.get("layout")
    if layout not in (OWN_LAYOUT, FOREIGN_LAYOUT):
        raise ValueError(f"{summary_url}: unknown layout {shown(layout)}")
    manifest_url = urlpath.join(base, MANIFEST_NAME)
    try:
        shards = read_checked(manifest_url, read, lambda data: parse_manifest(data, manifest_url, summary, layout))
    except FileNotFoundError:
        raise ShardError(f"missing; {remedy(layout)}", shard=manifest_url) from None
    digest = summary.get("recipe_digest")
    return Dataset(
        url=url,
        index_base=base,
        layout=layout,
        shards=shards,
        classes=_texts(summary, "classes", summary_url),
        recipe_digest=digest if isinstance(digest, str) else None,
        group=_group(summary, summary_url),
        manifest_sha256=str(summary.get("manifest_sha256") or ""),
        not_held=_not_held(summary, shards, summary_url),
    )


def _parse_summary(data: bytes, url: str) -> dict[str, Any]:
    try:
        summary = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url}: not valid JSON: {error}") from error
    if not isinstance(summary, dict) or summary.get("schema") not in READ_VERSIONS:
        version = summary.get("schema") if isinstance(summary, dict) else None
        known = " and ".join(map(str, READ_VERSIONS))
        raise ValueError(f"{url}: schema version {shown(version)}, this headrace reads {known}")
    return summary


def layout_of(url: str) -> str | None:
    """Return the layout that the dataset at `url` claims, whole or not; None if there is none."""
    try:
        summary = json.loads(files.read_bytes(urlpath.join(url, SUMMARY_NAME)))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    layout = summary.get("layout") if isinstance(summary, dict) else None
    return layout if isinstance(layout, str) else None


def foreign_commit_name(shard: str) -> str:
    """Return the name of a foreign shard's record: its own name may hold what a record's may not."""
    return hashlib.sha256(shard.encode()).hexdigest()[:32]


def fast_not_held() -> tuple[str, ...]:
    """Return the columns that an index made with --fast does not hold."""
    return tuple(name for name in INDEX_SCHEMA.names if name not in FAST_COLUMNS)


def _not_held(summary: Mapping[str, Any], shards: Shards, url: str) -> tuple[str, ...]:
    """Return what dataset.json says of it; schema 1 did not, but left the sum of the tar out where it was fast."""
    fast = shards.lack_sums
    if summary["schema"] == 1:
        return fast_not_held() if fast else ()
    not_held = _texts(summary, "not_held", url)
    if fast and not not_held:
        raise ShardError(f"a shard has no sha256, yet {SUMMARY_NAME} says that its index is full", shard=url)
    return not_held


def _group(summary: Mapping[str, Any], url: str) -> GroupConfig:
    if summary.get("group") is None:
        return BY_RULE
    try:
        return build_config(GroupConfig, summary["group"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{url}: group: {error}") from error


def _texts(summary: Mapping[str, Any], name: str, url: str) -> tuple[str, ...]:
    values = summary.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{url}: {name} must be a list of texts, got {shown(values)}")
    return tuple(values)


def _why_missing(url: str, base: str) -> str:
    where = without_secrets(urlpath.join(base, SUMMARY_NAME))
    holds_tars, holds_commits = _holds(url, ".tar"), _holds(urlpath.join(url, "commits"), ".json")
    url, base = without_secrets(url), without_secrets(base)
    if holds_tars:
        option = f" --index-dir {base}" if base != url else ""
        return (
            f"{url} holds tars without an index ({where} is missing; a mixture may also name the tars themselves, "
            f"{urlpath.join(url, '*.tar')}); run: headrace index {url}{option}"
        )
    if holds_commits:
        return (
            f"{url} is an unfinished dataset ({where} is missing); run the command that writes it again (headrace "
            "build; headrace forget if a take-down was under way)"
        )
    return f"{url} is not a dataset: {where} is missing"


def _holds(url: str, suffix: str) -> bool:
    try:
        return bool(files.list_names(url, suffix=suffix))
    except OSError:  # it may be read, and not listed
        return False
