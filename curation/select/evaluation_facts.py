"""What else is known of each image of an evaluation set: hashes of its crops and turns, its embedding.

Facts are dear (a tenth of a second an image), so they are kept beside the hashes, in a folder of their own, and made
only for a step that asks for them. The rows are those of the table of hashes, in its order.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import atomic, files, urlpath
from headrace.curation.annotate.annotator import digest
from headrace.curation.annotate.annotators.copy_embedding import CopyEmbedding, CopyEmbeddingConfig, descriptor
from headrace.curation.annotate.annotators.hash_variants import crop, turn
from headrace.curation.annotate.annotators.hashes import Hashes, image_pdq
from headrace.curation.annotate.annotators.onnx_image import open_image_model
from headrace.curation.select.copies import Pixels
from headrace.curation.select.evaluation import (
    INLINE_IMAGES,
    MAX_IMAGE_BYTES,
    EvaluationSet,
    Part,
    evaluation_units,
    read_part,
)
from headrace.lease import NO_FENCE, Fence
from headrace.shards.heartbeat import beat
from headrace.shards.images.decode import decode_rgb
from headrace.shards.parquet import read_table, write_parquet
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units

# Chosen by recall on 40 photographs: each share finds crops up to its neighbours', each turn about a degree more.
CROP_SHARES = (0.97, 0.94, 0.91)
CROP_PLACES = (0.0, 0.5, 1.0)
TURN_DEGREES = (-4.0, -2.5, -1.2, 1.2, 2.5, 4.0)
# A crop of nothing but sky looks like any other: such are left out.
MIN_VARIANT_QUALITY = 50


class Fact(Protocol):
    """One kind of fact; a small frozen dataclass, as worker processes get it."""

    @property
    def name(self) -> str:
        """Name of its folder: two that differ in what they make differ in it."""

    @property
    def schema(self) -> pa.Schema:
        """Its columns; null where the image does not decode."""

    def of(self, pixels: Pixels) -> dict[str, Any]:
        """Return the values for an upright RGB image, uint8 [H, W, 3]."""


@dataclass(frozen=True, slots=True)
class VariantHashes:
    """PDQ of 27 crops, and of 12 turns: 6 with black corners, 6 without corners."""

    @property
    def name(self) -> str:
        return f"variants-1-{Hashes.version}"

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("variants", pa.binary())])

    def of(self, pixels: Pixels) -> dict[str, Any]:
        hashed = (image_pdq(variant) for variant in image_variants(pixels))
        return {"variants": b"".join(pdq for pdq, quality in hashed if quality >= MIN_VARIANT_QUALITY)}


def image_variants(pixels: Pixels) -> Iterator[Pixels]:
    """Yield crops and turns of an image."""
    for share in CROP_SHARES:
        for down in CROP_PLACES:
            for right in CROP_PLACES:
                yield crop(pixels, share, down=down, right=right)
    for degrees in TURN_DEGREES:
        yield turn(pixels, degrees)
        yield turn(pixels, degrees, inside=True)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The copy-detection descriptor of an image and of its mirror image."""

    model: CopyEmbeddingConfig

    @property
    def name(self) -> str:
        return f"embeddings-{self.digest()[:16]}"

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, pa.list_(pa.float16())) for name in ("embedding", "embedding_mirrored")])

    def of(self, pixels: Pixels) -> dict[str, Any]:
        mirrored = np.ascontiguousarray(pixels[:, ::-1])
        return {"embedding": self.embedding_of(pixels), "embedding_mirrored": self.embedding_of(mirrored)}

    def embedding_of(self, pixels: Pixels) -> NDArray[np.float16]:
        """Return the descriptor of an image, [D], as `annotate.copy_embedding` gives it."""
        return descriptor(open_image_model(self.model.model, self.model.input(), CopyEmbedding.name), pixels)

    def digest(self) -> str:
        """Return the digest of model and settings, which names the annotator's tables too."""
        return digest(CopyEmbedding(self.model))


@dataclass(frozen=True, slots=True)
class FactUnit:
    """A unit of work: one fact of the images of these parts, into one table."""

    name: str
    parts: tuple[Part, ...]
    out: str
    fact: Fact
    fence: Fence = NO_FENCE
    """Asked before the table is put in its place."""


def with_fact(
    table: pa.Table,
    evaluation: EvaluationSet,
    fact: Fact,
    folder: str,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
    *,
    fence: Fence = NO_FENCE,
) -> pa.Table:
    """Return a table of hashes with the columns of a fact, which is kept under `folder`.

    Raises ValueError if the images changed meanwhile.
    """
    place = urlpath.join(folder, evaluation.name, fact.name)
    units = [FactUnit(unit.name, unit.parts, unit.out, fact, fence) for unit in evaluation_units(evaluation, place)]
    atomic.remove_leftovers(place)
    small = len(units) == 1 and table.num_rows <= INLINE_IMAGES // 10
    run_units(fact_unit, units, EngineConfig(executor="inline") if small else engine, on_progress)
    schema = _schema(fact)
    found = pa.concat_tables([schema.empty_table(), *(read_table(unit.out).cast(schema) for unit in units)])
    if not found["sha256"].combine_chunks().equals(table["sha256"].combine_chunks()):
        raise ValueError(f"evaluation set {evaluation.name!r}: its images changed while they were read; run again")
    for field in fact.schema:
        table = table.append_column(field, found[field.name])
    return table


def fact_unit(unit: FactUnit) -> None:
    """Write the table of a unit; facts of bytes in an older table of it are kept."""
    known = {row["sha256"]: row for row in read_table(unit.out).to_pylist()} if files.exists(unit.out) else {}
    rows = []
    for part in unit.parts:
        for name, data in read_part(part):
            sha256 = hashlib.sha256(data).hexdigest()
            rows.append({**(known.get(sha256) or _of(data, unit.fact)), "name": name, "sha256": sha256})
            beat(images=1)
    unit.fence.check()
    write_parquet(unit.out, pa.Table.from_pylist(rows, _schema(unit.fact)))


def _of(data: bytes, fact: Fact) -> dict[str, Any]:
    try:
        # Which images do not decode is counted, and judged, where they are hashed.
        pixels = decode_rgb(data) if len(data) <= MAX_IMAGE_BYTES else None
    except ValueError:
        return {}
    return {} if pixels is None else fact.of(pixels)


def _schema(fact: Fact) -> pa.Schema:
    return pa.schema([("name", pa.string()), ("sha256", pa.string()), *fact.schema])
