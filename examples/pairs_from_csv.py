"""Pairs for a filter: a tar of pictures and a CSV (`image,caption`) -> train.parquet and held-out.parquet.

    python examples/pairs_from_csv.py flickr8k-sample.tar flickr8k-sample.csv pairs/

Every fifth picture is held out with all of its captions: of a picture that was trained on, none would tell anything.
"""

import csv
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import pyarrow as pa

from headrace.shards.parquet import write_parquet

HELD_OUT = 5


def main(tar: str, table: str, out: str) -> None:
    """Write one row a caption."""
    captions = defaultdict(list)
    with Path(table).open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            captions[row["image"]].append(row["caption"])
    rows: dict[str, list[tuple[bytes, str]]] = {"train": [], "held-out": []}
    with tarfile.open(tar) as archive:
        members = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)
        for number, member in enumerate(members):
            file = archive.extractfile(member)
            assert file is not None, "a file has content"
            data, part = file.read(), "train" if number % HELD_OUT else "held-out"
            rows[part] += [(data, caption) for caption in captions[member.name]]
    Path(out).mkdir(parents=True, exist_ok=True)
    for part, pairs in rows.items():
        images, texts = zip(*pairs, strict=True)
        write_parquet(str(Path(out, f"{part}.parquet")), pa.table({"jpg": images, "caption": texts}))
        print(f"{part}: {len(pairs)} pairs")


if __name__ == "__main__":
    main(*sys.argv[1:])
