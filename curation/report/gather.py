"""Walk once through the ledger and the tables beside it, shard by shard: the numbers of the report.

Memory stays that of one shard. "before" counts what was fetched and decoded into annotations, "after" what the ledger
keeps; build's failures are counted apart.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.curation.annotate.annotators import known_annotators
from headrace.curation.job import Job
from headrace.curation.ledger import Decision, ledger_by_shard
from headrace.curation.raw.read import read_raw
from headrace.curation.report.sketch import Counts, Distinct, Histogram, Ranges, hosts, is_numeric, numbers
from headrace.curation.report.tables import read_annotations
from headrace.curation.report.values import facts_taken, with_cut_values, with_taken
from headrace.curation.select.expression import open_evaluator
from headrace.curation.select.steps import step_of
from headrace.shards.dataset import Dataset
from headrace.shards.parquet import read_table

TOP_HOSTS = 50
MAX_FAILURES = 200

_LEDGER = ["url", "raw_shard", "kept", "step", "reason", "duplicate_of"]


@dataclass(kw_only=True, slots=True)
class Numbers:
    """What the walk counts."""

    hosts: dict[str, Counts] = field(default_factory=lambda: {name: Counts() for name in ("rows", "failed", "kept")})
    errors: Counts = field(default_factory=Counts)
    """Fetch failures by class."""
    decode_errors: Counts = field(default_factory=Counts)
    duplicates: Counts = field(default_factory=Counts)
    """Uid of the best of each group of near-duplicates -> rows dropped for it."""
    distinct: dict[str, Distinct] = field(default_factory=dict)
    host_images: dict[str, Distinct] = field(default_factory=dict)
    """For each of the top hosts, the distinct images (sha256)."""
    histograms: dict[str, Histogram] = field(default_factory=dict)


def gather_job(decision: Decision) -> Numbers:
    """Count everything of a job and one of its ledgers."""
    job, summary = decision.job, decision.summary
    result = Numbers(distinct={"hosts": Distinct(), "urls": Distinct(), "captions": Distinct(), "images": Distinct()})
    folders, ranges = decision.annotation_folders(), Ranges()
    near_steps = [step.name for step in summary.steps if step_of(step).links == "groups"]
    with open_evaluator() as evaluator:
        for shard, rows in ledger_by_shard(decision.ledger, _LEDGER):
            _count_ledger(result, rows, near_steps)
            table = with_cut_values(evaluator, summary.steps, read_raw(job, shard), read_annotations(folders, shard))
            ranges.add(table, _shown_columns(table.schema))
        result.histograms = ranges.histograms()
        result.host_images = {host: Distinct(10) for host, _ in result.hosts["rows"].top(TOP_HOSTS)}
        for shard, rows in ledger_by_shard(decision.ledger, ["raw_shard", "key", "kept", "caption_facts"]):
            raw, annotated = read_raw(job, shard), read_annotations(folders, shard)
            before = after = with_cut_values(evaluator, summary.steps, raw, annotated)
            if facts := facts_taken(rows):
                after = with_cut_values(evaluator, summary.steps, with_taken(raw, facts), with_taken(annotated, facts))
            _count_shard(result, raw, before, after, rows["key"].filter(pc.fill_null(rows["kept"], False)))
    return result


def _count_ledger(result: Numbers, rows: pa.Table, near_steps: list[str]) -> None:
    host = hosts(rows["url"])
    failed = pc.fill_null(pc.equal(rows["step"], "fetch"), False).combine_chunks()
    kept = pc.fill_null(rows["kept"], False).combine_chunks()
    result.hosts["rows"].add(host)
    result.hosts["failed"].add(host.filter(failed))
    result.hosts["kept"].add(host.filter(kept))
    result.distinct["hosts"].add(pc.unique(host.filter(pc.not_equal(host, ""))).to_pylist())
    result.errors.add(rows["reason"].filter(failed))
    near = pc.is_in(pc.fill_null(rows["step"], ""), value_set=pa.array(near_steps, pa.string())).combine_chunks()
    result.duplicates.add(rows["duplicate_of"].filter(near))


def _count_shard(
    result: Numbers, raw: pa.Table, annotated: pa.Table, after: pa.Table, kept_keys: pa.ChunkedArray
) -> None:
    """Count one raw shard; `after` holds its annotations with the captions that kept rows took."""
    for name, column in (("urls", "url"), ("captions", "caption"), ("images", "sha256")):
        result.distinct[name].add(pc.unique(raw[column]).to_pylist())
    _count_host_images(result, raw)
    if "decode_error" in annotated.column_names:
        errors = annotated["decode_error"]
        # "class: message" -> class; messages hold sizes and offsets and would each be counted once.
        classes = pc.replace_substring_regex(errors.filter(pc.is_valid(errors)), ":.*", "")
        result.decode_errors.add(classes)
    kept = pc.is_in(annotated["key"], value_set=kept_keys.combine_chunks())
    mask = np.asarray(kept.to_numpy(zero_copy_only=False), np.bool_)
    for name, histogram in result.histograms.items():
        if name in annotated.column_names:
            histogram.add(numbers(annotated[name]), numbers(after[name])[mask])


def _count_host_images(result: Numbers, raw: pa.Table) -> None:
    host = hosts(raw["url"])
    grouped = pa.table({"host": host, "sha256": raw["sha256"]}).group_by("host").aggregate([("sha256", "distinct")])
    for name, images in zip(grouped["host"].to_pylist(), grouped["sha256_distinct"].to_pylist(), strict=True):
        if name in result.host_images:
            result.host_images[name].add(images)


def gather_dataset(dataset: Dataset) -> Numbers:
    """Count everything of an indexed dataset that has no ledger: its histograms have no `after`."""
    result = Numbers(distinct={"hosts": Distinct(), "urls": Distinct(), "captions": Distinct(), "images": Distinct()})
    ranges = Ranges()
    for number in range(len(dataset.shards)):
        table = dataset.index(number)
        ranges.add(table, _shown_columns(table.schema))
    result.histograms = ranges.histograms()
    for number in range(len(dataset.shards)):
        table = dataset.index(number)
        host = hosts(table["url"])
        result.hosts["rows"].add(host)
        result.distinct["hosts"].add(pc.unique(host.filter(pc.not_equal(host, ""))).to_pylist())
        for name, column in (("urls", "url"), ("captions", "caption"), ("images", "sha256")):
            result.distinct[name].add(pc.unique(table[column]).to_pylist())
        for name, histogram in result.histograms.items():
            if name in table.column_names:
                histogram.add(numbers(table[name]), np.zeros(0, np.float64))
    return result


_NO_HISTOGRAM = {"offset", "crc32", "label"}  # of the index


def _shown_columns(schema: pa.Schema) -> list[str]:
    """Return the numeric columns whose values are amounts."""
    hidden = _NO_HISTOGRAM.union(*(annotator.no_amounts for annotator in known_annotators().values()))
    return [item.name for item in schema if is_numeric(item.type) and item.name not in hidden]


def dataset_numbers(dataset: Dataset) -> dict[str, Any]:
    """Return the totals of a dataset and its counts by format, label and so on."""
    counts: dict[str, Counts] = {name: Counts() for name in ("format", "orientation", "label")}
    flags = {"faces_blurred": 0, "images_with_faces": 0, "reencoded": 0, "without_caption": 0}
    for number in range(len(dataset.shards)):
        table = dataset.index(number)
        for name, tally in counts.items():
            tally.add(table[name].cast(pa.string()))
        flags["without_caption"] += table["caption"].null_count
        if "faces_blurred" in table.column_names:
            flags["faces_blurred"] += pc.sum(table["faces_blurred"]).as_py() or 0
            flags["images_with_faces"] += pc.sum(pc.greater(table["faces_blurred"], 0)).as_py() or 0
        if "reencoded" in table.column_names:
            flags["reencoded"] += pc.sum(table["reencoded"]).as_py() or 0
    labels = counts.pop("label")
    return {
        "num_shards": len(dataset.shards),
        "num_samples": dataset.num_samples,
        "num_bytes": int(dataset.shards.num_bytes.sum()),
        "num_labels": len([label for label in labels.counts if label]),
        **flags,
        **{name: dict(tally.top(20)) for name, tally in counts.items()},
    }


def build_failures(job: Job, dataset: str) -> dict[str, Any]:
    """Return build's failures: how many by reason, and the first of them."""
    reasons = Counts()
    rows: list[dict[str, Any]] = []
    for name in files.list_names(job.build_failures(dataset), ".parquet"):
        table = read_table(files.join(job.build_failures(dataset), name))
        reasons.add(table["reason"])
        if len(rows) < MAX_FAILURES:
            rows.extend(table.slice(0, MAX_FAILURES - len(rows)).to_pylist())
    return {"by_reason": dict(reasons.top(50)), "rows": rows}
