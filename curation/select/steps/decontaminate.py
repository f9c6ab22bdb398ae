"""The step `decontaminate`: drop copies of images of evaluation sets.

Exact: every pair within the distance is found. A row without a hash cannot be cleared, so it is dropped (reason
`no-hash`); quality is asked of the evaluation image only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import insert, read_batches
from headrace.curation.select.evaluation import VARIANTS, EvaluationSet
from headrace.curation.select.hamming import FAR, WORDS, Indices, NearestReference, Words, hash_words
from headrace.curation.select.load import HASH_COLUMNS, word_column
from headrace.curation.select.step import Bench, Links, Step, StepResult

MAX_EVALUATION_DISTANCE = 64

VERDICT_SCHEMA = pa.schema(
    [
        ("__row", pa.int64()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class References:
    """The images of all evaluation sets of a step, numbered through."""

    words: Words
    """[m, 4]: their distinct usable hashes."""
    image_of: Indices
    """[m]: the image of each hash."""
    names: NDArray[np.object_]
    sets: NDArray[np.object_]
    by_sha256: dict[str, int]

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], min_quality: int) -> "References":
        """Gather the tables of `evaluation.SCHEMA`, by name of the set."""
        words, images = [np.zeros((0, WORDS), np.uint64)], [np.zeros(0, np.int64)]
        names: list[str] = []
        sets: list[str] = []
        by_sha256: dict[str, int] = {}
        for set_name, table in tables.items():
            start = len(names)
            names += table["name"].to_pylist()
            sets += [set_name] * table.num_rows
            for row, sha256 in enumerate(table["sha256"].to_pylist()):
                by_sha256.setdefault(sha256, start + row)
            usable = np.flatnonzero(table["quality"].fill_null(-1).to_numpy() >= min_quality)
            for variant in VARIANTS:
                words.append(hash_words(b"".join(table[variant].take(pa.array(usable)).to_pylist())))
                images.append(usable + start)
        both = np.concatenate([np.concatenate(words), np.concatenate(images)[:, None].astype(np.uint64)], axis=1)
        distinct = np.unique(both, axis=0)
        image_of = distinct[:, WORDS].astype(np.int64)
        order = np.argsort(image_of, kind="stable")
        found = np.ascontiguousarray(distinct[order, :WORDS])
        return cls(found, image_of[order], np.array(names, object), np.array(sets, object), by_sha256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decontaminate(Step):
    """Drop every image that is, by sha256 or by PDQ, a copy of an image of an evaluation set."""

    step: Literal["decontaminate"] = "decontaminate"
    """The tag of this step."""
    name: str = "decontaminate"
    """Name in the ledger and the funnel."""
    against: tuple[EvaluationSet, ...]
    """The evaluation sets."""
    distance: int = 31
    """Differing bits, of 256, up to which an image counts as a copy."""
    min_quality: int = 50
    """An evaluation image of lower PDQ quality (flat, almost empty) is found only as the same bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MAX_EVALUATION_DISTANCE:
            raise ValueError(f"distance must be 0 to {MAX_EVALUATION_DISTANCE} of 256 bits, got {self.distance}")
        names = [item.name for item in self.against]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"against needs evaluation sets, each with its own name; got {names}")

    links: ClassVar[Links] = "references"

    def needs_columns(self) -> tuple[str, ...]:
        return ("sha256", *HASH_COLUMNS)

    def evaluation_sets(self) -> tuple[EvaluationSet, ...]:
        return self.against

    def run(self, bench: Bench) -> StepResult:
        references = References.of(bench.evaluation, self.min_quality)
        nearest = NearestReference(references.words, self.distance)
        words = ", ".join(word_column(name, word) for name in HASH_COLUMNS for word in range(WORDS))
        insert(bench.connection, "verdict", VERDICT_SCHEMA.empty_table())
        for table in read_batches(bench.connection, f"SELECT __row, sha256, {words} FROM here ORDER BY __row"):
            insert(bench.connection, "verdict", _judge(table, references, nearest, self.distance))
        protected = len(np.unique(references.image_of))
        details = {
            "evaluation_images": len(references.names),
            "evaluation_hashes": len(references.words),
            "found_only_as_same_bytes": len(references.names) - protected,
        }
        return StepResult(float(self.distance), details)


def _judge(table: pa.Table, references: References, nearest: NearestReference, threshold: int) -> pa.Table:
    best = np.full(table.num_rows, FAR, np.int16)
    image = np.full(table.num_rows, -1, np.int64)
    hashed = np.zeros(table.num_rows, bool)
    for name in HASH_COLUMNS:
        present = np.flatnonzero(~table[word_column(name, 0)].is_null().to_numpy())
        hashed[present] = True
        columns = [table[word_column(name, word)].fill_null(0).to_numpy()[present] for word in range(WORDS)]
        found, index = nearest.search(np.ascontiguousarray(np.stack(columns, axis=1)))
        candidate = np.where(index >= 0, references.image_of[index] if len(references.image_of) else -1, -1)
        better = (found < best[present]) | ((found == best[present]) & (candidate < image[present]))
        best[present[better]], image[present[better]] = found[better], candidate[better]
    for row, sha256 in enumerate(table["sha256"].to_pylist()):
        same = references.by_sha256.get(sha256)
        if same is not None:
            best[row], image[row] = 0, same
    return _verdict(table["__row"].to_numpy(), best, image, hashed, references, threshold)


def _verdict(
    rows: Indices,
    best: NDArray[np.int16],
    image: Indices,
    hashed: NDArray[np.bool_],
    references: References,
    threshold: int,
) -> pa.Table:
    copies = np.flatnonzero(image >= 0)
    unknown = np.flatnonzero((image < 0) & ~hashed)
    sets, names = references.sets[image[copies]], references.names[image[copies]]
    return pa.table(
        {
            "__row": np.concatenate([rows[copies], rows[unknown]]),
            "reason": [f"evaluation:{name}" for name in sets] + ["no-hash"] * unknown.size,
            "value": pa.array([*best[copies].astype(float), *([None] * unknown.size)], pa.float64()),
            "threshold": np.full(copies.size + unknown.size, float(threshold)),
            "duplicate_of": [f"{a}/{b}" for a, b in zip(sets, names, strict=True)] + [None] * unknown.size,
        },
        schema=VERDICT_SCHEMA,
    )
