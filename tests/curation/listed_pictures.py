"""Pictures drawn from seeds, and a job's raw shard of them as a list of URLs names them."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from headrace.curation.job import Job
from headrace.curation.raw.write import Outcome, RawShard, write_raw_shard
from headrace.shards.images.header import read_header


def draw(seed: int, *, side: int = 256, image_format: str = "PNG") -> bytes:
    """Return a square picture: of one seed it is the same picture at every size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    whole = Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    whole.resize((side, side)).save(sink, image_format)
    return sink.getvalue()


def write_listed(job: Job, images: Sequence[bytes], columns: Mapping[str, Any]) -> None:
    """Write the raw shard of a job that fetched `images`; `columns` are `url`, `caption` and more of its list."""
    places = {"input_file": ["list.csv"] * len(images), "input_row": list(range(len(images)))}
    outcomes = []
    for number, data in enumerate(images):
        header, sha256 = read_header(data), hashlib.sha256(data).hexdigest()
        outcomes.append(Outcome(header=header, original=header, sha256=sha256, offset=number, size=len(data)))
    Path(job.raw).mkdir(parents=True)
    shard = RawShard(job.raw, 0, 100)
    write_raw_shard(shard, pa.table({**columns, **places}), outcomes, lambda outcome: images[outcome.offset])
