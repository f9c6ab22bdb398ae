"""How far rows lie from the middle of their group.

Copies are made from the original, each in its own way. So a bit of the hash that the original has, most copies have
too, while what was done to one copy is seen in that one alone: the original is nearest to what most rows have.
"""

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import insert, read_batches
from headrace.curation.select.groups import whole_runs
from headrace.curation.select.hamming import WORDS
from headrace.curation.select.load import word_column

CENTRED_SCHEMA = pa.schema([("__row", pa.int64()), ("apart", pa.int32())])
ROWS_AT_A_TIME = 20_000
MIN_ROWS = 3
"""Two rows have no middle."""


def create_centred(connection: duckdb.DuckDBPyConnection, column: str) -> None:
    """Create `centred`: of the rows of groups of three and more, the bits of a hash that most of the group lack.

    Reads `grouped` (`__row`, `label`) and the words of the hash in `near`. Rows without the hash are left out.
    """
    words = [word_column(column, word) for word in range(WORDS)]
    query = f"""
        SELECT __row, label, {", ".join(words)} FROM grouped JOIN near USING (__row) WHERE {words[0]} IS NOT NULL
        QUALIFY count(*) OVER (PARTITION BY label) >= {MIN_ROWS} ORDER BY label, __row
        """
    insert(connection, "centred", CENTRED_SCHEMA.empty_table())
    for table in whole_runs(read_batches(connection, query, ROWS_AT_A_TIME), "label"):
        found = np.stack([table[name].to_numpy() for name in words], axis=1).astype("<u8")
        apart = bits_apart(found.view(np.uint8), table["label"].to_numpy())
        insert(connection, "centred", pa.table([table["__row"], pa.array(apart)], schema=CENTRED_SCHEMA))


def bits_apart(hashes: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return how many bits of hashes [N, bytes] differ from those of more than half of their group.

    `labels` are in order. A bit that just half of a group has counts as one that most lack.
    """
    if len(labels) == 0:
        return np.zeros(0, np.int32)
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(labels)]))
    counts = np.zeros((len(starts), hashes.shape[1] * 8), np.int64)
    # In pieces: a group may hold all the placeholders of the web.
    pieces = [slice(start, start + ROWS_AT_A_TIME) for start in range(0, len(labels), ROWS_AT_A_TIME)]
    for piece in pieces:
        first = np.flatnonzero(np.r_[True, np.diff(group[piece]) > 0])
        bits = np.unpackbits(hashes[piece], axis=1)
        counts[group[piece][first]] += np.add.reduceat(bits, first, axis=0, dtype=np.int64)
    most = np.packbits(2 * counts > np.bincount(group)[:, None], axis=1)
    apart = [np.bitwise_count(hashes[piece] ^ most[group[piece]]).sum(axis=1, dtype=np.int32) for piece in pieces]
    return np.concatenate(apart)
