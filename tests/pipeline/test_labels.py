"""Labels of two datasets in one space: exact, strict, and part of what a stream is."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.config import build_config, load_config
from headrace.pipeline import Labels, Mixture, Source, open_stream
from headrace.pipeline import labels as labels_module
from headrace.pipeline.labels import LabelMap, read_map
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.strict_yaml import parse_yaml

CLASSES = ["ant", "bee", "cow"]
SCHEMA = pa.schema([("kind", pa.string()), ("score", pa.float64()), ("flag", pa.bool_())])


def picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 32)).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve samples labelled 0, 1, 2 in turn; `kind` is the name of the class, and the sixth has neither."""
    folder = tmp_path_factory.mktemp("kinds")
    for shard in range(2):
        samples = []
        for number in range(6 * shard, 6 * shard + 6):
            columns: dict[str, Any] = {"score": number / 2, "flag": number % 2 == 0}
            if number != 5:
                columns |= {"label": number % 3, "kind": CLASSES[number % 3]}
            samples.append(Sample(f"{number:02d}", picture(), "jpg", columns))
        write_shard(str(folder), str(shard), samples, SCHEMA)
    finish_dataset(str(folder), recipe_digest="test", facts={"classes": CLASSES})
    return str(folder)


def mixture_of(url: str, labels: Labels | None, **keys: Any) -> Mixture:
    source = Source(name="s", url=url, labels=labels, chunk_samples=2)
    return Mixture(sources=(source,), lanes=2, image_size=8, index_cache="none", decode_threads=1, **keys)


def labels_of(mixture: Mixture, *columns: str, once: bool = True) -> list[int]:
    """Return the labels of a finite pass, or of its first 12 samples."""
    with open_stream(mixture, global_batch=4, columns=["label", *columns], once=once) as stream:
        batches = [next(stream) for _ in range(3)]
    for batch in batches:
        assert isinstance(batch.columns["label"], np.ndarray)
        assert batch.columns["label"].dtype == np.int64
    return [int(label) for batch in batches for label in batch.columns["label"]]


OLD = [0, 1, 2, 0, 1, None, 0, 1, 2, 0, 1, 2]


def expected(new: dict[int, int]) -> list[int]:
    return [-1 if old is None else new[old] for old in OLD]


@pytest.mark.parametrize(
    "labels",
    [
        Labels(map={"0": 7, "1": 5, "2": 7}),
        build_config(Labels, parse_yaml("map: {0: 7, 1: 5, 2: 7}")),
        Labels(map={"ant": 7, "bee": 5, "cow": 7, "dog": 1}),
        Labels(map={"ant": 7, "1": 5, "cow": 7}),
        Labels(column="kind", map={"ant": 7, "bee": 5, "cow": 7}),
    ],
)
def test_old_labels_become_new_ones(kinds: str, labels: Labels) -> None:
    assert labels_of(mixture_of(kinds, labels)) == expected({0: 7, 1: 5, 2: 7})
    assert labels_of(mixture_of(kinds, labels), "kind", "score") == expected({0: 7, 1: 5, 2: 7})


def test_another_column_and_truth_values_may_be_labels(kinds: str) -> None:
    flags = Labels(column="flag", map={"true": 1, "false": 0})
    assert labels_of(mixture_of(kinds, flags)) == [1, 0] * 6
    assert labels_of(mixture_of(kinds, Labels(column="width"))) == [40] * 12


@pytest.mark.parametrize("kind", ["json", "yaml", "csv", "tsv", "csv without names"])
def test_a_map_may_lie_in_a_file(kinds: str, tmp_path: Path, kind: str) -> None:
    new = {"ant": 7, "bee": 5, "cow": -1}
    path = tmp_path / f"map.{kind.split()[0]}"
    if kind in ("json", "yaml"):
        path.write_text({"json": json.dumps, "yaml": yaml.safe_dump}[kind](new))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([*([] if kind.endswith("names") else [("old", "new")]), *new.items()])
    assert labels_of(mixture_of(kinds, Labels(column="kind", file=str(path)))) == expected({0: 7, 1: 5, 2: -1})


@given(st.dictionaries(st.text(min_size=1).filter(lambda text: text.isprintable()), st.integers(-9, 99), min_size=1))
@settings(max_examples=30)
def test_any_map_comes_back_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, new: dict[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("maps")
    (folder / "m.json").write_text(json.dumps(new))
    (folder / "m.yaml").write_text(yaml.safe_dump(new, allow_unicode=True))
    with (folder / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("old", "new"), *new.items()])
    assert read_map(str(folder / "m.json")) == read_map(str(folder / "m.csv")) == new
    assert read_map(str(folder / "m.yaml")) == new


def test_a_whole_number_is_the_number_and_no_class_of_that_name() -> None:
    folders = sorted(map(str, range(12)))  # as folders are numbered: 0, 1, 10, 11, 2, ...
    by_number = LabelMap(Labels(map={"10": 5}, unmapped="missing"), "s", classes=folders)
    assert [by_number.new(old, key="k", shard="a.tar") for old in range(12)] == [None] * 10 + [5, None]
    by_name = LabelMap(Labels(map={"bee": 5, "0": 4}), "s", classes=CLASSES)
    assert [by_name.new(old, key="k", shard="a.tar") for old in (0, 1)] == [4, 5]
    with pytest.raises(ValueError, match=r"source 's': labels\.map: label 1 is given twice, by number and by name"):
        LabelMap(Labels(map={"bee": 5, "1": 4}), "s", classes=CLASSES)


def test_only_an_end_of_line_ends_a_line_of_a_table(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        (tmp_path / "m.csv").write_text(f'a\u2028b,1{end}"c{end}d",2{end}e\x0bf,3{end}', newline="")
        assert read_map(str(tmp_path / "m.csv")) == {"a\u2028b": 1, f"c{end}d": 2, "e\x0bf": 3}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.json", '{"a": 1, "a": 2}', "label 'a' is given twice"),
        ("m.json", '{"a": "1"}', "'a': the new label must be a whole number of 64 bits, got '1'"),
        ("m.json", '{"a": true}', "must be a whole number of 64 bits, got True"),
        ("m.json", '{"a": 9223372036854775808}', "must be a whole number of 64 bits"),
        ("m.json", "[1]", "expected a mapping of old labels to new ones, got list"),
        ("m.json", "{", "Expecting property name"),
        ("m.json", "[" * 100_000, "nested too deep"),
        ("m.json", "{}", "holds no label"),
        ("m.yaml", "true: 1", "keys must be strings, got True"),
        ("m.csv", "a,1\nb,x\n", "line 2: the new label must be a whole number, got 'x'"),
        ("m.csv", "a,1\na,2\n", "line 2: label 'a' is given twice"),
        ("m.csv", "a,1,2\n", "line 1: expected 2 columns, the old and the new label, got 3"),
        ("m.csv", "old,new\n", "holds no label"),
        ("m.txt", "a 1\n", "is none of .json, .yaml, .yml, .csv, .tsv"),
    ],
)
def test_a_file_that_is_no_map_is_refused_in_one_line(
    kinds: str, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"labels\.file") as caught:
        open_stream(mixture_of(kinds, Labels(column="kind", file=str(tmp_path / name))), global_batch=4)
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"source 's': labels.file {tmp_path / name}: ")
    assert "\n" not in message


def test_a_file_that_is_too_large_or_not_there_is_refused(
    kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"labels.file .*none.json: no such file"):
        open_stream(mixture_of(kinds, Labels(file=str(tmp_path / "none.json"))), global_batch=4)
    (tmp_path / "m.json").write_text('{"ant": 1}')
    monkeypatch.setattr(labels_module, "MAX_MAP_BYTES", 4)
    with pytest.raises(ValueError, match="has 10 bytes; a map of labels has at most 4"):
        open_stream(mixture_of(kinds, Labels(file=str(tmp_path / "m.json"))), global_batch=4)


def test_a_label_that_the_map_lacks_is_named_when_the_stream_is_opened(kinds: str) -> None:
    mixture = mixture_of(kinds, Labels(column="kind", map={"ant": 0, "bee": 1}))
    with pytest.raises(
        ValueError,
        match=r"kind 'cow' is not in the map of labels of source 's' \(sample '02', .*0\.tar\); it has 'ant', 'bee'",
    ):
        open_stream(mixture, global_batch=4, columns=["label"])
    with open_stream(mixture, global_batch=4) as stream:  # nobody asked for it
        next(stream)


def test_a_label_of_a_later_shard_stops_the_run_where_it_comes(tmp_path: Path) -> None:
    for shard, label in enumerate([0, 9]):
        samples = [Sample(f"{shard}{n}", picture(), "jpg", {"label": label}) for n in range(4)]
        write_shard(str(tmp_path), str(shard), samples)
    finish_dataset(str(tmp_path), recipe_digest="test")
    with open_stream(
        mixture_of(str(tmp_path), Labels(map={"0": 1})), global_batch=4, columns=["label"], once=True
    ) as stream:
        assert next(stream).columns["label"].tolist() == [1] * 4  # type: ignore[union-attr]
        for _ in range(2):
            with pytest.raises(ValueError, match=r"label '9' is not in the map of labels of source 's' \(sample '1\d'"):
                next(stream)


def test_what_the_map_lacks_may_be_missing(kinds: str) -> None:
    labels = Labels(column="kind", map={"ant": 4, "bee": 5}, unmapped="missing")
    assert labels_of(mixture_of(kinds, labels)) == expected({0: 4, 1: 5, 2: -1})


def test_what_the_map_lacks_may_be_damaged(kinds: str, tmp_path: Path) -> None:
    labels = Labels(column="kind", map={"ant": 4, "bee": 5}, unmapped="damaged")
    mixture = mixture_of(kinds, labels, max_bad_fraction=0.9, quarantine=str(tmp_path / "bad.jsonl"))
    with open_stream(mixture, global_batch=4, columns=["label"], once=True) as stream:
        rows = [row for batch in stream for row in zip(batch.valid.tolist(), batch.columns["label"], strict=True)]
        assert stream.bad_samples == {"label": 3}
    assert [valid for valid, _ in rows] == [old != 2 for old in OLD]
    with open_stream(mixture, global_batch=4, columns=["label"]) as stream:
        batches = [next(stream) for _ in range(6)]
    found = np.concatenate([batch.columns["label"] for batch in batches])
    assert set(found.tolist()) <= {4, 5, -1}
    line = json.loads((tmp_path / "bad.jsonl").read_text().splitlines()[0])
    assert (line["reason"], line["key"]) == ("label", "02")


def test_two_sources_stand_in_one_space(kinds: str, mixture: Mixture) -> None:
    own = dataclasses.replace(mixture.sources[1], weight=1.0)
    mapped = Source(
        name="kinds", url=kinds, chunk_samples=2, labels=Labels(column="kind", map=dict.fromkeys(CLASSES, 99))
    )
    both = dataclasses.replace(mixture, sources=(own, mapped))
    with open_stream(both, global_batch=8, columns=["label"]) as stream:
        for _ in range(6):
            batch = next(stream)
            labels: Any = batch.columns["label"]
            assert set(labels[batch.source == 1].tolist()) <= {99, -1}
            assert labels[batch.source == 0].tolist() == [
                int(key) for key, source in zip(batch.key, batch.source, strict=True) if source == 0
            ]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            Labels(column="score", map={"1": 1}),
            "labels.column score is float64; name a column of whole numbers or texts",
        ),
        (Labels(column="kind"), "labels.column kind is text; give a map"),
        (Labels(column="nothing", map={"1": 1}), "has no column nothing; it has key"),
    ],
)
def test_a_column_that_cannot_be_labels_is_refused(kinds: str, labels: Labels, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_stream(mixture_of(kinds, labels), global_batch=4, columns=["label"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "labels changes nothing: give map, file or another column"),
        ({"map": {"a": 1}, "file": "b.json"}, "map and file are both given"),
        ({"column": ""}, "labels.column must not be empty"),
        ({"map": {"a": 1 << 63}}, "labels.map.a: the new label must be a whole number of 64 bits"),
    ],
)
def test_labels_that_mean_nothing_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Labels(**keys)


def test_they_are_written_in_a_mixture_file(tmp_path: Path, kinds: str) -> None:
    (tmp_path / "mixture.yaml").write_text(
        "lanes: 1\nsources:\n"
        f"  - {{name: a, url: {kinds}, labels: {{column: kind, map: {{ant: 1, bee: 2, cow: 3}}}}}}\n"
    )
    mixture = load_config(Mixture, tmp_path / "mixture.yaml")
    assert mixture.sources[0].labels == Labels(column="kind", map={"ant": 1, "bee": 2, "cow": 3})
    for override, said in (
        (
            "sources.0.labels.mapp={}",
            r"unknown key 'sources.0.labels.mapp'; did you mean 'map'\? known keys here: column, map, file, unmapped",
        ),
        ("sources.0.labels.map={a: x}", "sources.0.labels.map.a: input should be a valid integer"),
        (
            "sources.0.labels.unmapped=drop",
            "sources.0.labels.unmapped: input should be 'error', 'missing' or 'damaged'",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            load_config(Mixture, tmp_path / "mixture.yaml", [override])


def test_a_map_is_part_of_the_state_by_its_content(kinds: str, tmp_path: Path) -> None:
    new = {"ant": 1, "bee": 2, "cow": 3}
    (tmp_path / "m.json").write_text(json.dumps(new))

    def state_of(labels: Labels | None, once: bool = False) -> dict[str, Any]:
        with open_stream(mixture_of(kinds, labels), global_batch=4, once=once) as stream:
            next(stream)
            state: dict[str, Any] = json.loads(json.dumps(stream.state_dict()))
        return state

    plain, mapped = state_of(None), state_of(Labels(map=new))
    assert plain != mapped
    assert len(plain["segments"][0]["sources"][0]) == 5  # as it was before there were labels
    assert state_of(Labels(file=str(tmp_path / "m.json"))) == mapped
    assert state_of(Labels(map={"0": 1, "1": 2, "2": 3})) == mapped
    for labels, state in ((None, mapped), (Labels(map=new), plain), (Labels(map={**new, "cow": 4}), mapped)):
        with (
            open_stream(mixture_of(kinds, labels), global_batch=4) as stream,
            pytest.raises(ValueError, match="source 's': digest of the labels was"),
        ):
            stream.load_state_dict(state)
    with open_stream(mixture_of(kinds, Labels(map=new)), global_batch=4, once=True) as stream:
        stream.load_state_dict(state_of(Labels(map=new), once=True))


def test_resume_gives_the_same_labels(kinds: str, check_resumes: Callable[..., None]) -> None:
    labels = Labels(column="kind", map={"ant": 4, "bee": 5}, unmapped="damaged")
    mixture = mixture_of(kinds, labels, max_bad_fraction=0.9)
    check_resumes(lambda: open_stream(mixture, global_batch=4, columns=["label", "kind"]), steps=5)


def test_a_function_gets_the_new_label(kinds: str) -> None:
    mixture = mixture_of(kinds, Labels(column="kind", map={"ant": 1, "bee": 2, "cow": 3}))
    with open_stream(
        mixture, global_batch=4, columns=["label", "kind"], map=lambda s, _: {"pair": str(dict(s.columns))}, once=True
    ) as stream:
        assert next(stream).columns["pair"][1] == "{'label': 2, 'kind': 'bee'}"


@pytest.mark.parametrize("world_size", [2])
def test_ranks_have_the_same_labels_as_one(kinds: str, world_size: int) -> None:
    mixture = mixture_of(kinds, Labels(column="kind", map={"ant": 1, "bee": 2, "cow": 3}))

    def taken(ranks: int) -> dict[int, int]:
        found = {}
        for rank in range(ranks):
            with open_stream(mixture, global_batch=4, rank=rank, world_size=ranks, columns=["label"]) as stream:
                for _ in range(6):
                    batch = next(stream)
                    found.update(zip(batch.position.tolist(), batch.columns["label"].tolist(), strict=True))  # type: ignore[union-attr]
        return found

    assert taken(world_size) == taken(1)
