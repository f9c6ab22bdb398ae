"""Walk once through the ledger and the tables beside it, shard by shard: the numbers of the report.

Memory stays that of one shard. "before" counts what was fetched and decoded into annotations, "after" what the ledger
keeps; build's failures are counted apart.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import files, urlpath
from headrace.curation.annotate.annotators import known_annotators
from headrace.curation.job import Job
from headrace.curation.ledger import Decision, ledger_by_shard
from headrace.curation.raw.read import read_raw
from headrace.curation.report.counts.categories import Categories, Sizes
from headrace.curation.report.counts.curves import Curves
from headrace.curation.report.counts.effects import Effects
from headrace.curation.report.sketch import Counts, Distinct, Floats, Histogram, Ranges, hosts, is_numeric, numbers
from headrace.curation.report.tables import all_captions, has_caption_lists, measured, read_annotations
from headrace.curation.report.values import facts_taken, with_cut_values, with_taken
from headrace.curation.select.expression import open_evaluator
from headrace.curation.select.step import Links
from headrace.curation.select.steps import step_of
from headrace.shards.dataset import Dataset
from headrace.shards.parquet import read_table

TOP_HOSTS = 50
MAX_FAILURES = 200

_JUDGED = ["raw_shard", "key", "kept", "step", "value", "caption_facts"]
_LEDGER = ["url", "raw_shard", "kept", "step", "reason", "value", "threshold", "duplicate_of"]


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
    host_failures: Counts = field(default_factory=Counts)
    """Host, a tab, class -> rows that were not fetched."""
    limits: dict[str, float] = field(default_factory=dict)
    """Steps that drop copies -> threshold, those that have one."""
    distances: dict[str, Counter[float]] = field(default_factory=dict)
    """Step that drops copies -> distance to what it dropped them for -> rows."""
    curves: Curves = field(default_factory=lambda: Curves(num_steps=0))
    effects: Effects = field(default_factory=lambda: Effects(steps=()))
    categories: Categories = field(default_factory=Categories)
    sizes: Sizes = field(default_factory=Sizes)


def gather_job(decision: Decision) -> Numbers:
    """Count everything of a job and one of its ledgers."""
    job, summary = decision.job, decision.summary
    result = Numbers(distinct={"hosts": Distinct(), "urls": Distinct(), "captions": Distinct(), "images": Distinct()})
    folders, ranges = decision.annotation_folders(), Ranges()
    links = {step.name: step_of(step).links for step in summary.steps}
    copying = [step for step in summary.steps if links[step.name] in ("groups", "references")]
    result.limits = {step.name: step.threshold for step in copying if step.threshold is not None}
    with open_evaluator() as evaluator:
        for shard, rows in ledger_by_shard(decision.ledger, _LEDGER):
            _count_ledger(result, rows, links)
            table = with_cut_values(evaluator, summary.steps, read_raw(job, shard), read_annotations(folders, shard))
            ranges.add(table, shown_columns(table.schema))
        result.histograms = ranges.histograms()
        scales = {name: histogram.scale for name, histogram in result.histograms.items()}
        result.curves = Curves.of(summary.steps, scales)
        result.effects = Effects(steps=[step.name for step in summary.steps])
        result.host_images = {host: Distinct(10) for host, _ in result.hosts["rows"].top(TOP_HOSTS)}
        for shard, rows in ledger_by_shard(decision.ledger, _JUDGED):
            raw, annotated = read_raw(job, shard), read_annotations(folders, shard)
            before = with_cut_values(evaluator, summary.steps, raw, annotated)
            after = None
            if facts := facts_taken(rows):
                after = with_cut_values(evaluator, summary.steps, with_taken(raw, facts), with_taken(annotated, facts))
            _count_raw(result, raw, before)
            judged = rows.take(pc.index_in(before["key"], value_set=rows["key"].combine_chunks()))
            _count_numbers(result, before, after, judged)
    return result


def _count_ledger(result: Numbers, rows: pa.Table, links: Mapping[str, Links]) -> None:
    host = hosts(rows["url"])
    failed = pc.fill_null(pc.equal(rows["step"], "fetch"), False).combine_chunks()
    kept = pc.fill_null(rows["kept"], False).combine_chunks()
    result.hosts["rows"].add(host)
    result.hosts["failed"].add(host.filter(failed))
    result.hosts["kept"].add(host.filter(kept))
    result.distinct["hosts"].add(pc.unique(host.filter(pc.not_equal(host, ""))).to_pylist())
    reasons = pc.fill_null(rows["reason"].filter(failed), "").combine_chunks()
    result.errors.add(reasons)
    result.host_failures.add(pc.binary_join_element_wise(host.filter(failed), reasons, "\t"))
    near = [name for name, kind in links.items() if kind == "groups"]
    mask = pc.is_in(pc.fill_null(rows["step"], ""), value_set=pa.array(near, pa.string())).combine_chunks()
    result.duplicates.add(rows["duplicate_of"].filter(mask))
    for name, threshold in result.limits.items():
        # A step may compare in two ways; its own threshold says which rows were dropped by the first.
        mine = pc.and_(pc.equal(rows["step"], name), pc.equal(rows["threshold"], threshold))
        values = rows["value"].filter(pc.fill_null(mine, False)).drop_null()
        counts = result.distances.setdefault(name, Counter())
        # Differing bits are whole; a step whose distances are not gets two digits, so that few are told apart.
        for found in pc.value_counts(pc.round(values, 2)).to_pylist():
            counts[found["values"]] += found["counts"]


def _step_numbers(judged: pa.Table, steps: Sequence[str]) -> NDArray[np.int64]:
    """Return for each row the number of the step that dropped it; of those that are kept, how many there are."""
    numbered = pc.index_in(judged["step"], value_set=pa.array(steps, pa.string()))
    return np.asarray(pc.fill_null(numbered, len(steps)).to_numpy(), np.int64)


def _count_raw(result: Numbers, raw: pa.Table, annotated: pa.Table) -> None:
    for name, column in (("urls", "url"), ("captions", "caption"), ("images", "sha256")):
        result.distinct[name].add(pc.unique(raw[column]).to_pylist())
    _count_host_images(result, raw)
    if "decode_error" in annotated.column_names:
        errors = annotated["decode_error"]
        # "class: message" -> class; messages hold sizes and offsets and would each be counted once.
        classes = pc.replace_substring_regex(errors.filter(pc.is_valid(errors)), ":.*", "")
        result.decode_errors.add(classes)


def _count_numbers(result: Numbers, before: pa.Table, after: pa.Table | None, judged: pa.Table) -> None:
    """Count one raw shard, `judged` its rows of the ledger.

    `after` holds its annotations with the captions that kept rows took, if some took one.
    """
    num_steps = len(result.effects.steps)
    steps, value = _step_numbers(judged, result.effects.steps), numbers(judged["value"])
    kept = steps == num_steps
    found: dict[str, Floats] = {}
    for name, histogram in result.histograms.items():
        if name not in before.column_names:
            continue
        found[name] = values = numbers(before[name])
        finite = np.isfinite(values)
        histogram.add(values, (values if after is None else numbers(after[name]))[kept])
        result.effects.add(name, histogram.scale.bins(values[finite]), steps[finite])
    for curve in result.curves.curves:
        if curve.expression in found:
            values = found[curve.expression]
            if after is not None and curve.sees_taken:
                values = np.where(kept, numbers(after[curve.expression]), values)
            if curve.alone:  # what the step itself saw
                values = np.where((steps == curve.number) & np.isfinite(value), value, values)
            curve.add(values, steps, num_steps)
    result.categories.add(before, kept, after)
    if "image_width" in found and "image_height" in found:
        result.sizes.add(found["image_width"], found["image_height"], kept)


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
        table = measured(dataset.index(number))
        ranges.add(table, shown_columns(table.schema))
    result.histograms = ranges.histograms()
    for number in range(len(dataset.shards)):
        table = measured(dataset.index(number))
        host = hosts(table["url"])
        result.hosts["rows"].add(host)
        result.distinct["hosts"].add(pc.unique(host.filter(pc.not_equal(host, ""))).to_pylist())
        for name, column in (("urls", "url"), ("captions", "caption"), ("images", "sha256")):
            result.distinct[name].add(pc.unique(table[column]).to_pylist())
        for name, histogram in result.histograms.items():
            if name in table.column_names:
                histogram.add(numbers(table[name]), np.zeros(0, np.float64))
        all_kept = np.ones(table.num_rows, bool)
        result.categories.add(table, all_kept)
        result.sizes.add(numbers(table["width"]), numbers(table["height"]), all_kept)
    return result


_NO_HISTOGRAM = {"offset", "crc32", "label"}  # of the index


def shown_columns(schema: pa.Schema) -> list[str]:
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
        if has_caption_lists(table):
            several = pc.sum(pc.greater(pc.list_value_length(table["captions"]), 1)).as_py() or 0
            texts = all_captions(table)
            for name, found in (("captions", len(texts) - texts.null_count), ("several_captions", several)):
                flags[name] = flags.get(name, 0) + found
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
        table = read_table(urlpath.join(job.build_failures(dataset), name))
        reasons.add(table["reason"])
        if len(rows) < MAX_FAILURES:
            rows.extend(table.slice(0, MAX_FAILURES - len(rows)).to_pylist())
    return {"by_reason": dict(reasons.top(50)), "rows": rows}
