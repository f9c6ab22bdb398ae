"""The kept rows whose hashes are compared for `beyond`, and those of the evaluation images; rows for what was found.

Rows are numbered in the order of the ledger's kept rows, so that a number needs no memory of its row: it is looked up
again at the end.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import files, urlpath
from headrace.curation.ledger import Decision, StepSummary, ledger_by_shard
from headrace.curation.report.shown.beyond import MAX_HASHES, WORDS, Indices, Near, Words, just_beyond
from headrace.curation.report.shown.pairs import COLUMNS
from headrace.curation.select.evaluation import CENTRE_VARIANTS, VARIANTS
from headrace.curation.select.hamming import hash_words
from headrace.curation.select.load import ALL_HASH_COLUMNS
from headrace.curation.select.step import Step
from headrace.curation.select.steps import step_of
from headrace.shards.parquet import open_parquet, read_table

Row = dict[str, Any]
Compared = tuple[Row, Row | str, int]
"""A kept row, the other kept row or the name of an evaluation image (SET/NAME), and their distance in bits."""

QUALITY = "pdq_quality"


def compares_hashes(step: Step) -> bool:
    """True for a step that cuts at a distance between PDQ hashes."""
    return (
        isinstance(getattr(step, "distance", None), int)
        and step.links in ("groups", "references")
        and "pdq" in step.needs_columns()
    )


def pairs_beyond(decision: Decision, summary: StepSummary, count: int) -> tuple[list[Compared], int]:
    """Return at most `count` pairs just beyond the distance of a step, and how many kept rows were compared."""
    step = step_of(summary)
    if not compares_hashes(step) or "hashes" not in decision.annotation_folders():
        return [], 0
    least = getattr(step, "min_quality", 0)
    refers = step.links == "references"
    words, owners = _kept_hashes(decision, 0 if refers else least, tuple(getattr(step, "hashes", ())))
    num_rows, names, first = len(np.unique(owners)), pa.array([], pa.string()), None
    if refers:
        first = decision.summary.kept
        held, numbers, names = _evaluation_hashes(decision, step, least)
        words, owners = np.concatenate([words, held]), np.concatenate([owners, numbers + first])
    distance: int = getattr(step, "distance", 0)
    near = just_beyond(words, owners, distance, first_right=first)
    # A row once, so that a template does not fill the page.
    seen, chosen = set[int](), list[Near]()
    for pair in near:
        if len(chosen) < count and pair.left not in seen and pair.right not in seen:
            seen.update((pair.left, pair.right))
            chosen.append(pair)
    rows = _rows_of(decision, sorted(number for number in seen if first is None or number < first))
    return [
        (rows[pair.left], rows[pair.right] if first is None else names[pair.right - first].as_py(), pair.distance)
        for pair in chosen
    ], num_rows


def _kept_hashes(decision: Decision, min_quality: int, only: tuple[str, ...]) -> tuple[Words, Indices]:
    """Return hashes of kept rows [n, 4], and the numbers of their rows, at most about MAX_HASHES."""
    folder = decision.annotation_folders()["hashes"]
    words, owners = [np.zeros((0, WORDS), np.uint64)], [np.zeros(0, np.int64)]
    share = MAX_HASHES / max(1, decision.summary.kept * len(only or ALL_HASH_COLUMNS))
    start = 0
    for shard, rows in ledger_by_shard(decision.ledger, ["uid", "raw_shard", "key", "kept"]):
        kept = rows.filter(pc.fill_null(rows["kept"], False))
        url = urlpath.join(folder, f"{shard}.parquet")
        with open_parquet(url) as file:
            names = [name for name in (only or ALL_HASH_COLUMNS) if name in file.schema.names]
            quality = QUALITY in file.schema.names
        table = read_table(url, ["key", *names, *([QUALITY] if quality else [])])
        table = table.take(pc.index_in(kept["key"], value_set=table["key"].combine_chunks()))
        good = _sampled(kept["uid"], share)
        if quality:
            good &= pc.fill_null(table[QUALITY], -1).to_numpy() >= min_quality
        for name in names:
            present = np.flatnonzero(good & pc.is_valid(table[name]).to_numpy())
            held = table[name].take(pa.array(present)).combine_chunks().cast(pa.binary()).to_pylist()
            words.append(hash_words(b"".join(held)))
            owners.append(present + start)
        start += kept.num_rows
    return np.concatenate(words), np.concatenate(owners)


def _sampled(uids: pa.ChunkedArray, share: float) -> NDArray[np.bool_]:
    """Return which rows are compared where there are too many: a share by uid, which is a hash."""
    if share >= 1:
        return np.ones(len(uids), bool)
    limit = f"{int(share * 2**32):08x}"
    return np.asarray(pc.less(pc.utf8_slice_codeunits(uids, 0, 8), limit).to_numpy(), np.bool_)


def _evaluation_hashes(decision: Decision, step: Step, min_quality: int) -> tuple[Words, Indices, pa.Array]:
    """Return the hashes of the step's evaluation images, the number of each one's image, and the images' names."""
    words, owners, names = [np.zeros((0, WORDS), np.uint64)], [np.zeros(0, np.int64)], [pa.array([], pa.string())]
    start = 0
    for item in step.evaluation_sets():
        folder = urlpath.join(decision.job.ledgers, "evaluation", item.name)
        for part in files.list_names(folder, ".parquet"):
            table = read_table(urlpath.join(folder, part))
            good = pc.fill_null(table["quality"], -1).to_numpy() >= min_quality
            for variant in (name for name in (*VARIANTS, *CENTRE_VARIANTS) if name in table.column_names):
                present = np.flatnonzero(good & pc.is_valid(table[variant]).to_numpy())
                held = table[variant].take(pa.array(present)).combine_chunks().cast(pa.binary()).to_pylist()
                words.append(hash_words(b"".join(held)))
                owners.append(present + start)
            full = pc.binary_join_element_wise(pa.scalar(item.name), table["name"], "/")
            names.append(full.combine_chunks())
            start += table.num_rows
    return np.concatenate(words), np.concatenate(owners), pa.concat_arrays(names)


def _rows_of(decision: Decision, numbers: Sequence[int]) -> dict[int, Row]:
    """Return the kept rows of these numbers, which are sorted."""
    wanted, found = np.array(numbers, np.int64), dict[int, Row]()
    for start, kept in _kept(decision):
        here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + kept.num_rows)]
        if here.size:
            found.update(zip(here.tolist(), kept.take(pa.array(here - start)).to_pylist(), strict=True))
    return found


def _kept(decision: Decision) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for _, rows in ledger_by_shard(decision.ledger, list(COLUMNS)):
        kept = rows.filter(pc.fill_null(rows["kept"], False))
        yield start, kept
        start += kept.num_rows
