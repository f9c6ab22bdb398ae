"""Where one sample of a dataset comes from, whoever made the dataset."""

from typing import Any

import numpy as np

from headrace import files, urlpath
from headrace.pipeline.mixture import Mixture, Source
from headrace.shards.foreign.unindexed import names_tars
from headrace.shards.imports.source import SOURCE_COLUMN
from headrace.shards.manifest import SUMMARY_NAME
from headrace.text import without_secrets
from headrace.trace.find import KINDS, Asked, find_samples
from headrace.trace.history import History
from headrace.trace.lookup import TEXTS, Opened, open_sources
from headrace.trace.origin import Origin, origin_of

FACTS = ("key", "uid", "url", "caption", "label", "offset", "size", "width", "height")


def is_dataset(url: str, index_dir: str = "") -> bool:
    """True if `url` names a dataset with an index, or tars, and not the folder of a job."""
    return names_tars(url) or files.exists(urlpath.join(index_dir or url, SUMMARY_NAME))


def open_one(url: str, index_dir: str = "") -> Opened:
    """Open a dataset by itself. Raises ValueError if there is none, or it is empty."""
    mixture = Mixture(lanes=1, sources=(Source(name="data", url=url, index_dir=index_dir),))
    history = History(
        name=url,
        is_run=False,
        mixture=mixture,
        global_batch=1,
        done=0,
        lines=(),
        skipped={},
        quarantines=(),
        state=None,
    )
    return open_sources(history)


def samples_named(opened: Opened, query: str) -> tuple[Origin, list[dict[str, Any]]]:
    """Return where a dataset comes from, and its samples that have `query` as key, uid or URL.

    Raises ValueError if there is no such sample.
    """
    dataset = opened.sources[0].dataset
    kinds = [kind for kind in KINDS if not dataset.missing_columns([kind])]
    found = sorted({match.sample for match in find_samples(opened, Asked({kind: [query] for kind in kinds}))})
    if not found:
        raise ValueError(
            f"{without_secrets(dataset.url)}: none of its {dataset.num_samples:,} samples has the "
            f"{', '.join(kinds)} {query!r}"
        )
    rows = opened.rows(0, np.array(found, np.int64), (*TEXTS, SOURCE_COLUMN))
    return origin_of(dataset), [_facts(opened, row) for row in rows]


def _facts(opened: Opened, row: dict[str, Any]) -> dict[str, Any]:
    facts = {name: row.get(name) for name in FACTS}
    texts = {name: without_secrets(value) for name, value in facts.items() if isinstance(value, str)}
    return {
        **facts,
        **texts,
        "shard": row["shard"],
        "tar": without_secrets(opened.sources[0].dataset.tar_url(row["shard_number"])),
        "imported_from": row.get(SOURCE_COLUMN),
    }
