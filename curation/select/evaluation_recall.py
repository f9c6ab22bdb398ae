"""How many copies of evaluation images a step would find: measured on the sets themselves, each time it runs.

Some images of each set are changed as pictures on the web are, and looked for as rows would be. A copy that matches
another image than its own is counted too: it would be a row dropped for nothing, or the set holds a picture twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.hashes import image_hashes
from headrace.curation.select.copies import COPIES, Pixels, copy_of
from headrace.curation.select.evaluation import EvaluationSet, read_images
from headrace.curation.select.evaluation_facts import Embeddings
from headrace.curation.select.hamming import FAR, NearestReference, hash_words
from headrace.curation.select.references import EmbeddedReferences, References
from headrace.curation.select.vectors import unit_vectors
from headrace.shards.images.decode import decode_rgb

Found = NDArray[np.int64]
"""The image that each copy was found to be of; -1: none."""


@dataclass(frozen=True, slots=True)
class SampledCopy:
    """A copy of an evaluation image."""

    kind: str
    image: int
    """The image it is of, as `References` numbers them."""
    pixels: Pixels


def sample_copies(
    sets: Sequence[EvaluationSet], tables: Mapping[str, pa.Table], images_per_set: int, min_quality: int
) -> Iterator[SampledCopy]:
    """Yield copies of all kinds of some images: of each set those of the lowest sha256 that are looked for."""
    start = 0
    for evaluation in sets:
        table = tables[evaluation.name]
        usable = np.flatnonzero(table["quality"].fill_null(-1).to_numpy() >= min_quality)
        names, sums = table["name"].to_pylist(), table["sha256"].to_pylist()
        chosen = {names[row]: row for row in sorted(usable.tolist(), key=lambda row: sums[row])[:images_per_set]}
        for name, data in read_images(evaluation.url, chosen.keys()):
            pixels = decode_rgb(data)
            for kind in COPIES:
                yield SampledCopy(kind, start + chosen[name], copy_of(pixels, kind))
        start += table.num_rows


class HashProbe:
    """Pictures looked for by PDQ, with the hashes that rows have."""

    def __init__(self, references: References, hashes: Sequence[str], distance: int) -> None:
        self._references = references
        self._hashes = hashes
        self._distance = distance
        self._seen: list[bytes] = []

    def see(self, pixels: Pixels) -> None:
        """Take a picture's hashes."""
        made = image_hashes(pixels)
        self._seen.append(b"".join(getattr(made, name) for name in self._hashes))

    def found(self) -> Found:
        """Return the nearest image of each picture seen, or -1."""
        nearest = NearestReference(self._references.words, self._distance)
        apart, reference = nearest.search(hash_words(b"".join(self._seen)))
        # [pictures, hashes]: the nearest of a picture's hashes, of several the first reference
        distance = apart.reshape(len(self._seen), len(self._hashes))
        index = reference.reshape(distance.shape)
        best = np.lexsort((index, distance), axis=1)[:, :1]
        image = np.take_along_axis(index, best, axis=1)[:, 0]
        near = np.take_along_axis(distance, best, axis=1)[:, 0] < FAR
        return np.where(near, self._references.image_of[image] if len(self._references.image_of) else -1, -1)


class EmbeddingProbe:
    """Pictures looked for by the embeddings of a model."""

    def __init__(self, embedded: EmbeddedReferences, model: Embeddings, threshold: float) -> None:
        self._embedded = embedded
        self._model = model
        self._threshold = threshold
        self._seen: list[NDArray[np.float16]] = []

    def see(self, pixels: Pixels) -> None:
        """Take a picture's embedding."""
        self._seen.append(self._model.embedding_of(pixels))

    def found(self) -> Found:
        """Return the most alike image of each picture seen, or -1."""
        values = pa.chunked_array([pa.array(self._seen, pa.list_(pa.float16()))])
        return self._embedded.search(unit_vectors(values, "embedding"), self._threshold)[1]


def measure_recall(copies: Iterator[SampledCopy], probes: Sequence[HashProbe | EmbeddingProbe]) -> dict[str, Any]:
    """Return for each kind of copy the share that a probe finds, and how many copies matched another image."""
    kinds: list[str] = []
    images: list[int] = []
    for copy in copies:
        kinds.append(copy.kind)
        images.append(copy.image)
        for probe in probes:
            probe.see(copy.pixels)
    if not kinds:
        return {"images": 0, "recall": {}, "copies_of_another_image": 0}
    true = np.array(images)
    found = np.stack([probe.found() for probe in probes])
    hit = (found == true).any(axis=0)
    wrong = ((found >= 0) & (found != true)).any(axis=0)
    recall = {kind: round(float(hit[np.array(kinds) == kind].mean()), 4) for kind in COPIES}
    return {"images": len(set(images)), "recall": recall, "copies_of_another_image": int(wrong.sum())}
