"""The images of evaluation sets as a row is compared with them: by bytes, by PDQ, by embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.curation.select.hamming import WORDS, Indices, Words, hash_words
from headrace.curation.select.vectors import Vectors, pairs_over, unit_vectors
from headrace.shards.parquet import read_table, write_parquet

HASH_BYTES = 8 * WORDS
EMBEDDINGS = ("embedding", "embedding_mirrored")
_WORDS = tuple(f"word_{number}" for number in range(WORDS))


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
    def of(cls, tables: Mapping[str, pa.Table], min_quality: int, variants: Sequence[str]) -> "References":
        """Gather these hashes of the tables of `evaluation.SCHEMA`, by name of the set.

        A column may hold several hashes a row, one after the other.
        """
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
            for variant in variants:
                hashes = table[variant].take(pa.array(usable)).to_pylist()
                words.append(hash_words(b"".join(hashes)))
                images.append(np.repeat(usable + start, [len(some) // HASH_BYTES for some in hashes]))
        both = np.concatenate([np.concatenate(words), np.concatenate(images)[:, None].astype(np.uint64)], axis=1)
        distinct = np.unique(both, axis=0)
        image_of = distinct[:, WORDS].astype(np.int64)
        order = np.argsort(image_of, kind="stable")
        found = np.ascontiguousarray(distinct[order, :WORDS])
        return cls(found, image_of[order], np.array(names, object), np.array(sets, object), by_sha256)

    def write(self, folder: Path) -> None:
        """Write them for other processes into `folder`, which is made."""
        folder.mkdir()
        words = {word: self.words[:, number] for number, word in enumerate(_WORDS)}
        write_parquet(str(folder / "hashes.parquet"), pa.table({**words, "image": self.image_of}))
        images = {"name": pa.array(self.names, pa.string()), "set": pa.array(self.sets, pa.string())}
        write_parquet(str(folder / "images.parquet"), pa.table(images))
        sums = {"sha256": pa.array(list(self.by_sha256), pa.string()), "image": list(self.by_sha256.values())}
        write_parquet(str(folder / "sums.parquet"), pa.table(sums))

    @classmethod
    def read(cls, folder: Path) -> "References":
        """Return what was written."""
        hashes, images, sums = (read_table(str(folder / f"{name}.parquet")) for name in ("hashes", "images", "sums"))
        return cls(
            words=np.stack([hashes[word].to_numpy() for word in _WORDS], axis=1),
            image_of=hashes["image"].to_numpy(),
            names=np.array(images["name"].to_pylist(), object),
            sets=np.array(images["set"].to_pylist(), object),
            by_sha256=dict(zip(sums["sha256"].to_pylist(), sums["image"].to_pylist(), strict=True)),
        )


@dataclass(frozen=True, slots=True)
class EmbeddedReferences:
    """The embeddings of the images of all evaluation sets, and of their mirror images."""

    vectors: Vectors
    image_of: Indices
    """[m]: the image of each vector, as `References` numbers them."""

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table]) -> "EmbeddedReferences":
        """Gather the embeddings of tables that have them. Raises ValueError if they differ in length."""
        columns: list[pa.Array] = []
        images: list[Indices] = []
        start = 0
        for table in tables.values():
            for name in EMBEDDINGS:
                present = np.flatnonzero(pc.is_valid(table[name]).to_numpy())
                columns.append(table[name].take(pa.array(present)).combine_chunks())
                images.append(present + start)
            start += table.num_rows
        together = pa.chunked_array(columns, pa.list_(pa.float16()))
        vectors = unit_vectors(together, "embedding") if len(together) else np.zeros((0, 1), np.float32)
        return cls(vectors, np.concatenate([np.zeros(0, np.int64), *images]))

    def search(self, queries: Vectors, threshold: float) -> tuple[NDArray[np.float64], Indices]:
        """Return (cosine, image) of the most like image of each query; 0 and -1 where none reaches `threshold`.

        Of several alike, the first.
        """
        best, image = np.zeros(len(queries)), np.full(len(queries), -1, np.int64)
        self.check_length(queries)
        for query, reference, cosine in pairs_over(queries, self.vectors, threshold):
            found = self.image_of[reference]
            order = np.lexsort((found, -cosine, query))
            first = order[np.r_[True, np.diff(query[order]) != 0]] if order.size else order
            best[query[first]], image[query[first]] = cosine[first], found[first]
        return best, image

    def check_length(self, queries: Vectors) -> None:
        """Raise ValueError if the rows' embeddings are of another model."""
        if len(queries) and len(self.vectors) and queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"the rows' embeddings have {queries.shape[1]} numbers, those of the evaluation images "
                f"{self.vectors.shape[1]}; both must be of one model"
            )


def details_of(references: References) -> dict[str, Any]:
    """Return what a summary says of the references."""
    protected = len(np.unique(references.image_of))
    return {
        "evaluation_images": len(references.names),
        "evaluation_hashes": len(references.words),
        "found_only_as_same_bytes": len(references.names) - protected,
    }
