"""Why a row was kept or dropped: the ledger, the raw row, its columns and what build made of it, joined for one uid.

Everything is read back from the job; nothing is recomputed but the values that a step looked at, from the same columns
by the same SQL. A uid may stand in the list several times; each is a row of its own, and of several fetches of one row
the ledger knows only the one that counts.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.datasets import Explained, explain_dataset, shown_name
from headrace.curation.forgotten import read_tombstones
from headrace.curation.job import Job
from headrace.curation.ledger import Decision, LedgerSummary, StepSummary, dataset_key, held_captions, place_of_key
from headrace.curation.nearest import Neighbour, neighbours
from headrace.curation.raw.read import read_raw
from headrace.curation.select.expression import Checker, open_evaluator
from headrace.curation.select.load import Annotation, Inputs, row_columns, sql_types, with_facts_taken
from headrace.curation.select.step import read_column
from headrace.curation.select.steps import step_of
from headrace.shards.commit import is_committed
from headrace.shards.parquet import open_parquet, read_equal, read_table

MIN_PREFIX = 4
MAX_TEXT = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What one step made of a row."""

    name: str
    outcome: str
    """`passed`, `dropped` or `not reached`."""
    reason: str | None
    value: float | None
    threshold: float | None
    duplicate_of: str | None


@dataclass(frozen=True, slots=True)
class HeldCaption:
    """One of several captions of a row that is kept."""

    caption: str
    uid: str
    """Of the row that it comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowStory:
    """Everything the job knows of one input row."""

    ledger: str
    """Name of the ledger that this is the story of."""
    dataset: str | None
    """Folder of the dataset that was built from that ledger; None: none was."""
    uid: str
    url: str | None
    caption: str | None
    """Of a row that is kept, the caption in the dataset."""
    caption_of: str | None
    """The uid of the row that this caption comes from; None: its own."""
    captions: list[HeldCaption]
    """Of a row that is kept with several captions, all of them; the first is `caption`."""
    input_file: str | None
    input_row: int | None
    raw_shard: str
    key: str
    status: str | None
    error_class: str | None
    error_message: str | None
    kept: bool
    steps: list[StepOutcome]
    columns: dict[str, Any]
    """Annotations, of a row that is kept as in the dataset; hashes as hex, embeddings left out."""
    out_shard: str | None
    out_index: int | None
    dataset_key: str | None
    build: str
    """`built`, `failed`, `not built yet`, or `dropped`."""
    build_reason: str | None
    build_message: str | None
    nearest: list[Neighbour]
    """Nearest kept row and evaluation images by PDQ; empty unless asked for."""
    reused_from: str | None = None
    """SOURCE#KEY of an image that an earlier job had."""
    hashes: list[str] = field(default_factory=list)
    """Those of `columns` that are hashes."""
    decided_by: list[str] = field(default_factory=list)
    """Those of `columns` that the step read which dropped the row."""


def explain(
    job: Job, query: str, *, dataset: str | None = None, ledger: str = "", nearest: bool = False
) -> list[RowStory]:
    """Return the rows of a uid, of an unambiguous start of one, of a URL, or of a sample's key in the dataset.

    They are told by the ledger that explains `dataset` (None: the published one), or by the one that `ledger` names;
    see `explain_dataset`. `nearest` reads all hashes of the job. Raises ValueError if there is no such row.
    """
    if not files.exists(urlpath.join(job.url, "job.json")) and not files.exists(job.ledgers):
        raise ValueError(
            f"{job.url} is no job (no job.json there); give the folder that the recipe names as `job`, or a dataset"
        )
    explained = explain_dataset(job, dataset=dataset, ledger=ledger)
    return [story_of(explained, row, nearest=nearest) for row in _find(explained.decision, query)]


def _find(decision: Decision, query: str) -> list[dict[str, Any]]:
    table = decision.ledger.table
    rows = read_equal(table, {"uid": query}).to_pylist()
    if not rows and "://" in query:
        rows = read_equal(table, {"url": query}).to_pylist()
    place = place_of_key(query)
    if not rows and place is not None:
        rows = read_equal(table, {"out_shard": place[0], "out_index": place[1]}).to_pylist()
    if not rows and len(query) >= MIN_PREFIX:
        rows = _starting_with(table, query)
        found = sorted({row["uid"] for row in rows})
        if len(found) > 1:
            some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise ValueError(f"{query!r} is the start of {len(found)} uids: {some}; give more of it")
    if not rows and "://" not in query:
        rows = read_equal(table, {"url": query}).to_pylist()  # what the list has in its place: `n/a`
    if not rows:
        with open_parquet(table) as file:
            num_rows = file.num_rows
        if read_tombstones(decision.job.url).has_row(query, query):
            raise ValueError(f"{decision.job.url}: that row was taken down (headrace forget); nothing of it is kept")
        hint = f"; give at least {MIN_PREFIX} letters of a uid" if len(query) < MIN_PREFIX else ""
        raise ValueError(
            f"{decision.ledger.url}: no row with the uid, URL or key {query!r}; the ledger has {num_rows} rows{hint}"
        )
    return sorted(rows, key=lambda row: (row["raw_shard"], row["key"]))


def _starting_with(ledger: str, prefix: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with open_parquet(ledger) as file:
        for batch in file.batches(1 << 16):
            rows.extend(batch.filter(pc.starts_with(batch["uid"], prefix)).to_pylist())
    return rows


def story_of(explained: Explained, row: dict[str, Any], *, nearest: bool = False) -> RowStory:
    """Return everything the job knows of one row of the ledger. Raises ValueError if its raw shard is gone."""
    job, summary = explained.decision.job, explained.decision.summary
    raw = read_raw(job, row["raw_shard"])
    at = pc.index(raw["key"], row["key"]).as_py()
    if at < 0:
        raise ValueError(f"raw shard {row['raw_shard']} has no row {row['key']} any more; run `headrace select` again")
    fetched = raw.slice(at, 1).to_pylist()[0]
    annotations = tuple(Annotation(name, url) for name, url in explained.decision.annotation_folders().items())
    columns = row_columns(Inputs(job=job, shards=(row["raw_shard"],), annotations=annotations), row["raw_shard"], at)
    build, reason, message = _build(explained, row)
    taken = with_facts_taken(columns, [row.get("caption_facts")])
    return RowStory(
        ledger=explained.decision.ledger.name,
        dataset=None if explained.dataset is None else shown_name(explained.dataset),
        **{name: row[name] for name in ("uid", "url", "input_file", "input_row", "raw_shard", "key", "kept")},
        caption=taken["caption"][0].as_py(),
        caption_of=row.get("caption_of"),
        captions=[HeldCaption(text, uid) for text, uid in held_captions(row)],
        **{name: fetched[name] for name in ("status", "error_class", "error_message", "reused_from")},
        steps=_outcomes(summary, row, columns, taken),
        columns={name: _shown(taken[name][0].as_py()) for name in taken.column_names if name not in raw.column_names},
        out_shard=row["out_shard"],
        out_index=row["out_index"],
        dataset_key=dataset_key(row["out_shard"], row["out_index"]) if row["kept"] else None,
        build=build,
        build_reason=reason,
        build_message=message,
        nearest=neighbours(explained.decision, row) if nearest else [],
        hashes=[field.name for field in columns.schema if pa.types.is_binary(field.type) or _is_fixed(field.type)],
        decided_by=_decided_by(summary, row, columns.schema),
    )


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_binary(kind))


def _decided_by(summary: LedgerSummary, row: dict[str, Any], schema: pa.Schema) -> list[str]:
    """Return the columns that the step read which dropped the row; none where it was kept, or the step is not known."""
    step = next((step for step in summary.steps if step.name == row["step"]), None)
    if step is None:
        return []
    with open_evaluator() as connection:
        try:
            read = step_of(step).prepare(Checker(connection, sql_types(connection, schema))).columns
        except ValueError:  # columns of then that are not there now
            return []
    return [name for name in dict.fromkeys(map(read_column, read)) if name in schema.names]


def _outcomes(summary: LedgerSummary, row: dict[str, Any], columns: pa.Table, taken: pa.Table) -> list[StepOutcome]:
    """Return what each step made of the row; `taken` is what those saw that came after it took a caption."""
    outcomes = []
    dropped = False
    with open_evaluator() as connection:
        checker = Checker(connection, sql_types(connection, columns.schema))
        connection.register("here", columns)
        for step in summary.steps:
            if step.name == row["step"]:
                dropped = True
                facts = (row["reason"], row["value"], row["threshold"], row["duplicate_of"])
                outcomes.append(_outcome(step, "dropped", *facts))
            elif dropped:
                outcomes.append(_outcome(step, "not reached"))
            else:
                value, threshold = _looked_at(connection, checker, step)
                outcomes.append(_outcome(step, "passed", None, value, threshold))
            if step.details.get("captions_taken"):
                connection.register("here", taken)
    return outcomes


def _outcome(
    step: StepSummary,
    outcome: str,
    reason: str | None = None,
    value: float | None = None,
    threshold: float | None = None,
    duplicate_of: str | None = None,
) -> StepOutcome:
    return StepOutcome(
        name=step.name, outcome=outcome, reason=reason, value=value, threshold=threshold, duplicate_of=duplicate_of
    )


def _looked_at(
    connection: duckdb.DuckDBPyConnection, checker: Checker, step: StepSummary
) -> tuple[float | None, float | None]:
    """Return the value that a step which let the row pass looked at, and its threshold."""
    cuts = step_of(step).cuts(step.threshold)
    found = [(_evaluate(connection, checker, cut.expression), cut.threshold) for cut in cuts]
    # Of several, the value that came nearest to its threshold.
    near = [(value, limit) for value, limit in found if value is not None and limit is not None]
    if near:
        return min(near, key=lambda pair: abs(pair[0] - pair[1]))
    return (found[0][0] if found else None), (step.threshold if len(found) < 2 else None)


def _evaluate(connection: duckdb.DuckDBPyConnection, checker: Checker, text: str) -> float | None:
    expression = checker.check(text, "summary.json")
    try:
        value = connection.execute(f"SELECT {expression.sql} AS value FROM here").fetchall()[0][0]
    except (duckdb.DataError, duckdb.InvalidInputException):
        # Select evaluates a rule's `value` only for the rows it drops.
        return None
    return None if value is None else float(value)


def _build(explained: Explained, row: dict[str, Any]) -> tuple[str, str | None, str | None]:
    if not row["kept"]:
        return "dropped", None, None
    job, name = explained.decision.job, explained.dataset
    if name is None or not is_committed(job.dataset_named(name), row["out_shard"]):
        return "not built yet", None, None
    url = urlpath.join(job.build_failures(name), f"{row['out_shard']}.parquet")
    if files.exists(url):
        for failure in read_table(url).to_pylist():
            if (failure["raw_shard"], failure["key"]) == (row["raw_shard"], row["key"]):
                return "failed", failure["reason"], failure["message"]
    return "built", None, None


def _shown(value: Any) -> Any:
    """Return a column's value as JSON can hold it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str | int | bool) or value is None:
        return value
    return [_shown(item) for item in value] if isinstance(value, list) else str(value)[:MAX_TEXT]
