"""How well a model tells a picture's own caption from another's: what a data filter is for.

`auc` is the share of (matched, shuffled) couples of pairs whose matched one has the higher cosine, over all pictures:
one threshold for the whole set, as a filter has. Retrieval asks each picture or caption for itself. Captions of the
same picture, and equal captions of others, are nobody's shuffled ones. Source of the retrieval measure: CLIP,
arXiv:2103.00020, appendix E.
"""

# N pairs, U things asked from, V answers, C of a chunk, D width

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.parallel.gathering import gather_rows
from headrace.train.parallel.ranks import Ranks

MAX_PAIRS = 10_000
"""The first of a pass that are compared; of more, the matrix of all against all would take minutes."""
SHUFFLES = 20
CHUNK = 1024
RECALLED_AT = (1, 5)

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class PairPass:
    """Features of the first pairs of a pass, on the host."""

    def __init__(self) -> None:
        self._features: list[Floats] = []
        self._ids: list[Ids] = []

    def add(
        self, batch: Batch, *, column: str, counted_B: NDArray[np.bool_], image_BD: Tensor, text_BD: Tensor
    ) -> None:
        """Keep the rows of a batch that count; `column` holds their captions."""
        rows = np.flatnonzero(counted_B & (batch.position < MAX_PAIRS)).tolist()
        both = torch.cat([image_BD, text_BD], dim=1).detach().float().cpu().numpy()
        self._features.append(both[rows])
        pictures = [_id(np.ascontiguousarray(batch.images[row]).tobytes()) for row in rows]
        texts = [_id(batch.columns[column][row].encode()) for row in rows]
        self._ids.append(np.array([batch.position[rows], pictures, texts], np.int64).T)

    def values(self, ranks: Ranks) -> dict[str, float]:
        """Return the values of all ranks' pairs, the same on each; called on all. Empty where there are under two."""
        features = np.concatenate(self._features) if self._features else np.zeros((0, 0), np.float32)
        ids = np.concatenate(self._ids) if self._ids else np.zeros((0, 3), np.int64)
        width = int(max(size for (size,) in ranks.each([features.shape[1]], "the widths of features")))
        features = _all_rows(features.reshape(len(features), width), ranks)
        ids = _all_rows(ids, ranks)
        order = np.argsort(ids[:, 0], kind="stable")
        features, ids = features[order], ids[order]
        half = width // 2
        return matching_values(features[:, :half], features[:, half:], picture_N=ids[:, 1], caption_N=ids[:, 2])


def matching_values(image_ND: Floats, text_ND: Floats, *, picture_N: Ids, caption_N: Ids) -> dict[str, float]:
    """Return `auc`, and the recall at 1 and 5 in both directions, of features of length 1.

    Equal ids mark the same picture and the same text. Empty where nothing is to be told apart.
    """
    shuffled = _shuffled_scores(image_ND, text_ND, picture_N, caption_N)
    if not len(shuffled):
        return {}
    matched = np.sum(image_ND * text_ND, axis=1)
    values = {"auc": area_under_curve(matched, shuffled)}
    to_text = _ranks(image_ND, text_ND, picture_N, caption_N)
    to_image = _ranks(text_ND, image_ND, caption_N, picture_N)
    for name, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
        values |= {f"{name}_at_{best}": float(np.mean(ranks < best)) for best in RECALLED_AT}
    return values


def area_under_curve(high: Floats, low: Floats) -> float:
    """Return the share of couples (one of `high`, one of `low`) in which the first is larger; a tie counts half."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, side="left") + np.searchsorted(ordered, high, side="right")
    return float(below.sum() / 2 / len(high) / len(low))


def _shuffled_scores(image_ND: Floats, text_ND: Floats, picture_N: Ids, caption_N: Ids) -> Floats:
    """Return cosines of pictures with captions of others: the same for the same set, whatever ran before."""
    order = np.random.Generator(np.random.Philox(key=len(image_ND))).permutation(len(image_ND))
    scores = []
    for shift in range(1, min(SHUFFLES, len(order) - 1) + 1):
        other = np.roll(order, shift)
        differ = (picture_N[order] != picture_N[other]) & (caption_N[order] != caption_N[other])
        scores.append(np.sum(image_ND[order[differ]] * text_ND[other[differ]], axis=1))
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def _ranks(from_ND: Floats, to_ND: Floats, from_N: Ids, to_N: Ids) -> Ids:
    """Return, for each thing asked from, how many wrong answers score above the best right one.

    Equal ids are one thing, so an equal caption of another picture is right too.
    """
    _, first_U, unit_N = np.unique(from_N, return_index=True, return_inverse=True)
    _, first_V, answer_N = np.unique(to_N, return_index=True, return_inverse=True)
    answers_VD, found = to_ND[first_V], np.zeros(len(first_U), np.int64)
    for start in range(0, len(first_U), CHUNK):
        scores_CV = from_ND[first_U[start : start + CHUNK]] @ answers_VD.T
        pairs = np.flatnonzero((unit_N >= start) & (unit_N < start + CHUNK))
        right_CV = np.zeros(scores_CV.shape, np.bool_)
        right_CV[unit_N[pairs] - start, answer_N[pairs]] = True
        best_C = np.where(right_CV, scores_CV, -np.inf).max(axis=1)
        found[start : start + CHUNK] = ((scores_CV > best_C[:, None]) & ~right_CV).sum(axis=1)
    return found


def _all_rows(own: NDArray[Any], ranks: Ranks) -> NDArray[Any]:
    """Return the rows of all ranks, whatever number each has."""
    counts = [int(count) for (count,) in ranks.each([len(own)], "how many pairs each rank has")]
    padded = np.zeros((max(counts), own.shape[1]), own.dtype)
    padded[: len(own)] = own
    rows = gather_rows(torch.from_numpy(padded), ranks, "the features of a pass").numpy()
    return np.concatenate([part[:count] for part, count in zip(np.split(rows, ranks.size), counts, strict=True)])


def _id(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)
