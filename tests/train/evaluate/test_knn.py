"""Neighbours are exact, whatever the blocks, and equal ones always fall the same way."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.train.evaluate import knn
from headrace.train.evaluate.knn import KnnConfig, knn_classes, merged, nearest, vote


def slow_classes(bank: np.ndarray, labels: list[int], queries: np.ndarray, *, k: int, temperature: float) -> list[int]:
    """One query after the other, one row after the other, in float64."""
    classes = []
    for query in queries.astype(np.float64):
        found = []
        for place, row in enumerate(bank.astype(np.float64)):
            length = math.sqrt(float(row @ row)) * math.sqrt(float(query @ query))
            found.append((-round(float(row @ query) / length if length else 0.0, 6), place))
        votes: dict[int, float] = {}
        for minus_cosine, place in sorted(found)[:k]:
            votes[labels[place]] = votes.get(labels[place], 0.0) + math.exp(-minus_cosine / temperature)
        best = max(votes.values())
        classes.append(min(label for label, weight in votes.items() if weight > best * (1 - 1e-9)))
    return classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_the_slow_vote(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(7, 12, generator=generator)
    labels = torch.randint(7, (150,), generator=generator)
    bank = (centres[labels] + torch.randn(150, 12, generator=generator)).to(dtype)
    queries = torch.randn(60, 12, generator=generator).to(dtype)
    for k in (1, 5, 20, 500):
        config = KnnConfig(k=k)
        expected = slow_classes(bank.numpy(), labels.tolist(), queries.numpy(), k=k, temperature=0.07)
        assert knn_classes(bank, labels, queries, config).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ties_fall_to_the_first_row_and_the_lowest_class(data: Any) -> None:
    """Rows of -1, 0 and 1 along axes: many are exactly as near as others."""
    rows = st.sampled_from([(1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)])
    bank = data.draw(st.lists(rows, min_size=1, max_size=30))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(bank), max_size=len(bank)))
    queries = data.draw(st.lists(rows, min_size=1, max_size=4))
    k = data.draw(st.integers(1, 8))
    arrays = np.array(bank, np.float32), np.array(queries, np.float32)
    expected = slow_classes(arrays[0], labels, arrays[1], k=k, temperature=0.5)
    config = KnnConfig(k=k, temperature=0.5)
    bank_ND, queries_QD = map(torch.from_numpy, arrays)
    assert knn_classes(bank_ND, torch.tensor(labels), queries_QD, config).tolist() == expected


def test_blocks_and_shares_of_the_bank_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    bank = torch.randint(-2, 3, (203, 3), generator=generator).float()  # of many twins
    labels = torch.randint(9, (203,), generator=generator)
    queries = torch.randn(40, 3, generator=generator)
    whole = nearest(bank, labels, queries, k=20)
    assert (whole.place_QK.sort(dim=1).values.diff(dim=1) > 0).all()
    monkeypatch.setattr(knn, "BANK_ROWS", 17)
    monkeypatch.setattr(knn, "VOTE_BYTES", 1)
    shares = [torch.arange(start, 203, 3) for start in range(3)]
    parts = [nearest(bank[rows], labels[rows], queries, k=20, place_N=rows) for rows in shares]
    for found in (nearest(bank, labels, queries, k=20), merged(parts[::-1], k=20)):
        assert torch.equal(found.place_QK, whole.place_QK)
        assert torch.equal(found.label_QK, whole.label_QK)
        assert torch.equal(vote(found, 0.07), vote(whole, 0.07))


def test_a_small_temperature_is_not_infinite() -> None:
    bank = torch.eye(2)
    assert knn_classes(bank, torch.tensor([5, 3]), bank, KnnConfig(k=2, temperature=0.01)).tolist() == [5, 3]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="features are not finite"):
        knn_classes(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]), torch.ones(1, 2), KnnConfig())
    with pytest.raises(ValueError, match="no features to compare with"):
        knn_classes(torch.ones(0, 2), torch.tensor([]), torch.ones(1, 2), KnnConfig())
    with pytest.raises(ValueError, match=r"k must be 1\.\.1000, got 0"):
        KnnConfig(k=0)
    with pytest.raises(ValueError, match="temperature must be within"):
        KnnConfig(temperature=math.nan)
