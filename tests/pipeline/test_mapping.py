"""A function of the user's: what it gives follows from (seed, position), and each of its faults is told in one line."""

import dataclasses
import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.pipeline import Batch, Mixture, Sample, SampleError, Source, View, open_stream
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode import DECODERS, Item
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.mapping import Mapper


def mapped(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    """Everything that a sample has, and some draws."""
    caption = sample.columns["caption"]
    return {
        "draws": rng.integers(0, 1 << 30, 3),
        "tokens": np.frombuffer((caption or "").encode().ljust(12, b" "), np.uint8).astype(np.int32),
        "words": (caption or "").split(),
        "mean": float(sample.image.mean()),
        "text": f"{sample.source}/{sample.key}@{sample.position}",
        "twice": 2 * sample.columns["label"],
    }


def taken(mixture: Mixture, steps: int, *, world_size: int = 1, **keys: Any) -> dict[int, tuple[object, ...]]:
    """Return by position what the map function gave, over all ranks."""
    found = {}
    for rank in range(world_size):
        with open_stream(
            mixture, global_batch=8, rank=rank, world_size=world_size, columns=["label", "caption"], map=mapped, **keys
        ) as stream:
            for _, batch in zip(range(steps), stream, strict=False):
                found.update(rows_of(batch))
    return found


def rows_of(batch: Batch) -> dict[int, tuple[object, ...]]:
    names = sorted(batch.columns)
    return {
        int(position): tuple(_plain(batch.columns[name][row]) for name in names)
        for row, position in enumerate(batch.position)
    }


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def test_what_it_returns_are_columns_of_the_batch(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8, columns=["label", "caption"], map=mapped) as stream:
        batch = next(stream)
    columns: dict[str, Any] = batch.columns
    assert list(columns) == ["label", "caption", "draws", "tokens", "words", "mean", "text", "twice"]
    assert (columns["draws"].shape, columns["draws"].dtype) == ((8, 3), np.int64)
    assert (columns["tokens"].shape, columns["tokens"].dtype) == ((8, 12), np.int32)
    assert columns["mean"].tolist() == pytest.approx([image.mean() for image in batch.images])
    assert columns["twice"].tolist() == (2 * columns["label"]).tolist()
    assert columns["words"] == [(caption or "").split() for caption in columns["caption"]]
    names = ("large", "small")
    assert columns["text"] == [
        f"{names[source]}/{key}@{position}"
        for source, key, position in zip(batch.source, batch.key, batch.position, strict=True)
    ]


@given(
    threads=st.integers(1, 5),
    world_size=st.sampled_from([1, 2, 4]),
    prefetch=st.integers(1, 4),
    memory=st.sampled_from([200_000, 1 << 30]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_same_for_any_threads_and_world_size(
    mixture: Mixture, threads: int, world_size: int, prefetch: int, memory: int
) -> None:
    plain = dataclasses.replace(mixture, decode_threads=1)
    other = dataclasses.replace(mixture, decode_threads=threads, prefetch_batches=prefetch, memory_bytes=memory)
    assert taken(other, 4, world_size=world_size) == taken(plain, 4)


@given(seed=st.integers(0, 1 << 40), position=st.integers(0, (1 << 62) - 1))
def test_a_generator_belongs_to_a_seed_and_a_position(seed: int, position: int) -> None:
    mapper = Mapper(mapped, seed)
    draws = mapper.rng(position).random(4)
    assert np.array_equal(draws, Mapper(lambda *_: None, seed).rng(position).random(4))
    assert not np.array_equal(draws, mapper.rng(position + 1).random(4))
    assert not np.array_equal(mapper.rng(position).random(8)[4:], mapper.rng(position + 1).random(4))
    assert not np.array_equal(draws, Mapper(mapped, seed + 1).rng(position).random(4))


def test_resume_gives_the_same_tail(mixture: Mixture, check_resumes: Callable[..., None]) -> None:
    check_resumes(lambda: open_stream(mixture, global_batch=8, columns=["label", "caption"], map=mapped), steps=6)
    check_resumes(
        lambda: open_stream(mixture, global_batch=8, columns=["label", "caption"], map=mapped, once=True), steps=8
    )


def test_states_with_and_without_a_function_are_one(mixture: Mixture) -> None:
    """A function cannot be told from another by what a state could hold."""
    with open_stream(mixture, global_batch=8) as stream:
        next(stream)
        state = stream.state_dict()
    with open_stream(mixture, global_batch=8, map=lambda *_: None) as stream:
        stream.load_state_dict(state)
        assert stream.state_dict() == state


def test_it_sees_every_view_and_may_write_them(mixture: Mixture) -> None:
    def invert(sample: Sample, _: np.random.Generator) -> None:
        assert [view.shape for view in sample.views] == [(16, 16, 3), (8, 8, 3)]
        assert sample.image is not sample.views[1]
        sample.views[1][:] = 255 - sample.views[1]

    views = dataclasses.replace(mixture, views=(View(), View(image_size=8)))
    with open_stream(views, global_batch=8) as stream, open_stream(views, global_batch=8, map=invert) as other:
        for _ in range(3):
            plain, written = next(stream), next(other)
            assert np.array_equal(plain.views[0], written.views[0])
            assert np.array_equal(255 - plain.views[1], written.views[1])


def test_a_column_of_the_index_may_be_replaced_but_not_written(mixture: Mixture) -> None:
    def caption(sample: Sample, _: np.random.Generator) -> dict[str, Any]:
        with pytest.raises(TypeError):
            sample.columns["caption"] = "x"  # type: ignore[index]
        return {"caption": len(sample.columns["caption"] or "")}

    with open_stream(mixture, global_batch=8, columns=["caption"], map=caption) as stream:
        column = next(stream).columns["caption"]
    assert isinstance(column, np.ndarray)
    assert column.dtype == np.int64


def test_it_may_use_its_memory_again(mixture: Mixture) -> None:
    own = threading.local()

    def position(sample: Sample, _: np.random.Generator) -> dict[str, Any]:
        buffer = own.__dict__.setdefault("buffer", np.zeros(2, np.int64))
        buffer[:] = sample.position
        return {"p": buffer}

    with open_stream(mixture, global_batch=8, map=position) as stream:
        batch = next(stream)
    assert np.array_equal(batch.columns["p"], np.stack([batch.position, batch.position], 1))


def test_tensors_of_torch_are_arrays(mixture: Mixture) -> None:
    torch = pytest.importorskip("torch")

    def tokens(sample: Sample, _: np.random.Generator) -> dict[str, Any]:
        return {"tokens": torch.full((3,), sample.position), "one": torch.tensor(0.5)}

    with open_stream(mixture, global_batch=8, map=tokens) as stream:
        batch = next(stream)
    columns: dict[str, Any] = batch.columns
    assert columns["tokens"][:, 0].tolist() == batch.position.tolist()
    assert (columns["one"].dtype, columns["one"].shape) == (np.float32, (8,))


def _raise(error: BaseException) -> None:
    raise error


FAULTS: list[tuple[Callable[[Sample], Any], str]] = [
    (lambda _: _raise(KeyError("name")), r"KeyError: 'name'"),
    (lambda _: _raise(StopIteration()), r"StopIteration"),
    (lambda _: _raise(ValueError("two\nlines")), r"ValueError: two lines"),
    (lambda _: 7, r"TypeError: it returned 7; expected a mapping of columns by name, or None"),
    (lambda _: {1: 2}, r"TypeError: it named a column 1; names are texts"),
    (lambda _: {"x": 1 << 64}, r"ValueError: column x: 18446744073709551616 has over 64 bits"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_a_fault_of_the_function_stops_the_run_and_names_the_sample(
    mixture: Mixture, fault: Callable[[Sample], Any], said: str
) -> None:
    def broken(sample: Sample, _: np.random.Generator) -> Any:
        return fault(sample) if sample.position == 11 else None

    with open_stream(mixture, global_batch=8, map=broken) as stream:
        next(stream)
        for _ in range(2):  # it stays before the batch
            with pytest.raises(ValueError, match=said) as caught:
                next(stream)
        message = str(caught.value)
        assert stream.bad_samples == {}
    assert "\n" not in message
    assert re.match(rf"map {__name__}\.test_a_fault.*broken: ", message)
    assert re.search(r"; sample '\d{5}' at position 11 of source '(large|small)', .*\.tar$", message)


def test_a_sample_that_the_function_refuses_is_replaced_and_counted(mixture: Mixture, tmp_path: Path) -> None:
    def refuse(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if sample.columns["label"] % 10 == 3:
            raise SampleError("three", f"label {sample.columns['label']}")
        return {"draw": rng.integers(1 << 30)}

    budget = dataclasses.replace(mixture, max_bad_fraction=0.5, quarantine=str(tmp_path / "bad.jsonl"))
    with open_stream(budget, global_batch=8, columns=["label"], map=refuse) as stream:
        batches = [next(stream) for _ in range(10)]
        bad = stream.bad_samples
    labels = np.concatenate([batch.columns["label"] for batch in batches])
    assert not (labels % 10 == 3).any()
    assert bad["three"] == sum(batch.num_replaced for batch in batches) > 0
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"three"}
    assert all(line["replaced_by"] for line in lines)
    # A replacement draws what its position draws.
    draws = {int(p): int(d) for batch in batches for p, d in zip(batch.position, batch.columns["draw"], strict=True)}
    mapper = Mapper(refuse, mixture.seed)
    assert draws == {position: int(mapper.rng(position).integers(1 << 30)) for position in draws}

    with open_stream(budget, global_batch=8, columns=["label"], map=refuse, once=True) as stream:
        rows = [(bool(v), int(label)) for b in stream for v, label in zip(b.valid, b.columns["label"], strict=True)]
    assert {label for valid, label in rows if valid and label % 10 == 3} == set()
    assert sum(valid for valid, _ in rows) == 64 - 5 - 2

    with (
        open_stream(
            dataclasses.replace(budget, max_bad_fraction=0.0), global_batch=64, columns=["label"], map=refuse
        ) as stream,
        pytest.raises(ValueError, match=r"too many damaged samples.*three"),
    ):
        list(itertools.islice(stream, 20))


@pytest.mark.parametrize("once", [False, True])
def test_arrays_of_one_column_go_together(mixture: Mixture, once: bool) -> None:
    def ragged(values: Mapping[int, Any]) -> Callable[..., dict[str, Any]]:
        return lambda sample, _: {"x": values.get(sample.position, np.zeros(3, np.float32))}

    for odd, said in (
        (np.zeros(2, np.float32), r"float32\[3\] for sample '\d+' and float32\[2\] for sample '\d+'"),
        (np.zeros(3), r"float32\[3\] for sample '\d+' and float64\[3\]"),
        (None, r"float32\[3\] for sample '\d+' and None for sample"),
    ):
        with (
            open_stream(mixture, global_batch=8, map=ragged({3: odd}), once=once) as stream,
            pytest.raises(ValueError, match=f"ragged.*gave for column x {said}.*one type and shape"),
        ):
            next(stream)
    with (
        open_stream(
            mixture, global_batch=8, map=lambda s, _: {"x": 1, **({"y": 1} if s.position == 5 else {})}
        ) as stream,
        pytest.raises(ValueError, match=r"gave x for sample '\d+' and x, y for sample '\d+': give the same columns"),
    ):
        next(stream)


def test_numbers_may_be_missing_and_stand_beside_each_other(mixture: Mixture) -> None:
    def odd(sample: Sample, _: np.random.Generator) -> dict[str, Any]:
        gone = sample.position == 2
        return {
            "i": None if gone else 4,
            "f": None if gone else 0.5,
            "b": None if gone else True,
            "mixed": 0.5 if gone else 1,
            "either": "a" if gone else 1,
            "narrow": np.float32(1),
            "nothing": None,
        }

    with open_stream(mixture, global_batch=8, map=odd) as stream:
        columns: dict[str, Any] = next(stream).columns
    assert columns["i"].tolist()[:3] == [4, 4, -1]
    assert np.isnan(columns["f"][2])
    assert columns["b"].tolist()[:3] == [True, True, False]
    assert columns["mixed"].tolist()[:3] == [1.0, 1.0, 0.5]
    assert columns["either"][:3] == [1, 1, "a"]
    assert columns["narrow"].dtype == np.float32
    assert columns["nothing"] == [None] * 8


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_batch_of_padding_has_the_columns_of_the_others(mixture: Mixture, fraction: float) -> None:
    """Also where a rank has no other batch: 19 samples over four ranks of eight."""
    source = dataclasses.replace(mixture.sources[1], fraction=fraction)
    one = dataclasses.replace(mixture, sources=(source,))
    shapes = []
    for rank in range(4):
        with open_stream(
            one, global_batch=32, rank=rank, world_size=4, once=True, columns=["label", "caption"], map=mapped
        ) as stream:
            (batch,) = stream
        columns: dict[str, Any] = batch.columns
        arrays = ("draws", "tokens", "mean", "twice")
        shapes.append({name: (columns[name].dtype, columns[name].shape) for name in arrays})
        assert not columns["tokens"][~batch.valid].any()
        assert np.isnan(columns["mean"][~batch.valid]).all()
        assert columns["words"][-1] is None or batch.valid.all()
    assert not batch.valid.any()
    assert all(shape == shapes[0] for shape in shapes)


def test_a_batch_of_damaged_samples_has_the_columns_of_the_others(mixture: Mixture) -> None:
    def refuse(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if sample.position < 8 and sample.key < "00004":
            raise SampleError("early", "no")
        return {"x": np.ones(3, np.float32), "draw": rng.random()}

    one = dataclasses.replace(mixture, max_bad_fraction=1.0)
    with open_stream(one, global_batch=4, map=refuse, once=True) as stream:
        first, second = next(stream), next(stream)
    columns: dict[str, Any] = first.columns
    assert not first.valid.any()
    assert second.valid.all()
    assert (columns["x"].shape, columns["x"].dtype, columns["x"].any()) == ((4, 3), np.float32, False)
    assert np.isnan(columns["draw"]).all()


def test_a_map_that_is_no_function_is_refused(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match=r"map is a function of \(sample, rng\), got 'tokens'"):
        open_stream(mixture, global_batch=8, map="tokens")  # type: ignore[arg-type]


def test_a_slow_function_is_what_the_stream_is_bound_by(mixture: Mixture, passing: Any) -> None:
    def slow(_: Sample, __: np.random.Generator) -> None:
        passing.pass_by(0.004)

    alone = dataclasses.replace(mixture, prefetch_batches=1, decode_threads=1)
    with open_stream(alone, global_batch=8, map=slow) as stream:
        for _ in range(12):
            next(stream)
        stats = stream.stats()
    assert stats.bound_by == max(stats.waited_for, key=stats.waited_for.__getitem__) == "map"
    assert stats.advice.startswith("a quicker map function (")
    assert stats.stages["map"].count >= 96


def test_a_sample_without_pixels_says_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"no pixels here: with decoder: none.*device='cpu'"):
        _ = Sample("k", 0, "s", {}).image


def test_one_source_is_told_from_another(datasets: tuple[str, str]) -> None:
    mixture = Mixture(
        sources=(Source(name="only", url=datasets[1]),), lanes=1, image_size=8, index_cache="none", decode_threads=1
    )
    with open_stream(mixture, global_batch=4, map=lambda sample, _: {"from": sample.source}) as stream:
        assert next(stream).columns["from"] == ["only"] * 4


def _names_only(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    assert sample.views == ()
    return {"label": sample.columns["label"] + 1, "draw": rng.random()}


def test_pixels_that_are_tensors_are_not_shown(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a decoder whose pictures lie on a device; the pixels come as without a function."""
    torch = pytest.importorskip("torch")

    class Tensors(Turbo):
        def empty(self, num_items: int, sizes: Sequence[int]) -> Any:
            return tuple(map(torch.from_numpy, super().empty(num_items, sizes)))

        def decode(self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Any) -> Any:
            return super().decode(items, windows_per_view, [view.numpy() for view in out])

    monkeypatch.setitem(DECODERS, "tensors", Tensors)
    other = dataclasses.replace(mixture, decoder="tensors")
    with (
        open_stream(other, global_batch=8, columns=["label"], map=_names_only, once=True) as stream,
        open_stream(mixture, global_batch=8, columns=["label"], once=True) as plain,
    ):
        for batch, expected in zip(stream, plain, strict=True):
            columns: dict[str, Any] = batch.columns
            assert columns["label"][batch.valid].tolist() == [v + 1 for v in expected.columns["label"] if v >= 0]
            assert isinstance(batch.images, torch.Tensor)
            assert np.array_equal(np.asarray(batch.images), expected.images)


@pytest.mark.cuda
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a CUDA device")
def test_on_a_device_columns_are_mapped_as_on_the_cpu(mixture: Mixture) -> None:
    other = dataclasses.replace(mixture, decoder="dali")
    drawn = []
    for one, device in ((mixture, "cpu"), (other, "cuda")):
        function = (
            _names_only if device == "cuda" else lambda s, r: {"label": s.columns["label"] + 1, "draw": r.random()}
        )
        with open_stream(one, global_batch=8, columns=["label"], map=function, device=device) as stream:
            drawn.append([rows_of(next(stream)) for _ in range(4)])
    assert drawn[0] == drawn[1]
