"""The step `blocklist`: drop every image that `fetch.blocklist` names, by sha256, URL, host or PDQ.

A recipe with a blocklist begins with it; it need not be written. What it drops stands in the ledger without its URL and
without a uid that could be traced. An image without the PDQ or sha256 that is looked for cannot be cleared, so it is
dropped (reason `no-hash`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from headrace.curation.blocklist import Blocklist, BlocklistConfig, blocklist_digest, load_blocklist
from headrace.curation.raw.schema import BLOCKED
from headrace.curation.select.database import insert, read_batches
from headrace.curation.select.hamming import WORDS, NearestReference, hash_words
from headrace.curation.select.load import HASH_COLUMNS, word_column
from headrace.curation.select.step import VERDICT_SCHEMA, Bench, Step, StepResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocked(Step):
    """Drop every image that is on a blocklist, by sha256, URL, host or PDQ."""

    step: Literal["blocklist"] = "blocklist"
    """The tag of this step."""
    name: str = "blocklist"
    """Name in the ledger and the funnel."""
    files: BlocklistConfig
    """The files of hashes."""

    each_row: ClassVar[bool] = True
    shows_dropped: ClassVar[bool] = False
    names_dropped: ClassVar[bool] = False

    def needs_columns(self) -> tuple[str, ...]:
        return ("sha256", "url", *(HASH_COLUMNS if self.files.pdq else ()))

    def read_digests(self) -> tuple[str, ...]:
        return (blocklist_digest(self.files),)

    def run(self, bench: Bench) -> StepResult:
        listed = load_blocklist(self.files)
        nearest = NearestReference(hash_words(listed.pdq), self.files.pdq_distance)
        hashes = HASH_COLUMNS if self.files.pdq else ()
        words = "".join(f", {word_column(name, word)}" for name in hashes for word in range(WORDS))
        insert(bench.connection, "verdict", VERDICT_SCHEMA.empty_table())
        for table in read_batches(bench.connection, f"SELECT __row, sha256, url{words} FROM here ORDER BY __row"):
            insert(bench.connection, "verdict", _judge(table, listed, nearest, hashes))
        details = {"images": len(listed.sha256), "urls": len(listed.urls), "pdq": len(listed.pdq) // 32}
        return StepResult(None, {"hashes": details})


def _judge(table: pa.Table, listed: Blocklist, nearest: NearestReference, hashes: tuple[str, ...]) -> pa.Table:
    hit = np.array([listed.has_image(digest) for digest in table["sha256"].to_pylist()], bool)
    hit |= np.array([listed.has_url(url) for url in table["url"].to_pylist()], bool)
    summed = table["sha256"].is_valid().to_numpy() | (not len(listed.sha256))
    hashed = np.full(table.num_rows, not hashes)
    for name in hashes:
        present = np.flatnonzero(~table[word_column(name, 0)].is_null().to_numpy())
        columns = [table[word_column(name, word)].fill_null(0).to_numpy()[present] for word in range(WORDS)]
        _, index = nearest.search(np.ascontiguousarray(np.stack(columns, axis=1)))
        hashed[present] = True
        hit[present[index >= 0]] = True
    out = np.flatnonzero(hit | ~(hashed & summed))
    reasons = np.where(hit[out], BLOCKED, "no-hash")
    return pa.table(
        {
            "__row": table["__row"].to_numpy()[out],
            "reason": reasons.astype(object),
            **{name: pa.nulls(len(out), VERDICT_SCHEMA.field(name).type) for name in VERDICT_SCHEMA.names[2:]},
        },
        schema=VERDICT_SCHEMA,
    )
