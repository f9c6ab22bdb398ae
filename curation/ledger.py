"""The ledger on disk: `ledger.parquet`, then `summary.json`, whose presence means that the ledger is whole.

Both are the same bytes whenever the inputs and the recipe are. The one thing a reader would get wrong: the summary is
removed before the table is replaced, so a killed run leaves no summary and every reader refuses.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace import files
from headrace.config import canonical_json
from headrace.curation.job import Job

SCHEMA_VERSION = 1
READ_BYTES = 16 << 20

LEDGER_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("input_file", pa.string()),
        ("input_row", pa.int64()),
        ("url", pa.string()),
        ("raw_shard", pa.string()),
        ("key", pa.string()),
        ("kept", pa.bool_()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),
        ("out_shard", pa.string()),
        ("out_index", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSummary:
    """One line of the funnel."""

    name: str
    step: str
    settings: dict[str, Any]
    rows_in: int
    dropped: dict[str, int]
    """Rows dropped, by reason."""
    rows_out: int
    threshold: float | None
    details: dict[str, Any] = field(default_factory=dict)
    """What else the step learnt, such as the size of the largest group of near-duplicates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerSummary:
    """What `summary.json` holds."""

    schema: int = SCHEMA_VERSION
    digest: str
    """Names this ledger: build writes it into its commits and mixes no two."""
    inputs: str
    """Digest of everything the ledger follows from: tables, steps, placement, evaluation sets."""
    decided_by: str
    """Digest of the part of the recipe that decides: steps, placement, annotators and their settings."""
    ledger_sha256: str
    rows: int
    kept: int
    out_shards: int
    samples_per_shard: int
    annotations: dict[str, str]
    """Annotator -> its folder under `annotations/`."""
    steps: list[StepSummary]

    def __str__(self) -> str:
        share = f" ({100 * self.kept / self.rows:.1f} %)" if self.rows else ""
        drops = ", ".join(f"{step.name} {sum(step.dropped.values())}" for step in self.steps if step.dropped)
        return f"kept {self.kept} of {self.rows} rows{share} in {self.out_shards} shards; dropped: {drops or 'none'}"


def ledger_url(job: Job) -> str:
    """Return the URL of the table."""
    return files.join(job.ledger, "ledger.parquet")


def summary_url(job: Job) -> str:
    """Return the URL of the summary."""
    return files.join(job.ledger, "summary.json")


def read_summary(job: Job) -> LedgerSummary:
    """Return the summary of a whole ledger. Raises ValueError if there is none."""
    url = summary_url(job)
    try:
        data = json.loads(files.read_bytes(url))
        if data["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {data['schema']}, this headrace reads {SCHEMA_VERSION}")
        data["steps"] = [StepSummary(**step) for step in data["steps"]]
        return LedgerSummary(**data)
    except FileNotFoundError as error:
        raise ValueError(f"{job.ledger} holds no whole ledger; run `headrace select` first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url} is not a summary that this version of headrace wrote: {error}; remove its folder and run select"
        ) from error


def find_summary(job: Job, inputs: str) -> LedgerSummary | None:
    """Return the summary if the ledger there follows from the inputs of this digest and is undamaged."""
    if not files.exists(summary_url(job)):
        return None
    summary = read_summary(job)
    if summary.inputs != inputs or not files.exists(ledger_url(job)):
        return None
    return summary if _file_sha256(ledger_url(job)) == summary.ledger_sha256 else None


def check_ledger(job: Job, summary: LedgerSummary) -> None:
    """Raise ValueError if the table is not the bytes that its summary speaks of."""
    if not files.exists(ledger_url(job)) or _file_sha256(ledger_url(job)) != summary.ledger_sha256:
        raise ValueError(f"{ledger_url(job)} is damaged or missing; run `headrace select` to write it again")


def write_ledger(job: Job, tables: Iterable[pa.Table]) -> str:
    """Replace the table; return its sha256. There is no summary until `write_summary`.

    Each table becomes one row group, so the caller must cut them the same way every time.
    """
    files.remove(summary_url(job))
    with files.atomic_file(ledger_url(job)) as path:
        with pq.ParquetWriter(path, LEDGER_SCHEMA, compression="zstd", version="2.6") as writer:
            for table in tables:
                writer.write_table(table.cast(LEDGER_SCHEMA), row_group_size=max(1, table.num_rows))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write_summary(job: Job, summary: LedgerSummary) -> None:
    """Declare the ledger whole."""
    files.write_atomic(summary_url(job), (json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n").encode())


def ledger_digest(inputs: str, ledger_sha256: str) -> str:
    """Return the name of a ledger."""
    return _sha256(canonical_json({"inputs": inputs, "ledger": ledger_sha256}).encode())


def digest_of(parts: Mapping[str, Any]) -> str:
    """Return the digest of plain data."""
    return _sha256(canonical_json(parts).encode())


def _file_sha256(url: str) -> str:
    digest = hashlib.sha256()
    fs, path = files.open_fs(url)
    with fs.open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
