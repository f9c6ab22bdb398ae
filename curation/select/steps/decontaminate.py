"""The step `decontaminate`: drop copies of images of evaluation sets.

Exact: every pair within the distance, or over the cosine, is found. A row without a hash cannot be cleared, so it is
dropped (reason `no-hash`; `no-embedding` where embeddings are compared); quality is asked of the evaluation image only.
What a hash can find is another matter: the share of copies found is measured on the sets and stands in the summary.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.copy_embedding import CopyEmbeddingConfig
from headrace.curation.select.database import insert
from headrace.curation.select.evaluation import CENTRE_VARIANTS, VARIANTS, EvaluationSet
from headrace.curation.select.evaluation_facts import Embeddings, Fact, VariantHashes
from headrace.curation.select.evaluation_recall import EmbeddingProbe, HashProbe, measure_recall, sample_copies
from headrace.curation.select.expression import Checker
from headrace.curation.select.hamming import Indices
from headrace.curation.select.load import CENTRE_COLUMN, HASH_COLUMNS, present_hashes
from headrace.curation.select.reference_rows import compare_rows
from headrace.curation.select.references import EmbeddedReferences, References, details_of
from headrace.curation.select.step import VERDICT_SCHEMA, Bench, Links, ReadyStep, Step, StepResult, write_verdict
from headrace.curation.select.vectors import is_present, read_vectors

MAX_EVALUATION_DISTANCE = 64
EMBEDDING = "copy_embedding"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingCheck:
    """Compare embeddings of a copy-detection model as well."""

    model: CopyEmbeddingConfig
    """What `annotate.copy_embedding` says: the model that made the rows' embeddings. It is run on the evaluation
    images; another one is refused."""
    threshold: float
    """Cosine from which on an image counts as a copy: ISC21's `isc_ft_v107` 0.604169 (DataComp), DINOv2 0.45."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be a cosine above 0 and at most 1, got {self.threshold}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decontaminate(Step):
    """Drop every image that is, by sha256, by PDQ or by its embedding, a copy of an image of an evaluation set."""

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
    variants: bool = False
    """Also compare with 27 crops and 12 turns of each evaluation image: finds cropped and slightly turned copies, for
    80 ms of processor time an evaluation image (kept beside the ledgers) and slower comparisons."""
    by_embedding: EmbeddingCheck | None = None
    """Also compare embeddings; needs `annotate.copy_embedding`."""
    measure: int = 20
    """Images of each set that are changed in 13 ways to measure what share of copies is found; 0: none. It changes the
    summary alone: a ledger that is there already stays, and is measured anew."""

    links: ClassVar[Links] = "references"
    summary_settings: ClassVar[tuple[str, ...]] = ("measure",)

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MAX_EVALUATION_DISTANCE:
            raise ValueError(f"distance must be 0 to {MAX_EVALUATION_DISTANCE} of 256 bits, got {self.distance}")
        names = [item.name for item in self.against]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"against needs evaluation sets, each with its own name; got {names}")
        if self.measure < 0:
            raise ValueError(f"measure must be 0 or more images, got {self.measure}")

    def needs_columns(self) -> tuple[str, ...]:
        return ("sha256", *HASH_COLUMNS, *((EMBEDDING,) if self.by_embedding else ()))

    def needed_packages(self) -> tuple[str, ...]:
        return ("faiss", "onnxruntime") if self.by_embedding else ()

    def decides_by(self) -> dict[str, Any]:
        # What was not there before these settings were is left out, so that older ledgers are found again.
        new = {"variants": self.variants, "by_embedding": self.by_embedding}
        hidden = {"measure", *(name for name, value in new.items() if not value)}
        return {name: value for name, value in Step.decides_by(self).items() if name not in hidden}

    def evaluation_sets(self) -> tuple[EvaluationSet, ...]:
        return self.against

    def evaluation_facts(self) -> tuple[Fact, ...]:
        embeddings = (Embeddings(self.by_embedding.model),) if self.by_embedding else ()
        return (*((VariantHashes(),) if self.variants else ()), *embeddings)

    def read_digests(self) -> tuple[str, ...]:
        return (Embeddings(self.by_embedding.model).digest(),) if self.by_embedding else ()

    def counts_on(self) -> tuple[str, ...]:
        return (EMBEDDING,) if self.by_embedding else ()

    def check_annotations(self, annotations: Mapping[str, str]) -> None:
        made = annotations.get(EMBEDDING, "").rpartition("-")[2]
        if self.by_embedding and not (made and Embeddings(self.by_embedding.model).digest().startswith(made)):
            raise ValueError(
                f"step {self.name!r}: by_embedding.model is not the model of annotate.copy_embedding, which makes the "
                "rows' embeddings; give both the same model and settings"
            )

    def prepare(self, checker: Checker) -> ReadyStep:
        hashes = present_hashes(checker.names())
        embedding = (EMBEDDING,) if self.by_embedding else ()
        return ReadyStep(("sha256", *hashes, *embedding), functools.partial(self._judge_rows, hashes=hashes))

    def _judge_rows(self, bench: Bench, hashes: Sequence[str]) -> StepResult:
        references = self._references(bench.evaluation, hashes)
        by_hash = "verdict" if self.by_embedding is None else "by_hash"
        compare_rows(bench, by_hash, references, hashes, self.distance)
        if self.by_embedding is not None:
            self._judge_embeddings(bench, references, self.by_embedding)
        details = details_of(references) | {"compared_by": self._tiers()} | self.measured_now(bench.evaluation, hashes)
        return StepResult(float(self.distance), details)

    def _references(self, evaluation: Mapping[str, pa.Table], hashes: Sequence[str]) -> References:
        sets = (*VARIANTS, *CENTRE_VARIANTS) if CENTRE_COLUMN in hashes else VARIANTS
        return References.of(evaluation, self.min_quality, (*sets, *(("variants",) if self.variants else ())))

    def measured_now(self, evaluation: Mapping[str, pa.Table], columns: Sequence[str]) -> dict[str, Any]:
        if not self.measure:
            return {}
        hashes = present_hashes(columns)
        probes: list[HashProbe | EmbeddingProbe]
        probes = [HashProbe(self._references(evaluation, hashes), hashes, self.distance)]
        if self.by_embedding is not None:
            model = Embeddings(self.by_embedding.model)
            probes.append(EmbeddingProbe(EmbeddedReferences.of(evaluation), model, self.by_embedding.threshold))
        copies = sample_copies(self.against, evaluation, self.measure, self.min_quality)
        return {"measured": measure_recall(copies, probes)}

    def _tiers(self) -> list[str]:
        """Return in words by what copies are told."""
        tiers = ["sha256", f"PDQ of images and mirror images, {self.distance} bits"]
        tiers += [f"PDQ of 27 crops and 12 turns, {self.distance} bits"] if self.variants else []
        return tiers + ([f"embedding, cosine {self.by_embedding.threshold}"] if self.by_embedding else [])

    def _judge_embeddings(self, bench: Bench, references: References, check: EmbeddingCheck) -> None:
        """Write `verdict` from `by_hash` and the embeddings."""
        embedded = EmbeddedReferences.of(bench.evaluation)
        insert(bench.connection, "by_embedding", VERDICT_SCHEMA.empty_table())
        query = f"SELECT __row, {EMBEDDING} FROM here WHERE {is_present(EMBEDDING)} ORDER BY __row"
        for table, vectors in read_vectors(bench.connection, query, EMBEDDING):
            best, image = embedded.search(vectors, check.threshold)
            insert(bench.connection, "by_embedding", _alike(table, best, image, references, check.threshold))
        write_verdict(
            bench,
            f"""
            SELECT * FROM by_hash
            UNION ALL SELECT * FROM by_embedding ANTI JOIN by_hash USING (__row)
            UNION ALL SELECT __row, 'no-embedding', NULL, {check.threshold!r}::DOUBLE, NULL FROM here
            ANTI JOIN by_hash USING (__row) WHERE NOT coalesce({is_present(EMBEDDING)}, false)
            """,
        )
        for name in ("by_hash", "by_embedding"):
            bench.connection.execute(f"DROP TABLE {name}")


def _alike(
    table: pa.Table, best: NDArray[np.float64], image: Indices, references: References, threshold: float
) -> pa.Table:
    found = np.flatnonzero(image >= 0)
    sets, names = references.sets[image[found]], references.names[image[found]]
    return pa.table(
        {
            "__row": table["__row"].to_numpy()[found],
            "reason": [f"evaluation-embedding:{name}" for name in sets],
            "value": best[found],
            "threshold": np.full(found.size, threshold),
            "duplicate_of": [f"{a}/{b}" for a, b in zip(sets, names, strict=True)],
        },
        schema=VERDICT_SCHEMA,
    )
