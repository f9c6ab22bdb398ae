"""The losses between views are what slow loops in float64 give, and what the papers say of their ranges."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.train.objectives.contrastive.losses import (
    Rows,
    info_nce,
    nt_xent,
    sinkhorn,
    squared_distance,
    swapped_prediction,
    unit,
)

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "contrastive.py"
spec = importlib.util.spec_from_file_location("golden_contrastive", GOLDEN_FILE)
assert spec is not None
assert spec.loader is not None
slow: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slow)
GOLDEN = json.loads(GOLDEN_FILE.with_suffix(".json").read_text())


def all_rows(number: int, dtype: torch.dtype) -> Rows:
    return Rows(torch.arange(number), torch.ones(number, dtype=dtype), torch.ones(number, dtype=dtype))


def features(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    views, prototypes = slow.inputs()
    return unit(torch.tensor(views, dtype=torch.float64)).to(dtype), unit(torch.tensor(prototypes, dtype=dtype))


def moco(view_2ND: Tensor, key_2ND: Tensor, rows: Rows, temperature: float) -> Tensor:
    first, second = (info_nce(view_2ND[v], key_2ND[1 - v], rows, temperature=temperature)[0] for v in (0, 1))
    return (first + second).sum() / rows.counted_N.sum()


def swav(views: Tensor, prototypes: Tensor, queue: list[Tensor] | None = None) -> Tensor:
    cosines = [view @ prototypes.T for view in views]
    codes = []
    for number in (0, 1):
        every = cosines[number] if queue is None else torch.cat([cosines[number], queue[number] @ prototypes.T])
        found = sinkhorn(every, torch.ones(len(every), dtype=every.dtype), epsilon=0.05, iterations=3)
        codes.append(found[: len(views[0])])
    return swapped_prediction(cosines, codes, temperature=0.1).mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_each_loss_is_that_of_slow_loops(dtype: torch.dtype, tolerance: float) -> None:
    views, prototypes = features(dtype)
    rows = all_rows(slow.PICTURES, dtype)
    queue = [unit(torch.tensor(slow.waves(20.0 + number, 3, slow.WIDTH), dtype=dtype)) for number in (0, 1)]
    distances = [squared_distance(views[v], views[3 - v]).mean() for v in (0, 1)]
    codes = sinkhorn(views[0] @ prototypes.T, rows.counted_N, epsilon=0.05, iterations=3)
    found = {
        "moco": [moco(views[:2], views[2:], rows, temperature) for temperature in (0.2, 1.0)],
        "simclr": [nt_xent(views[:2], views[:2], rows, temperature=t)[0].mean() for t in (0.1, 0.5)],
        "byol": float(sum(distances)),
        "codes": codes.tolist(),
        "swav": [swav(views, prototypes), swav(views, prototypes, queue)],
    }
    again = json.loads(json.dumps(slow.golden()))
    for name, value in GOLDEN.items():
        torch.testing.assert_close(torch.tensor(again[name]), torch.tensor(value), msg=f"{name}: golden.json is old")
        given, wanted = torch.tensor(found[name], dtype=torch.float64), torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(given, wanted, rtol=tolerance, atol=tolerance, msg=f"{name}: {found[name]}")


def test_rows_that_do_not_count_change_nothing() -> None:
    """The padding of a finite pass is nobody's negative and has no code, whatever stands in it."""
    views, prototypes = features(torch.float64)
    counted_B = torch.tensor([1.0, 1, 0, 1, 1, 0], dtype=torch.float64)
    kept = counted_B.bool()
    padded, short = Rows(torch.arange(6), counted_B, counted_B), all_rows(4, torch.float64)
    assert torch.allclose(moco(views[:2], views[2:], padded, 0.2), moco(views[:2, kept], views[2:, kept], short, 0.2))
    loss_B, right_B = nt_xent(views[:2], views[:2], padded, temperature=0.1)
    assert torch.allclose(loss_B[kept], nt_xent(views[:2, kept], views[:2, kept], short, temperature=0.1)[0])
    assert loss_B[~kept].tolist() == right_B[~kept].tolist() == [0, 0]
    codes = sinkhorn(views[0] @ prototypes.T, counted_B, epsilon=0.05, iterations=3)
    fewer = sinkhorn(views[0, kept] @ prototypes.T, short.counted_N, epsilon=0.05, iterations=3)
    assert torch.allclose(codes[kept], fewer)
    assert not codes[~kept].any()
    none = sinkhorn(views[0] @ prototypes.T, torch.zeros(6), epsilon=0.05, iterations=3)
    assert not none.any()


def test_losses_of_a_collapsed_model_are_those_of_chance() -> None:
    """4 tau ln N, ln (2N - 1), 0 for BYOL (which is why it needs more than its loss), ln K."""
    number, width = 8, 5
    same = unit(torch.ones(2, number, width, dtype=torch.float64))
    rows = all_rows(number, torch.float64)
    assert float(moco(same, same, rows, 0.2)) == pytest.approx(4 * 0.2 * math.log(number))
    assert float(nt_xent(same, same, rows, temperature=0.1)[0].mean()) == pytest.approx(math.log(2 * number - 1))
    assert squared_distance(same[0], same[1]).tolist() == pytest.approx([0.0] * number)
    prototypes = unit(torch.ones(3, width, dtype=torch.float64))
    assert float(swav(same, prototypes)) == pytest.approx(math.log(3))


def test_codes_share_pictures_out_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines_NK = unit(torch.randn(64, 16, generator=generator)) @ unit(torch.randn(8, 16, generator=generator)).T
    codes_NK = sinkhorn(cosines_NK, torch.ones(64), epsilon=0.05, iterations=100)
    torch.testing.assert_close(codes_NK.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(codes_NK.sum(dim=0), torch.full((8,), 8.0), rtol=1e-3, atol=1e-3)
    assert not codes_NK.requires_grad
