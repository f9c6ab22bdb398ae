"""What the steps that look for copies find, on photographs and captions: the tables of docs/select.md.

    python benchmarks/near_copies.py DATA [--photographs 60] [--others 600]

DATA is the folder with `imagenet-sample.tar`, `flickr8k-sample.tar` and `url-list-10000.parquet`. Everything runs
through select itself: jobs of pairs (an original and one copy), of captions, and of copies of evaluation images among
other photographs.
"""

import argparse
import hashlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator
from headrace.curation.annotate.annotators.caption_minhash import CaptionMinhash, CaptionMinhashConfig, shingles
from headrace.curation.annotate.annotators.hash_variants import HashVariants, HashVariantsConfig
from headrace.curation.annotate.annotators.hashes import Hashes, HashesConfig
from headrace.curation.annotate.annotators.quality import Quality, QualityConfig
from headrace.curation.annotate.decode import decode
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import LedgerSummary, latest_decision
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.select.copies import COPIES, copy_file
from headrace.curation.select.database import Limits
from headrace.curation.select.evaluation import EvaluationSet
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, run_select
from headrace.curation.select.step import Step
from headrace.curation.select.steps import CaptionDuplicates, Decontaminate, NearDuplicates
from headrace.shards.index import index_shard
from headrace.shards.payloads import read_payloads
from headrace.shards.units import EngineConfig

IMAGE_ANNOTATORS: tuple[Annotator, ...] = (
    Hashes(HashesConfig()),
    HashVariants(HashVariantsConfig(crops=True)),
    Quality(QualityConfig()),
)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
NEAR: dict[str, dict[str, Any]] = {
    "20 bits": {"distance": 20},
    "31 bits": {"distance": 31},
    "31 bits, `flips`": {"distance": 31, "flips": True},
    "31 bits, `flips`, `crops`": {"distance": 31, "flips": True, "crops": True},
}
Columns = dict[str, dict[str, list[Any]]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photographs", type=int, default=60, help="of which copies are made")
    parser.add_argument("--others", type=int, default=600, help="photographs that must not be taken for copies")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of raw tables without sums
    photographs = images_of(arguments.data / "imagenet-sample.tar")
    originals = photographs[:: max(1, len(photographs) // arguments.photographs)][: arguments.photographs]
    chosen = set(originals)
    others = [item for item in photographs if item not in chosen] + images_of(arguments.data / "flickr8k-sample.tar")
    others = others[:: max(1, len(others) // arguments.others)][: arguments.others]
    made = {kind: [saved_copy(data, kind) for data in originals] for kind in COPIES}
    near_duplicates(originals, made)
    kept_of_groups(originals, made)
    decontamination(originals, made, others)
    captions(arguments.data)


def images_of(tar: Path) -> list[bytes]:
    """Return the images of a tar."""
    rows = index_shard(str(tar), fast=True).to_pylist()
    return list(read_payloads(str(tar), [(row["offset"], row["size"]) for row in rows]))


def saved_copy(data: bytes, kind: str) -> bytes:
    """Return the file of a copy."""
    pixels = decode(data).pixels
    assert pixels is not None
    return copy_file(pixels, kind)


def annotated(files: Sequence[bytes]) -> Columns:
    """Return annotator -> column -> values of some images."""
    found: Columns = {annotator.name: {} for annotator in IMAGE_ANNOTATORS}
    for data in files:
        decoded = decode(data)
        batch = AnnotationBatch(
            keys=[""],
            captions=[None],
            data=[data],
            sha256=[hashlib.sha256(data).hexdigest()],
            headers=[decoded.header],
            images=[decoded.pixels],
            errors=[decoded.error],
        )
        for annotator in IMAGE_ANNOTATORS:
            for name, values in annotator.annotate(batch).items():
                found[annotator.name].setdefault(name, []).extend(values)
    return found


def write_job(folder: Path, captions_of: Sequence[str | None], columns: Columns) -> tuple[Job, dict[str, str]]:
    """Write a raw shard and its annotations; return the job and the annotators' folders."""
    number = len(captions_of)
    rows = {
        "key": [f"00000{row:05d}" for row in range(number)],
        "uid": [f"{row:032x}" for row in range(number)],
        "url": [f"http://host/{row}" for row in range(number)],
        "caption": list(captions_of),
        "status": ["success"] * number,
        "width": [100] * number,
        "height": [100] * number,
        "sha256": [f"{row:064x}" for row in range(number)],
        "input_file": ["list.csv"] * number,
        "input_row": list(range(number)),
    }
    (folder / "raw" / "commits").mkdir(parents=True)
    raw = {field.name: pa.array(rows.get(field.name, [None] * number), field.type) for field in OWN_SCHEMA}
    pq.write_table(pa.table(raw, schema=OWN_SCHEMA), folder / "raw" / "00000.parquet")
    (folder / "raw" / "commits" / "00000.json").write_text("{}")
    job, folders = Job(str(folder)), {}
    schemas = {one.name: one.schema() for one in (*IMAGE_ANNOTATORS, CaptionMinhash(CaptionMinhashConfig()))}
    for name, values in columns.items():
        schema = pa.schema([("key", pa.string()), *schemas[name]])
        folders[name] = job.annotations(name, "0" * 16)
        write_annotations(folders[name], "00000", pa.Table.from_pydict({"key": rows["key"], **values}, schema), {})
    return job, folders


def decide(job: Job, folders: dict[str, str], step: Step) -> tuple[LedgerSummary, list[dict[str, Any]]]:
    """Run select; return its summary and the ledger in the order of rows."""
    placement = Placement(seed=0, shuffle_window=1, samples_per_shard=10_000)
    engine = EngineConfig(executor="inline")
    selection = Selection(steps=(step,), placement=placement)
    summary = run_select(job, selection, folders, limits=Limits(threads=1), engine=engine)
    return summary, pq.read_table(latest_decision(job).ledger.table).sort_by("key").to_pylist()


def joined(left: Columns, right: Columns) -> Columns:
    """Return the columns of two sets of rows, one after the other."""
    return {who: {name: [*values, *right[who][name]] for name, values in of.items()} for who, of in left.items()}


def near_duplicates(originals: Sequence[bytes], made: dict[str, list[bytes]]) -> None:
    """Print the share of copies that near_duplicates brings together with their originals."""
    first = annotated(originals)
    print(f"| copy ({len(originals)} photographs) | " + " | ".join(f"{name}, %" for name in NEAR) + " | other pairs |")
    print("| --- |" + " --- |" * (len(NEAR) + 1))
    for kind, files in made.items():
        shares, wrong = [], 0
        with tempfile.TemporaryDirectory() as folder:
            job, folders = write_job(Path(folder), [None] * 2 * len(files), joined(first, annotated(files)))
            for settings in NEAR.values():
                _, rows = decide(job, folders, NearDuplicates(chains="cut", **settings))
                dropped = [(int(row["uid"], 16), int(row["duplicate_of"], 16)) for row in rows if not row["kept"]]
                right = sum(abs(one - other) == len(files) for one, other in dropped)
                shares.append(f"{100 * right / len(files):.0f}")
                wrong += len(dropped) - right
        print(f"| {kind} | " + " | ".join(shares) + f" | {wrong} |", flush=True)


def kept_of_groups(originals: Sequence[bytes], made: dict[str, list[bytes]]) -> None:
    """Print which row is kept of groups of an original and all its copies."""
    names = ["original", *made]
    files = [*originals, *(data for some in made.values() for data in some)]
    with tempfile.TemporaryDirectory() as folder:
        job, folders = write_job(Path(folder), [None] * len(files), annotated(files))
        _, rows = decide(job, folders, NearDuplicates())
    sizes: dict[int, int] = {}
    for row in rows:
        best = int(row["duplicate_of"] or row["uid"], 16)
        sizes[best] = sizes.get(best, 0) + 1
    # A group holds its original if the original is kept, or went for the row that is.
    groups = {int(row["duplicate_of"] or row["uid"], 16) for row in rows[: len(originals)]}
    groups = {best for best in groups if sizes[best] > 1}
    won = [names[best // len(originals)] for best in sorted(groups)]
    print(f"\n| kept of {len(groups)} groups that hold the original, {sum(sizes[best] for best in groups)} rows | % |")
    print("| --- | --- |")
    for name in sorted(set(won), key=lambda name: (-won.count(name), name)):
        print(f"| {name} | {100 * won.count(name) / len(won):.0f} |")


def decontamination(originals: Sequence[bytes], made: dict[str, list[bytes]], others: Sequence[bytes]) -> None:
    """Print the share of copies of evaluation images that decontaminate drops, and what it drops for nothing."""
    kinds = [kind for kind, files in made.items() for _ in files]
    files = [*(data for some in made.values() for data in some), *others]
    print(f"\n| copy ({len(originals)} evaluation images) | 31 bits, % | `variants`, % |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        job, folders = write_job(Path(folder) / "job", [None] * len(files), annotated(files))
        (Path(folder) / "set").mkdir()
        for number, data in enumerate(originals):
            (Path(folder) / "set" / f"{number:04d}.jpg").write_bytes(data)
        against = (EvaluationSet(name="set", url=str(Path(folder) / "set")),)
        found = []
        for variants in (False, True):
            step = Decontaminate(against=against, variants=variants, measure=0)
            found.append([not row["kept"] for row in decide(job, folders, step)[1]])
    for kind in made:
        places = [place for place, name in enumerate(kinds) if name == kind]
        shares = [f"{100 * sum(dropped[place] for place in places) / len(places):.0f}" for dropped in found]
        print(f"| {kind} | " + " | ".join(shares) + " |")
    false = [sum(dropped[len(kinds) :]) for dropped in found]
    print(f"| {len(others)} other photographs, dropped | {false[0]} | {false[1]} |", flush=True)


def captions(data: Path) -> None:
    """Print what caption_duplicates drops of two sets of captions, and what share of pairs it finds."""
    rows = pq.read_table(data / "url-list-10000.parquet")["TEXT"].to_pylist()
    lines = (data / "flickr8k-sample.csv").read_text(encoding="utf-8").splitlines()[1:]
    sets = {"web list": rows, "Flickr, 5 captions an image": [line.partition(",")[2].strip('"') for line in lines]}
    print("\n| captions | similarity | alike pairs | found, % | groups | rows dropped |\n" + "| --- " * 6 + "|")
    for name, texts in sets.items():
        made = CaptionMinhash(CaptionMinhashConfig()).annotate(caption_batch(texts))
        pairs = alike_pairs(texts)
        with tempfile.TemporaryDirectory() as folder:
            job, folders = write_job(Path(folder), texts, {"caption_minhash": made})
            for threshold in THRESHOLDS:
                summary, ledger = decide(job, folders, CaptionDuplicates(threshold=threshold, chains="join"))
                best = [int(row["duplicate_of"] or row["uid"], 16) for row in ledger]
                alike = [pair for pair, value in pairs.items() if value >= threshold]
                found = sum(best[a] == best[b] for a, b in alike)
                step = summary.steps[-1]
                share = f"{100 * found / len(alike):.1f}" if alike else ""
                dropped = step.rows_in - step.rows_out
                print(
                    f"| {name} ({len(texts):,}) | {threshold} | {len(alike)} | {share} | {step.details['groups']} |"
                    f" {dropped} |",
                    flush=True,
                )


def caption_batch(texts: Sequence[str | None]) -> AnnotationBatch:
    """Return a batch of captions alone."""
    none: list[Any] = [None] * len(texts)
    keys = [""] * len(texts)
    return AnnotationBatch(
        keys=keys, captions=list(texts), data=none, sha256=none, headers=none, images=none, errors=none
    )


def alike_pairs(texts: Sequence[str | None]) -> dict[tuple[int, int], float]:
    """Return every pair of a Jaccard similarity of 0.5 or more, by comparing all that share a run of letters."""
    sets = [frozenset(shingles(text or "")) for text in texts]
    sizes = np.array([len(one) for one in sets])
    holders: dict[bytes, list[int]] = {}
    found: dict[tuple[int, int], float] = {}
    for row, mine in enumerate(sets):
        shared = np.zeros(row, np.int64)
        for run in mine:
            shared[holders.get(run, [])] += 1
            holders.setdefault(run, []).append(row)
        similarity = shared / np.maximum(1, sizes[:row] + sizes[row] - shared)
        for other in np.flatnonzero(similarity >= min(THRESHOLDS)).tolist():
            found[other, row] = round(float(similarity[other]), 6)
    return found


if __name__ == "__main__":
    main()
