"""Open a dataset: its manifest, where each shard and each index lies.

Immutable and small: nothing is held open. The one thing a reader would get wrong: the index may lie in another folder
than the tars (`index_dir`, for data that is read-only), so always ask `tar_url` and `index`.
"""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import files
from headrace.shards.errors import ShardError
from headrace.shards.index import read_index
from headrace.shards.parquet import read_table

SCHEMA_VERSION = 1
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


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard as the manifest has it; `sha256` is of the tar (null where it was indexed with --fast)."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str | None
    index_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset."""

    url: str
    index_base: str
    layout: str
    shards: tuple[ShardEntry, ...]
    classes: tuple[str, ...] = ()
    recipe_digest: str | None = None

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    def tar_url(self, shard: int) -> str:
        """Return where the tar of shard number `shard` lies."""
        name = f"{self.shards[shard].name}.tar"
        return files.join(self.url, "shards", name) if self.layout == OWN_LAYOUT else files.join(self.url, name)

    def index_url(self, shard: int) -> str:
        """Return where the index of shard number `shard` lies."""
        folder = "shards" if self.layout == OWN_LAYOUT else "index"
        return files.join(self.index_base, folder, f"{self.shards[shard].name}.parquet")

    def index(self, shard: int) -> pa.Table:
        """Read the index of one shard. Raises ShardError if it does not fit the manifest."""
        table = read_index(self.index_url(shard))
        entry = self.shards[shard]
        if table.num_rows != entry.num_samples:
            raise ShardError(
                f"the index has {table.num_rows} rows, the manifest says {entry.num_samples}",
                shard=self.index_url(shard),
            )
        return table


def open_dataset(url: str, *, index_dir: str | None = None) -> Dataset:
    """Open the dataset at `url`. Raises ValueError if there is none, saying what to run."""
    base = index_dir if index_dir is not None else url
    summary_url = files.join(base, SUMMARY_NAME)
    try:
        text = files.read_bytes(summary_url)
    except FileNotFoundError:
        raise ValueError(_why_missing(url, base)) from None
    except NotADirectoryError:
        raise ValueError(f"{url} is a file; a dataset is a folder: headrace import makes one of it") from None
    try:
        summary = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{summary_url}: not valid JSON: {error}") from error
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA_VERSION:
        version = summary.get("schema") if isinstance(summary, dict) else None
        raise ValueError(f"{summary_url}: schema version {version!r}, this headrace reads {SCHEMA_VERSION}")
    layout = summary.get("layout")
    if layout not in (OWN_LAYOUT, FOREIGN_LAYOUT):
        raise ValueError(f"{summary_url}: unknown layout {layout!r}")
    classes, digest = summary.get("classes") or [], summary.get("recipe_digest")
    return Dataset(
        url=url,
        index_base=base,
        layout=layout,
        shards=_read_manifest(files.join(base, MANIFEST_NAME)),
        classes=tuple(str(name) for name in classes) if isinstance(classes, list) else (),
        recipe_digest=digest if isinstance(digest, str) else None,
    )


def _read_manifest(url: str) -> tuple[ShardEntry, ...]:
    try:
        table = read_table(url)
        rows: list[dict[str, Any]] = table.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA).to_pylist()
    except FileNotFoundError:
        raise ShardError("missing; finish the dataset or run `headrace index` again", shard=url) from None
    except (ValueError, KeyError, OSError) as error:
        raise ShardError(f"not a manifest of shards: {error}", shard=url) from error
    for row in rows:
        name = row["name"] or ""
        if not name or "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            raise ShardError(f"{name!r} may not name a shard", shard=url)
        if row["num_samples"] is None or row["num_samples"] < 0 or row["num_bytes"] is None:
            raise ShardError(f"no count of samples or bytes for shard {name!r}", shard=url)
    return tuple(ShardEntry(**row) for row in rows)


def _why_missing(url: str, base: str) -> str:
    where = files.join(base, SUMMARY_NAME)
    if files.list_names(url, suffix=".tar"):
        option = f" --index-dir {base}" if base != url else ""
        return f"{url} holds tars without an index ({where} is missing); run: headrace index {url}{option}"
    if files.list_names(files.join(url, "commits"), suffix=".json"):
        return f"{url} is an unfinished dataset ({where} is missing); run the command that writes it again"
    return f"{url} is not a dataset: {where} is missing"
