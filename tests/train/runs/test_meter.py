"""A line of metrics says what all ranks cost, from one reduction."""

import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from headrace.pipeline import Batch
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.ranks import ALONE, Ranks
from headrace.train.runs import meter
from headrace.train.runs.meter import BY_RANK, Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class Three(Ranks):
    """Rank 1 of three, of which the others say what the test wants."""

    others: dict[int, list[float]]
    calls: list[int]

    def sum(self, values: Sequence[float], where: str = "") -> list[float]:
        assert not where
        self.calls.append(len(values))
        flat, width = list(values), len(values) // self.size
        for rank, row in self.others.items():
            assert not any(flat[rank * width : (rank + 1) * width])
            flat[rank * width : (rank + 1) * width] = row
        return flat


@pytest.fixture
def objective() -> Objective:
    """A tiny AIM."""
    config = AimConfig(kind="aim", model="tiny", patch=4, width=16, depth=2, heads=2, head_width=16, head_depth=1)
    return build_objective(config, image_size=16, seed=0)


def test_each_number_is_the_mean_and_the_worst_with_its_rank(
    objective: Objective, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "peak_flops", lambda _device: 1e9)
    monkeypatch.setattr(meter, "peak_memory", lambda _device: (3e9, 4e9))
    batch = make_batch(4)
    needed = objective.needed_flops(batch)
    others = {
        0: [0.5, 1.0, 1e9, 9e9, 4, needed, 5, 1e9],
        2: [0.7, 9.0, 2e9, 2e9, 4, needed, 6, 1e9],
    }
    calls: list[int] = []
    ranks = Three(rank=1, size=3, device=ALONE.device, others=others, calls=calls)
    monkeypatch.setattr(meter, "time", types.SimpleNamespace(time=time.time, perf_counter=lambda: 102.0))
    counted = Meter(started=100.0, since=100.0)
    for _ in range(10):
        counted.add(images=12_000, waited=0.2)
    line = counted.read(objective, batch, ranks)
    assert calls == [3 * 8]  # one reduction
    assert line["step_seconds"] == pytest.approx((0.5 + 0.7 + 0.2) / 3, abs=0.01)
    assert (line["step_seconds_worst"], line["step_seconds_worst_rank"]) == (0.7, 2)
    assert line["data_wait_seconds"] == 4.0  # as ever the mean of (1, 2, 9)
    assert (line["data_wait_seconds_worst"], line["data_wait_seconds_worst_rank"]) == (9.0, 2)
    assert line["memory_allocated_bytes"] == 2_000_000_000
    assert (line["memory_allocated_bytes_worst"], line["memory_allocated_bytes_worst_rank"]) == (3_000_000_000, 1)
    assert (line["memory_reserved_bytes_worst"], line["memory_reserved_bytes_worst_rank"]) == (9_000_000_000, 0)
    assert line["batch_digest"] == 11 + meter.batch_digest(batch)
    assert line["images_per_second"] == pytest.approx(60_000, rel=0.02)
    assert line["data_wait_percent"] == pytest.approx(200, rel=0.02)
    # MFU: images/s x needed operations an image / (peak x devices), whatever is computed beside.
    expected = 100 * line["images_per_second"] * (needed / 4) / (3 * 1e9)
    assert line["mfu_percent"] == pytest.approx(expected, rel=1e-3, abs=0.01)
    assert line["needed_tflops"] < line["tflops"]
    assert counted.read(objective, batch, ALONE)["data_wait_seconds"] == 0


def test_mfu_is_null_where_the_peak_of_a_device_is_unknown(
    objective: Objective, make_batch: Callable[..., Batch]
) -> None:
    line = Meter().read(objective, make_batch(4), ALONE)
    assert line["mfu_percent"] is None
    assert line["memory_reserved_bytes"] is None
    assert line["memory_reserved_bytes_worst"] is None
    assert line["memory_allocated_bytes"] == line["memory_bytes"] > 0
    assert [line[f"{name}_worst_rank"] for name in BY_RANK] == [0, 0, 0, None]


def test_memory_of_a_gpu_is_what_tensors_take_and_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10 + device.index)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 20 + device.index)
    assert meter.peak_memory(torch.device("cuda", 1)) == (11.0, 21.0)


def test_an_objective_that_says_nothing_needs_all_of_its_operations(
    objective: Objective, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(4)
    assert Objective.needed_flops(objective, batch) == 4 * objective.train_flops_per_image
    assert isinstance(objective, Aim)
    assert objective.needed_flops(batch) < Objective.needed_flops(objective, batch)
