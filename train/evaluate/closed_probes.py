"""Heads that nothing is fitted for by steps: weighted nearest neighbours, and least squares on a few shots.

Each process takes its share of a dataset through the trunk and keeps it. Of the training set nothing else is moved:
every query goes to every process, and comes back with the neighbours that it found.
"""

# B batch, Q queries, K neighbours, N rows, D width, C classes

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.train.evaluate.feature_cache import open_cache
from headrace.train.evaluate.features import FeaturesConfig, as_half, check_memory, iterate_features
from headrace.train.evaluate.few_shot import (
    PUBLISHED_L2,
    TEST_ROWS,
    FewShotConfig,
    Ridge,
    choose_l2,
    draw_shots,
    fit_ridge,
)
from headrace.train.evaluate.knn import QUERY_ROWS, KnnConfig, Neighbours, merged, nearest, padded, votes
from headrace.train.evaluate.labels import Labels
from headrace.train.evaluate.probes import ProbeTask, features_of
from headrace.train.parallel.ranks import Ranks

KS = (10, 20, 100, 200)
"""Neighbours that DINO's evaluation asks (arXiv:2104.14294, section 4.1); 20 is reported."""
DISPLAYED_SHOTS = 10
VOTE_BYTES = 64 << 20


class Pooled(NamedTuple):
    """Pooled features of some places of a dataset, ascending."""

    place_N: Tensor
    """int64."""
    sets: list[Tensor]
    """For each set of blocks float16 [N, D], on the CPU."""


def knn_probe(task: ProbeTask) -> dict[str, Any]:
    """Tell each test sample by its nearest training samples; called on all ranks."""
    features = features_of(task)
    bank = _share(task, task.train, features, only_N=task.train.label_N >= 0)
    test = _test(task, features)
    ks = [k for k in KS if k <= max(KnnConfig().k, len(task.train))]
    rows = [_knn_rows(task, bank, test, which=which, ks=ks) for which in range(len(features.layer_sets))]
    found = [next(row for row in table if row["k"] == KnnConfig().k)["test_accuracy"] for table in rows]
    samples = int(task.ranks.sum([len(bank.place_N)], "the samples")[0])
    told = _told(task, samples, test, features, found)
    return {"accuracy": found[0], "by_k": rows[0], "temperature": KnnConfig().temperature, **told}


def few_shot_probe(task: ProbeTask) -> dict[str, Any]:
    """Fit least squares on a few shots of each class, for several numbers of them; called on all ranks.

    Only what is drawn goes through the trunk. A shot that turns out to be damaged is left out.
    """
    features, config = features_of(task), FewShotConfig()
    drawn = [
        draw_shots(task.train.label_N, shots, classes=task.train.classes, seed=seed) for shots, seed in _cases(config)
    ]
    only_N = np.zeros(len(task.train), np.bool_)
    only_N[np.concatenate(drawn)] = True
    held = dataclasses.replace(features, memory_bytes=task.config.memory_bytes)
    bank, test = _everywhere(_share(task, task.train, held, only_N=only_N), task.ranks), _test(task, features)
    sets = range(len(features.layer_sets))
    tables = [_by_shots(_few_shot_rows(task, bank, test, drawn, which=which), config) for which in sets]
    # At the fixed penalty: published numbers are, and with few shots the choice of another is noisy.
    shown = [
        next(row for row in table if row["shots"] == DISPLAYED_SHOTS)["published_l2_test_accuracy"] for table in tables
    ]
    told = _told(task, len(bank.place_N), test, features, shown)
    return {"accuracy": shown[0], "by_shots": tables[0], **told}


def _cases(config: FewShotConfig) -> list[tuple[int, int]]:
    return [(shots, seed) for shots in config.shots for seed in config.seeds]


def _test(task: ProbeTask, features: FeaturesConfig) -> Pooled:
    # Each process holds all of it, and `features` allow for a share.
    wanted = dataclasses.replace(features, samples=0, memory_bytes=task.config.memory_bytes)
    return _everywhere(_share(task, task.test, wanted, only_N=task.test.label_N >= 0), task.ranks)


def _told(
    task: ProbeTask, samples: int, test: Pooled, features: FeaturesConfig, accuracies: Sequence[float]
) -> dict[str, Any]:
    by_depth = [
        {"blocks": list(layers), "test_accuracy": accuracy}
        for layers, accuracy in zip(features.more_layers, accuracies[1:], strict=True)
    ]
    return {
        **({"by_depth": by_depth} if task.config.sweep_depth else {}),
        "classes": task.train.classes,
        "train_samples": samples,
        "test_samples": len(test.place_N),
        "left_out": task.test.left_out,
        "features": "memory" if task.cache is None else "cache",
    }


def _share(task: ProbeTask, labels: Labels, features: FeaturesConfig, *, only_N: NDArray[np.bool_]) -> Pooled:
    """Return this process's share of the features of the places where `only_N` is true, damaged samples left out.

    Raises ValueError if they would not fit into `memory_bytes`.
    """
    shape = task.trunk.encoder.shape
    check_memory(shape, labels.url, int(only_N.sum()), features)
    if task.cache is not None:
        store = open_cache(task.cache, task.trunk, labels.url, features, task.ranks)
        place_N = store.own(np.flatnonzero(store.has_N & only_N))
        return Pooled(torch.from_numpy(place_N), store.read(place_N))
    places = [torch.empty(0, dtype=torch.int64)]
    parts: list[list[Tensor]] = [[] for _ in features.layer_sets]
    for rows in iterate_features(task.trunk, labels.url, features, task.ranks, only=only_N):
        places.append(torch.from_numpy(rows.place_B))
        for part, x_BD in zip(parts, rows.sets, strict=True):
            part.append(as_half(x_BD, labels.url).cpu())
    empty = torch.empty(0, *features.row_shape(shape), dtype=torch.float16)
    return Pooled(torch.cat(places), [torch.cat([empty, *part]) for part in parts])


def _everywhere(own: Pooled, ranks: Ranks) -> Pooled:
    """Return the shares of all ranks together, in the order of places; called on all ranks."""
    if ranks.size == 1:
        return own
    sizes = [int(size) for (size,) in ranks.each([len(own.place_N)], "the shares of features")]

    def together(rows: Tensor) -> Tensor:
        filled = rows.new_zeros((max(sizes), *rows.shape[1:]))
        filled[: len(rows)] = rows
        parts = torch.split(ranks.all_rows(filled, "the shares of features"), max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    place_N = together(own.place_N)
    order = place_N.argsort()
    return Pooled(place_N[order], [together(x_ND)[order] for x_ND in own.sets])


def _knn_rows(task: ProbeTask, bank: Pooled, test: Pooled, *, which: int, ks: Sequence[int]) -> list[dict[str, float]]:
    """Return the accuracy for each number of neighbours."""
    config, ranks, most = KnnConfig(), task.ranks, max(ks)
    label_N = torch.from_numpy(task.train.label_N)[bank.place_N]
    right, whole = np.zeros(len(ks)), 0.0
    for number, rows in enumerate(torch.split(torch.arange(len(test.place_N)), QUERY_ROWS)):
        queries_QD = test.sets[which][rows]
        own = Neighbours(torch.empty(len(rows), 0), *(torch.empty(len(rows), 0, dtype=torch.int64) for _ in range(2)))
        if len(label_N):
            own = nearest(bank.sets[which], label_N, queries_QD, k=most, place_N=bank.place_N, device=task.trunk.device)
        found = _of_all(padded(own, most), ranks)
        if number % ranks.size != ranks.rank:
            continue
        tallies = [_tally(found, k, config, task, test.place_N[rows].numpy()) for k in ks]
        right += [tally for tally, _ in tallies]
        whole += tallies[0][1]
    *rights, counted = ranks.sum([*right, whole], "the votes")
    return [{"k": k, "test_accuracy": round(each / counted, 6)} for k, each in zip(ks, rights, strict=True)]


def _of_all(own: Neighbours, ranks: Ranks) -> Neighbours:
    """Return the nearest of what each rank has found for the same queries."""
    if ranks.size == 1:
        return own
    rows, k = own.cosine_QK.shape
    parts = [torch.split(ranks.all_rows(column, "the neighbours"), rows) for column in own]
    return merged([Neighbours(*columns) for columns in zip(*parts, strict=True)], k=k)


def _tally(
    found: Neighbours, k: int, config: KnnConfig, task: ProbeTask, place_Q: NDArray[np.int64]
) -> tuple[float, float]:
    right, whole = 0.0, 0.0
    size = max(1, VOTE_BYTES // (8 * task.train.classes))
    for start in range(0, len(place_Q), size):
        part = slice(start, start + size)
        few = Neighbours(*(column[part, :k] for column in found))
        votes_QC = votes(few, config.temperature, classes=task.train.classes)
        right_R, counted = task.test.tally(votes_QC[None], place_Q[part])
        right, whole = right + float(right_R), whole + counted
    return right, whole


def _few_shot_rows(
    task: ProbeTask, bank: Pooled, test: Pooled, drawn: Sequence[NDArray[np.int64]], *, which: int
) -> list[list[float]]:
    """Return l2 and accuracies (chosen l2, published l2) of each draw; each process computes some of them."""
    ranks, rows = task.ranks, [[0.0, 0.0, 0.0] for _ in drawn]
    for number in range(ranks.rank, len(drawn), ranks.size):
        places = torch.from_numpy(drawn[number])
        places = places[torch.isin(places, bank.place_N)]
        ridge = fit_ridge(
            bank.sets[which][torch.searchsorted(bank.place_N, places)],
            torch.from_numpy(task.train.label_N)[places],
            classes=task.train.classes,
            device=task.trunk.device,
        )
        l2, _ = choose_l2(ridge, FewShotConfig().l2s)
        rows[number] = [l2, *(_accuracy(ridge, each, task, test, which=which) for each in (l2, PUBLISHED_L2))]
    flat = ranks.sum([value for row in rows for value in row], "few shots")
    return [flat[start : start + 3] for start in range(0, len(flat), 3)]


def _accuracy(ridge: Ridge, l2: float, task: ProbeTask, test: Pooled, *, which: int) -> float:
    places = torch.split(test.place_N, TEST_ROWS)
    tallies = [
        task.test.tally(scores_QC[None], place_Q.numpy())
        for scores_QC, place_Q in zip(ridge.scores(test.sets[which], l2), places, strict=True)
    ]
    return math.fsum(float(right) for right, _ in tallies) / math.fsum(whole for _, whole in tallies)


def _by_shots(rows: Sequence[Sequence[float]], config: FewShotConfig) -> list[dict[str, Any]]:
    """Return a row for each number of shots: means over the seeds."""
    seeds = len(config.seeds)
    table = []
    for number, shots in enumerate(config.shots):
        of_seeds = rows[number * seeds : (number + 1) * seeds]
        chosen, published = ([row[column] for row in of_seeds] for column in (1, 2))
        table.append(
            {
                "shots": shots,
                "test_accuracy": round(math.fsum(chosen) / seeds, 6),
                "published_l2_test_accuracy": round(math.fsum(published) / seeds, 6),
                "l2s": [row[0] for row in of_seeds],
                "by_seed": [round(accuracy, 6) for accuracy in chosen],
            }
        )
    return table
