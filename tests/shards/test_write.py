"""Writing a dataset: the same bytes each time, readable by webdataset, committed last."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.commit import committed, read_commit
from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.index import INDEX_SCHEMA, index_shard
from headrace.shards.members import caption_of
from headrace.shards.payloads import read_sample
from headrace.shards.write import Sample, finish_dataset, write_shard

EXTRA = pa.schema([("score", pa.float32()), ("embedding", pa.list_(pa.float16())), ("faces", pa.int16())])


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_writes_give_the_same_bytes(tmp_path: Path, samples: list[Sample]) -> None:
    for name in ("a", "b"):
        write_shard(str(tmp_path / name), "00000", samples)
        finish_dataset(str(tmp_path / name), recipe_digest="r")
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")
    assert set(_tree(tmp_path / "a")) == {
        "commits/00000.json",
        "dataset.json",
        "shards.parquet",
        "shards/00000.parquet",
        "shards/00000.tar",
    }


def test_another_process_gives_the_same_bytes(tmp_path: Path, samples: list[Sample]) -> None:
    record = write_shard(str(tmp_path / "here"), "00000", samples[:1])
    (tmp_path / "image.jpg").write_bytes(samples[0].image)
    program = """if True:
        import sys
        from pathlib import Path
        from headrace.shards.write import Sample, write_shard
        out, image = sys.argv[1:]
        print(write_shard(out, "00000", [Sample("00000", Path(image).read_bytes(), "jpg", {"label": 0})])["sha256"])
        assert "torch" not in sys.modules, "writing imported torch"
    """
    command = [sys.executable, "-c", program, str(tmp_path / "there"), str(tmp_path / "image.jpg")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == record["sha256"]


def test_the_record_is_of_the_files(dataset_url: str) -> None:
    for name in committed(dataset_url):
        record = read_commit(dataset_url, name)
        tar = Path(dataset_url, "shards", f"{name}.tar").read_bytes()
        index = Path(dataset_url, "shards", f"{name}.parquet").read_bytes()
        assert record == {
            "num_samples": 5,
            "num_bytes": len(tar),
            "sha256": hashlib.sha256(tar).hexdigest(),
            "index_sha256": hashlib.sha256(index).hexdigest(),
        }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_our_shards(dataset_url: str, samples: list[Sample]) -> None:
    import webdataset

    pattern = f"{dataset_url}/shards/{{00000..00001}}.tar"
    read = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [item["__key__"] for item in read] == [sample.key for sample in samples]
    for item, sample in zip(read, samples, strict=True):
        assert item["jpg"] == sample.image
        assert int(item["cls"]) == sample.columns["label"]
        assert item.get("txt", b"").decode() == sample.columns.get("caption", "")
        facts = json.loads(item["json"])
        assert facts["width"] == 20 + int(sample.key)
        assert facts.get("url") == sample.columns.get("url")
        assert facts["sha256"] == hashlib.sha256(sample.image).hexdigest()


def test_the_index_written_is_the_index_found(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    for shard in range(2):
        assert dataset.index(shard).equals(index_shard(dataset.tar_url(shard)))


def test_uid_is_datacomps_or_of_shard_and_key(dataset_url: str) -> None:
    rows = open_dataset(dataset_url).index(0).to_pylist()
    assert rows[1]["uid"] == hashlib.md5(b"number 1http://host/1").hexdigest()
    assert rows[0]["uid"] == hashlib.md5(b"00000/00000").hexdigest()


def test_extra_columns_follow_the_fixed_ones(tmp_path: Path, samples: list[Sample]) -> None:
    columns = {"score": 0.25, "embedding": np.arange(4, dtype=np.float16), "faces": None, "label": 7}
    write_shard(str(tmp_path), "s", [replace(samples[0], columns=columns)], EXTRA)
    finish_dataset(str(tmp_path), recipe_digest="r")
    table = open_dataset(str(tmp_path)).index(0)
    assert table.schema.names == [*INDEX_SCHEMA.names, "score", "embedding", "faces"]
    row = table.to_pylist()[0]
    assert (row["score"], row["embedding"], row["faces"], row["label"]) == (0.25, [0, 1, 2, 3], None, 7)


def test_what_is_measured_cannot_be_claimed(tmp_path: Path, samples: list[Sample]) -> None:
    write_shard(str(tmp_path), "s", [replace(samples[0], columns={"width": 999, "crc32": 1})])
    finish_dataset(str(tmp_path), recipe_digest="r")
    row = open_dataset(str(tmp_path)).index(0).to_pylist()[0]
    assert row["width"] == 20
    assert row["crc32"] != 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sample: replace(sample, key="a.b"), "'a.b'.*a key must have"),
        (lambda sample: replace(sample, image=b"junk"), "s: sample '00000': not an image"),
        (lambda sample: replace(sample, extension="exe"), "extension 'exe' is none of jpg"),
        (lambda sample: replace(sample, columns={"colour": 1}), "columns colour are not in the schema"),
        (lambda sample: replace(sample, columns={"label": "cat"}), "does not fit its type"),
        (lambda sample: replace(sample, columns={"label": 1 << 70}), "does not fit its type"),
    ],
)
def test_a_wrong_sample_is_named_and_leaves_nothing(
    tmp_path: Path, samples: list[Sample], change: Callable[[Sample], Sample], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(str(tmp_path), "s", [change(samples[0])])
    assert committed(str(tmp_path)) == []
    assert not list(tmp_path.rglob(".*"))


def test_a_key_that_comes_twice_is_refused(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(ShardError, match="sample '00000': the key comes twice"):
        write_shard(str(tmp_path), "s", [samples[0], samples[0]])


@pytest.mark.parametrize("name", ["../s", "a/b", "", ".s"])
def test_a_shard_name_stays_in_the_folder(tmp_path: Path, samples: list[Sample], name: str) -> None:
    with pytest.raises(ValueError, match="must be made of"):
        write_shard(str(tmp_path / "dataset"), name, samples)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_shard_is_not_committed_and_a_rerun_heals_it(tmp_path: Path, samples: list[Sample]) -> None:
    def interrupted() -> Iterator[Sample]:
        yield from samples[:3]
        raise KeyboardInterrupt

    whole = write_shard(str(tmp_path / "whole"), "s", samples)
    with pytest.raises(KeyboardInterrupt):
        write_shard(str(tmp_path / "cut"), "s", interrupted())
    assert list((tmp_path / "cut" / "shards").iterdir()) == []
    assert committed(str(tmp_path / "cut")) == []
    assert write_shard(str(tmp_path / "cut"), "s", samples) == whole


def test_a_second_write_with_other_bytes_is_refused(tmp_path: Path, samples: list[Sample]) -> None:
    write_shard(str(tmp_path), "s", samples)
    write_shard(str(tmp_path), "s", samples)
    with pytest.raises(ShardError, match="already committed with another content"):
        write_shard(str(tmp_path), "s", samples[:-1])


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    assert write_shard(str(tmp_path), "s", [])["num_samples"] == 0
    finish_dataset(str(tmp_path), recipe_digest="r")
    dataset = open_dataset(str(tmp_path))
    assert dataset.num_samples == 0
    assert index_shard(dataset.tar_url(0)).num_rows == 0


def test_nothing_committed_is_nothing_to_finish(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shard is committed"):
        finish_dataset(str(tmp_path), recipe_digest="r")


def test_a_dataset_lives_at_any_url(samples: list[Sample], tmp_path: Path) -> None:
    url = f"memory://{tmp_path}/dataset"
    write_shard(url, "00000", samples)
    finish_dataset(url, recipe_digest="r", facts={"classes": ["a", "b", "c"]})
    dataset = open_dataset(url)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.recipe_digest == "r"
    assert [read_sample(dataset, 0, row) for row in range(10)] == [sample.image for sample in samples]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    facts=st.lists(
        st.fixed_dictionaries(
            {
                "caption": st.none() | text,
                "url": st.none() | text,
                "label": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
                "score": st.none() | st.floats(width=32),
            }
        ),
        max_size=4,
    )
)
def test_columns_come_back_through_tar_and_through_index(
    tmp_path: Path, encode_image: Callable[..., bytes], facts: list[dict[str, object]]
) -> None:
    image = encode_image("png", (3, 2))
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    url = str(tmp_path / digest)
    write_shard(url, "s", [Sample(f"{n}", image, "png", item) for n, item in enumerate(facts)], EXTRA)
    finish_dataset(url, recipe_digest="r")
    dataset = open_dataset(url)
    again = index_shard(dataset.tar_url(0)).to_pylist()
    for number, (row, scanned, item) in enumerate(zip(dataset.index(0).to_pylist(), again, facts, strict=True)):
        for name in ("caption", "url", "label"):
            assert row[name] == item[name]
        for name in ("url", "label"):
            assert scanned[name] == item[name]
        # An empty text in a tar is how others spell no caption.
        assert scanned["caption"] == (None if item["caption"] is None else caption_of(str(item["caption"])))
        assert scanned["uid"] == row["uid"]
        assert read_sample(dataset, 0, number) == image
