"""What a packed dataset says of its pictures and classes."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from headrace import files, urlpath
from headrace.shards.dataset import FAST_COLUMNS, open_dataset
from headrace.shards.images.header import read_header
from headrace.shards.manifest import SUMMARY_NAME
from headrace.text import shown
from headrace.train.objectives.dense.instances import INSTANCES_COLUMN, read_record
from headrace.train.objectives.dense.masks import MASK_COLUMN, MaskRules


def read_truth(url: str, column: str) -> Iterator[object]:
    """Yield the column of each sample, in the order of the dataset. Raises ValueError if there is no such column."""
    dataset = open_dataset(url)
    for shard, facts in enumerate(dataset.shards):
        if not facts.num_samples:
            continue
        table, names = dataset.index_part(shard, [*FAST_COLUMNS, column])
        if column not in names:
            raise ValueError(
                f"{dataset.index_url(shard)} has no column {column}, which holds what is to be learnt; it has "
                f"{', '.join(names)}"
            )
        yield from table.column(column).to_pylist()


def num_classes_of(url: str) -> int:
    """Return the number of classes that dataset.json names. Raises ValueError if it names none."""
    classes = open_dataset(url).classes
    if not classes:
        raise ValueError(f"{url}: its dataset.json names no classes; give --classes")
    return len(classes)


def categories_of(url: str) -> list[int]:
    """Return COCO's id of each class of a packed dataset. Raises ValueError if it has none."""
    where = urlpath.join(url, SUMMARY_NAME)
    found = json.loads(files.read_bytes(where)).get("categories")
    if not isinstance(found, list) or not all(type(number) is int for number in found):
        raise ValueError(f"{where}: categories must be the ids of a COCO json, got {shown(found)}; pack it again")
    return found


def check_mask_sizes(url: str, rules: MaskRules) -> None:
    """Raise ValueError, naming shard and key, for the first mask of a dataset with another size than its picture.

    Only headers are looked at, and only where the index knows the picture's size: as what packs masks has seen to it.
    """

    def size_of(mask: bytes) -> tuple[int, int]:
        header = read_header(mask)
        return header.width, header.height

    if rules.other_sizes == "refuse":
        _check_sizes(url, MASK_COLUMN, size_of)


def check_record_sizes(url: str) -> None:
    """Raise ValueError, naming shard and key, for the first picture whose things are of another size."""

    def size_of(text: str) -> tuple[int, int]:
        record = read_record(text)
        return record["width"], record["height"]

    _check_sizes(url, INSTANCES_COLUMN, size_of)


def _check_sizes(url: str, column: str, size_of: Callable[..., tuple[int, int]]) -> None:
    dataset = open_dataset(url)
    for shard, facts in enumerate(dataset.shards):
        if not facts.num_samples:
            continue
        table, names = dataset.index_part(shard, [*FAST_COLUMNS, "width", "height", "orientation", column])
        if column not in names or "width" not in names:
            return  # whatever reads the column says so; of an index made with --fast no size is known
        for row in _rows(table):
            if row[column] in (None, "null") or row["width"] is None or row["height"] is None:
                continue
            turned = (row["orientation"] or 1) >= 5
            own = (row["height"], row["width"]) if turned else (row["width"], row["height"])
            try:
                found = size_of(row[column])
            except (ValueError, RecursionError):
                continue  # the stream counts what is none
            if found != own:
                raise ValueError(
                    f"{dataset.tar_url(shard)}: sample {shown(row['key'])}: its {column} must be of the picture's "
                    f"size, expected {own[0]} x {own[1]} pixels, got {found[0]} x {found[1]}; pack it again from "
                    f"files that fit{', or --mask-sizes nearest resizes masks' if column == MASK_COLUMN else ''}"
                )


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, a few at a time: a column of masks may be large."""
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()
