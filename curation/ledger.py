"""Ledgers on disk: `ledger/NAME/ledger.parquet`, then `summary.json`, whose presence means that the ledger is whole.

A ledger is named by all it follows from (tables, steps, placement, evaluation sets), so another decision never takes
the place of one that explains published data. `ledger/latest.json` says which one select wrote last, in all and for
each recipe. Both files of a ledger are the same bytes whenever the inputs and the recipe are; its summary is removed
before its table is replaced, so a killed run leaves no summary and every reader refuses.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.job import Job
from headrace.lease import NO_FENCE, Fence
from headrace.shards.parquet import open_parquet, write_groups

# 2 has the last two columns; of a ledger of 1 they count as null. 3 is written only where captions were merged: it has
# `MERGED_FIELDS` too.
SCHEMA_VERSION = 2
MERGED_SCHEMA_VERSION = 3
READABLE_SCHEMAS = (1, 2, 3)
NAME_LETTERS = 16
LATEST_NAME = "latest.json"
SUMMARY_NAME = "summary.json"
INDEX_DIGITS = 6
"""Digits of a key behind the output shard's name; placement.samples_per_shard is at most a million."""

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
        ("caption_of", pa.string()),
        ("caption_facts", pa.string()),
    ]
)

# Under the name that it has in a file, so that what is read and written again is the same bytes.
LIST_OF_TEXTS = pa.list_(pa.field("element", pa.string()))
MERGED_FIELDS = (pa.field("captions_of", LIST_OF_TEXTS), pa.field("captions_facts", LIST_OF_TEXTS))
"""Of a kept row with several captions: the uid of the row that each came from, and what `caption_facts` holds, of each;
the first is the sample's `caption`. Null for all others."""

CAPTION_COLUMNS = ("caption_of", "captions_of")
"""Columns of a ledger, or of the index of its dataset, that say whose captions a row has."""


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
    """What a dataset names its ledger by: build writes it into its commits and mixes no two."""
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

    @property
    def merges_captions(self) -> bool:
        """True if its rows may hold several captions."""
        return self.schema >= MERGED_SCHEMA_VERSION

    @property
    def moves_captions(self) -> bool:
        """True if a row may have the caption of another."""
        return self.merges_captions or any(step.details.get("captions_taken") for step in self.steps)

    def __str__(self) -> str:
        share = f" ({100 * self.kept / self.rows:.1f} %)" if self.rows else ""
        drops = ", ".join(f"{step.name} {sum(step.dropped.values())}" for step in self.steps if step.dropped)
        return (
            f"kept {self.kept} of {self.rows} rows{share} in {self.out_shards} shards; dropped: {drops or 'none'}; "
            f"ledger {self.inputs[:NAME_LETTERS]}"
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The folder of one ledger."""

    url: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return urlpath.basename(self.url)

    @property
    def table(self) -> str:
        """The URL of its table."""
        return urlpath.join(self.url, "ledger.parquet")

    @property
    def summary(self) -> str:
        """The URL of its summary."""
        return urlpath.join(self.url, SUMMARY_NAME)


@dataclass(frozen=True, slots=True)
class Decision:
    """A whole ledger of a job, with what it says of itself."""

    job: Job
    ledger: Ledger
    summary: LedgerSummary

    def annotation_folders(self) -> dict[str, str]:
        """Return annotator -> the folder whose tables the ledger was made from."""
        parent = urlpath.join(self.job.url, "annotations")
        return {name: urlpath.join(parent, folder) for name, folder in sorted(self.summary.annotations.items())}


def ledger_named(job: Job, inputs: str) -> Ledger:
    """Return the place of the ledger that follows from the inputs of this digest; it need not be there yet."""
    return Ledger(urlpath.join(job.ledgers, inputs[:NAME_LETTERS]))


def list_ledgers(job: Job) -> list[Ledger]:
    """Return the whole ledgers of a job; one of schema 1, which lies in `ledger/` itself, comes first."""
    places = [Ledger(job.ledgers)] + [Ledger(urlpath.join(job.ledgers, name)) for name in files.list_names(job.ledgers)]
    return [ledger for ledger in places if files.exists(ledger.summary)]


def read_decision(job: Job, ledger: Ledger) -> Decision:
    """Return a ledger with its summary. Raises ValueError if it is not whole."""
    return Decision(job, ledger, read_summary(ledger))


def latest_decision(job: Job, decided_by: str = "") -> Decision:
    """Return the ledger that select wrote last, in all or for the recipe of this digest. Raises ValueError."""
    name = _latest(job).get(decided_by[:NAME_LETTERS])
    if name is not None:
        return read_decision(job, Ledger(urlpath.join(job.ledgers, name) if name else job.ledgers))
    if files.exists(Ledger(job.ledgers).summary):
        decision = read_decision(job, Ledger(job.ledgers))
        if decided_by in ("", decision.summary.decided_by):
            return decision
    others = len(list_ledgers(job))
    if decided_by and others:
        raise ValueError(
            f"{job.ledgers} holds no ledger of this recipe ({others} of other recipes: select, annotate, seed or "
            "placement differ); run `headrace annotate` and `headrace select` with this recipe first"
        )
    raise ValueError(f"{job.ledgers} holds no whole ledger; run `headrace select` first")


def set_latest(decision: Decision) -> None:
    """Note that select came to this ledger last."""
    name = "" if decision.ledger.url == decision.job.ledgers else decision.ledger.name
    latest = {**_latest(decision.job), "": name, decision.summary.decided_by[:NAME_LETTERS]: name}
    text = json.dumps({"schema": SCHEMA_VERSION, "latest": latest}, indent=1, sort_keys=True) + "\n"
    atomic.write_atomic(urlpath.join(decision.job.ledgers, LATEST_NAME), text.encode())


def _latest(job: Job) -> dict[str, str]:
    """Return recipe's digest -> name of the ledger that select came to last; of the empty digest, in all.

    The empty name is that of the ledger of schema 1, which lies in `ledger/` itself.
    """
    url = urlpath.join(job.ledgers, LATEST_NAME)
    try:
        latest = json.loads(files.read_bytes(url))["latest"]
        return {str(key): urlpath.basename(str(name)) for key, name in latest.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{url} is damaged ({error}); remove it and run `headrace select` again") from error


def read_summary(ledger: Ledger) -> LedgerSummary:
    """Return the summary of a whole ledger. Raises ValueError if there is none."""
    try:
        data = json.loads(files.read_bytes(ledger.summary))
        if data["schema"] not in READABLE_SCHEMAS:
            raise ValueError(f"schema {data['schema']}, this headrace reads up to {READABLE_SCHEMAS[-1]}")
        data["steps"] = [StepSummary(**step) for step in data["steps"]]
        return LedgerSummary(**data)
    except FileNotFoundError as error:
        raise ValueError(f"{ledger.url} holds no whole ledger; run `headrace select` first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{ledger.summary} is not a summary that this version of headrace wrote: {error}; remove this file and "
            "run select"
        ) from error


def find_decision(job: Job, inputs: str) -> Decision | None:
    """Return the ledger that follows from the inputs of this digest, if it is there and undamaged."""
    for ledger in (ledger_named(job, inputs), Ledger(job.ledgers)):
        if not files.exists(ledger.summary):
            continue
        summary = read_summary(ledger)
        if summary.inputs == inputs and files.exists(ledger.table):
            return Decision(job, ledger, summary) if files.sha256_of(ledger.table) == summary.ledger_sha256 else None
    return None


def check_ledger(decision: Decision) -> None:
    """Raise ValueError if the table is not the bytes that its summary speaks of."""
    url = decision.ledger.table
    if not files.exists(url) or files.sha256_of(url) != decision.summary.ledger_sha256:
        raise ValueError(f"{url} is damaged or missing; run `headrace select` to write it again")


def ledger_by_shard(ledger: Ledger, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (raw shard, its rows of the ledger) in order, without the columns that a ledger of schema 1 lacks."""
    with open_parquet(ledger.table) as file:
        names = [name for name in columns if name in file.schema.names]
        pending: list[pa.Table] = []
        name: str | None = None
        for batch in file.batches(1 << 16, names):
            table = pa.Table.from_batches([batch])  # row groups may cut a shard anywhere
            while table.num_rows:
                shards = table["raw_shard"]
                first = shards[0].as_py()
                last = pc.index(pc.equal(shards, first), False).as_py()
                count = table.num_rows if last < 0 else last
                if name is not None and first != name:
                    yield name, pa.concat_tables(pending)
                    pending = []
                name = first
                pending.append(table.slice(0, count))
                table = table.slice(count)
        if name is not None:
            yield name, pa.concat_tables(pending)


def rows_of_keys(ledger: Ledger, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of samples by their keys in the dataset, in one walk over the table; keys it lacks are left out.

    Of each row group two columns are read, and the rest only where a sample is found.
    """
    places = {place: key for key in keys if (place := place_of_key(key)) is not None}
    shards = pa.array(sorted({shard for shard, _ in places}), pa.string())
    numbers = pa.array(sorted({number for _, number in places}), pa.int32())
    found: dict[str, dict[str, Any]] = {}
    if not places:
        return found
    with open_parquet(ledger.table) as file:
        for group in range(len(file.group_rows)):
            table = file.read(["out_shard", "out_index"], groups=[group])
            near = pc.and_(pc.is_in(table["out_shard"], shards), pc.is_in(table["out_index"], numbers))
            if not pc.any(near).as_py():
                continue
            for row in file.read(groups=[group]).filter(near).to_pylist():
                key = places.get((row["out_shard"], row["out_index"]))
                if key is not None:
                    found[key] = row
    return found


def ledger_schema(*, merged: bool) -> pa.Schema:
    """Return the columns of a ledger whose steps merge captions, or do not."""
    return pa.schema([*LEDGER_SCHEMA, *MERGED_FIELDS]) if merged else LEDGER_SCHEMA


def held_captions(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the captions of a row of a ledger where it holds several, each with the uid of the row it comes from."""
    pairs = zip(row.get("captions_facts") or (), row.get("captions_of") or (), strict=True)
    return [(json.loads(facts)["caption"], uid) for facts, uid in pairs]


def caption_sources(row: Mapping[str, Any]) -> set[str]:
    """Return the uids of the rows whose captions a row of a ledger, or of an index, has; its own may be among them."""
    held = [row.get(name) for name in CAPTION_COLUMNS]
    return {uid for one in held for uid in ([one] if isinstance(one, str) else one or ())}


def write_ledger(
    ledger: Ledger, tables: Iterable[pa.Table], schema: pa.Schema = LEDGER_SCHEMA, *, fence: Fence = NO_FENCE
) -> str:
    """Write the table; return its sha256. There is no summary until `write_summary`.

    Each table becomes one row group, so the caller must cut them the same way every time. Raises OSError if another
    process writes the job by now, as `fence` tells.
    """
    fence.check()
    atomic.remove(ledger.summary)
    with atomic.atomic_file(ledger.table) as path:
        write_groups(path, schema, tables)
        fence.check()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write_summary(ledger: Ledger, summary: LedgerSummary) -> None:
    """Declare the ledger whole."""
    atomic.write_atomic(ledger.summary, (json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n").encode())


def dataset_key(out_shard: str, out_index: int) -> str:
    """Return the key of a sample in the dataset: the key that batches and quarantine files print."""
    return f"{out_shard}{out_index:0{INDEX_DIGITS}d}"


def place_of_key(key: str) -> tuple[str, int] | None:
    """Return (output shard, index) of a sample's key; None if the text is no such key."""
    if not key.isascii() or not key.isdecimal() or len(key) <= INDEX_DIGITS:
        return None
    return key[:-INDEX_DIGITS], int(key[-INDEX_DIGITS:])


def ledger_digest(inputs: str, ledger_sha256: str) -> str:
    """Return the digest that a dataset names its ledger by: of what it follows from, and of its bytes."""
    return _sha256(canonical_json({"inputs": inputs, "ledger": ledger_sha256}).encode())


def digest_of(parts: Mapping[str, Any]) -> str:
    """Return the digest of plain data."""
    return _sha256(canonical_json(parts).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
