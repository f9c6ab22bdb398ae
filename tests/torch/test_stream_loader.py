"""A loader for training scripts: batches of the stream in the form asked for, resumed in the middle of an epoch."""

import copy
import dataclasses
import gc
import json
import math
import pickle
import subprocess
import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from headrace.pipeline import Mixture, open_stream
from headrace.torch import StreamLoader
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise


def positions(loader: StreamLoader) -> list[int]:
    return [position for batch in loader for position in batch["position"].tolist()]


def test_a_batch_is_a_dict_of_tensors_and_lists(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8, columns=["label", "caption"]) as stream:
        wanted = next(stream)
    with StreamLoader(mixture, batch_size=8, columns=["label", "caption"]) as loader:
        batch = next(iter(loader))
    assert list(batch) == ["images", "other_views", "label", "caption", "position", "key"]
    assert batch["images"].dtype == torch.uint8
    assert np.array_equal(batch["images"].numpy(), wanted.images.transpose(0, 3, 1, 2))
    assert [tuple(view.shape) for view in batch["other_views"]] == [(8, 3, 8, 8)]
    assert batch["label"].tolist() == list(wanted.columns["label"])
    assert (batch["caption"], batch["key"]) == (wanted.columns["caption"], wanted.key)


def test_normalised_pictures_are_those_of_the_trainer(mixture: Mixture) -> None:
    options: dict[str, Any] = {"batch_size": 8, "normalise": (IMAGENET_MEAN, IMAGENET_STD)}
    with (
        open_stream(mixture, global_batch=8) as stream,
        StreamLoader(mixture, **options) as loader,
        StreamLoader(mixture, memory_format=torch.channels_last, **options) as channels_last,
    ):
        wanted = Normalise(IMAGENET_MEAN, IMAGENET_STD)(next(stream).images)
        images, same = next(iter(loader))["images"], next(iter(channels_last))["images"]
    assert torch.equal(images, wanted)
    assert images.is_contiguous()
    assert torch.equal(same, wanted)
    assert same.is_contiguous(memory_format=torch.channels_last)


def test_a_tuple_and_a_function_of_the_users(mixture: Mixture) -> None:
    with StreamLoader(mixture, batch_size=8, columns=["label"], form="tuple") as loader:
        images, small, label = next(iter(loader))
    assert (images.shape, small.shape, label.shape) == ((8, 3, 16, 16), (8, 3, 8, 8), (8,))
    with StreamLoader(mixture, batch_size=8, collate=lambda batch: (batch.images.shape, batch.key)) as loader:
        shape, keys = next(iter(loader))
    assert shape == (8, 3, 16, 16)
    assert len(keys) == 8


def test_a_map_adds_columns_and_bytes_come_undecoded(mixture: Mixture) -> None:
    undecoded = dataclasses.replace(mixture, decoder="none", views=())

    def length(sample: Any, _: object) -> dict[str, Any]:
        return {"length": len(sample.columns["caption"])}

    with StreamLoader(undecoded, batch_size=8, columns=["caption"], map=length) as loader:
        batch = next(iter(loader))
        assert batch["length"].tolist() == [len(caption) for caption in batch["caption"]]
        assert "images" not in batch
        assert all(data.startswith(b"\xff\xd8") for data in batch["data"])


def test_an_epoch_ends_after_its_steps_and_the_next_goes_on(mixture: Mixture) -> None:
    with StreamLoader(mixture, batch_size=8, steps_per_epoch=3) as loader:
        assert len(loader) == 3
        assert positions(loader) + positions(loader) == list(range(48))


def test_a_loader_that_continues_in_an_epoch_gives_the_rest_of_it(mixture: Mixture) -> None:
    for steps in range(6):
        with StreamLoader(mixture, batch_size=8, steps_per_epoch=3) as loader:
            for _ in range(steps // 3):
                positions(loader)
            for _ in zip(range(steps % 3), loader, strict=False):
                pass
            state = json.loads(json.dumps(loader.state_dict()))
        assert state["position"] == steps * 8
        with StreamLoader(mixture, batch_size=8, steps_per_epoch=3) as loader:
            loader.load_state_dict(state)
            end = (steps // 3 + 1) * 24
            assert positions(loader) == list(range(steps * 8, end))
            assert positions(loader) == list(range(end, end + 24))


def test_a_finite_pass_has_a_length_and_begins_again_also_from_a_state_of_its_end(mixture: Mixture) -> None:
    with StreamLoader(mixture, global_batch=24, once=True) as loader:
        assert len(loader) == 3
        for _ in range(2):
            batches = list(loader)
            assert [int(batch["valid"].sum()) for batch in batches] == [24, 24, 16]
        state = loader.state_dict()
    with StreamLoader(mixture, global_batch=24, once=True) as loader:
        loader.load_state_dict(state)
        assert len(positions(loader)) == 72


def test_a_finite_pass_that_was_broken_off_begins_again_unless_a_state_was_loaded(mixture: Mixture) -> None:
    """As a DataLoader: Lightning looks at two batches of a validation loader before it validates with all of them."""
    with StreamLoader(mixture, global_batch=8, once=True) as loader:
        assert positions_of(loader, 2) == list(range(16))
        state = loader.state_dict()
        assert positions(loader) == list(range(64))
        assert positions_of(loader, 3) == list(range(24))
        for _ in range(2):
            loader.load_state_dict(state)
            assert positions(loader) == list(range(16, 64))
            assert positions(loader) == list(range(64))


def test_an_endless_loader_has_no_length_and_is_true(mixture: Mixture) -> None:
    with StreamLoader(mixture, batch_size=8) as loader:
        with pytest.raises(TypeError, match="an endless StreamLoader has no length: pass steps_per_epoch"):
            len(loader)
        assert loader
        assert positions_of(loader, 3) + positions_of(loader, 2) == list(range(40))


def positions_of(loader: StreamLoader, batches: int) -> list[int]:
    iterator = iter(loader)
    return [position for _ in range(batches) for position in next(iterator)["position"].tolist()]


def test_the_rank_is_that_of_the_environment_unless_it_is_said(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StreamLoader(mixture, batch_size=4) as loader:
        assert (loader.stream.rank, loader.stream.world_size, loader.stream.global_batch) == (1, 2, 8)
        mine = positions_of(loader, 1)
        positions_of(loader, 1)
    assert caplog.text.count("torch has no process group") == 1  # not at each loop
    with StreamLoader(mixture, global_batch=8, rank=0, world_size=2) as loader:
        assert loader.batch_size == 4
        assert sorted(mine + positions_of(loader, 1)) == list(range(8))


def test_a_state_continues_at_another_world_size_and_finite_passes_are_as_long_on_every_rank(mixture: Mixture) -> None:
    with StreamLoader(mixture, global_batch=8) as loader:
        positions_of(loader, 3)
        state = loader.state_dict()
    got, lengths = [], []
    for rank in range(2):
        place = {"rank": rank, "world_size": 2}
        with StreamLoader(mixture, global_batch=8, **place) as loader:  # type: ignore[arg-type]
            loader.load_state_dict(state)
            got += positions_of(loader, 2)
        with StreamLoader(mixture, global_batch=24, once=True, **place) as loader:  # type: ignore[arg-type]
            lengths.append((len(loader), len(list(loader))))
        with (
            StreamLoader(mixture, batch_size=8, **place) as loader,  # type: ignore[arg-type]
            pytest.raises(ValueError, match="global_batch was 8, this stream has 16"),
        ):
            loader.load_state_dict(state)
    assert sorted(got) == list(range(24, 40))
    assert lengths == [(3, 3), (3, 3)]


def test_a_process_group_that_comes_later_with_another_rank_is_refused(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.torch import place

    with StreamLoader(mixture, batch_size=4) as loader:
        assert loader.stream.world_size == 1
        monkeypatch.setattr(place.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(place.distributed, "get_rank", lambda: 1)
        monkeypatch.setattr(place.distributed, "get_world_size", lambda: 2)
        with pytest.raises(ValueError, match="reads as rank 0 of 1, this process is rank 1 of 2 of its group"):
            iter(loader)
    with StreamLoader(mixture, batch_size=4) as loader:
        assert (loader.stream.rank, loader.stream.world_size) == (1, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "pass one of batch_size"),
        ({"batch_size": 4, "global_batch": 4}, "pass one of batch_size"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"batch_size": 4, "steps_per_epoch": 3, "once": True}, "a finite pass has its own length"),
        ({"batch_size": 4, "rank": 0}, "rank and world_size belong together"),
        ({"batch_size": 4, "prefetch": 0}, "prefetch must be at least 1, got 0"),
        (
            {"batch_size": 4, "normalise": (0.5, 0.5)},
            r"normalise is \(mean, std\), three numbers each.* got \(0.5, 0.5\)",
        ),
        ({"batch_size": 4, "normalise": ((0.5,) * 3, (0.5,))}, "normalise is .mean, std., three numbers each"),
        ({"batch_size": 4, "normalise": ((0.5,) * 3, (0.5, 0.0, 0.5))}, "normalise is .mean, std.*, std over 0, got"),
        ({"batch_size": 4, "normalise": ((0.5,) * 3,) * 3}, "normalise is .mean, std., three numbers each"),
        ({"batch_size": 4, "form": "list"}, "form is 'dict' or 'tuple', got 'list'"),
        ({"batch_size": 4, "columns": ["key"]}, "columns key: a batch has its own entries of that name"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StreamLoader("no such file", **options)


class _Wrapped(IterableDataset[Any]):
    def __init__(self, loader: StreamLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


def test_a_dataloader_around_an_endless_loader_is_refused(mixture: Mixture) -> None:
    with (
        StreamLoader(mixture, batch_size=8) as loader,
        pytest.raises(TypeError, match="if a DataLoader asks, use this loader instead of it, not inside one"),
    ):
        next(iter(DataLoader(loader)))  # type: ignore[arg-type]


def test_dataloader_workers_are_refused(mixture: Mixture) -> None:
    with StreamLoader(mixture, batch_size=8, steps_per_epoch=2) as loader:
        with pytest.raises(TypeError, match="use it instead of a DataLoader, not inside one"):
            next(iter(DataLoader(loader)))  # type: ignore[arg-type]
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a StreamLoader cannot be copied to another process"):
                duplicate(loader)  # type: ignore[operator]
        alone = DataLoader(_Wrapped(loader), batch_size=None)
        assert [batch["position"][0].item() for batch in alone] == [0, 8]
        workers = DataLoader(_Wrapped(loader), batch_size=None, num_workers=2, multiprocessing_context="fork")
        with pytest.raises(ValueError, match="use num_workers=0"):
            list(workers)


def test_a_loader_made_here_and_opened_in_a_worker_is_refused(mixture: Mixture) -> None:
    with StreamLoader(mixture, batch_size=8, steps_per_epoch=2) as loader:
        workers = DataLoader(_Wrapped(loader), batch_size=None, num_workers=2, multiprocessing_context="fork")
        with pytest.raises(ValueError, match="opened as rank 0 of 1 in worker"):
            list(workers)


def test_lightnings_fetcher_is_refused_where_it_would_drop_a_batch(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType("lightning.pytorch.loops.fetchers")
    exec(  # as far as a frame shows it; test_frameworks.py has the real one
        "class Fetcher:\n"
        "    prefetch_batches = 1\n"
        "    def begin(self, loader, limits):\n"
        "        self.combined_loader = type('Combined', (), {'limits': limits})\n"
        "        return iter(loader)\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with StreamLoader(mixture, batch_size=8) as loader:
        with pytest.raises(ValueError, match="pass steps_per_epoch to StreamLoader, or limit_train_batches"):
            module.Fetcher().begin(loader, [math.inf])
        module.Fetcher().begin(loader, [20])
    with StreamLoader(mixture, batch_size=8, steps_per_epoch=4) as loader:
        module.Fetcher().begin(loader, [math.inf])


def test_without_pytorch_the_package_says_what_to_install() -> None:
    program = "import sys; sys.modules['torch'] = None; import headrace.torch"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert "headrace.torch needs PyTorch; pip install 'headrace[train]'" in done.stderr


def test_a_loader_that_is_forgotten_ends_its_threads(mixture: Mixture) -> None:
    before = set(threading.enumerate())
    loader = StreamLoader(mixture, batch_size=8)
    positions_of(loader, 1)
    del loader
    gc.collect()
    end = time.monotonic() + 150
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < end
        time.sleep(0.01)
