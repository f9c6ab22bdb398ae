"""From a batch whose threads are done with it to the batch that is delivered."""

from collections.abc import Mapping

import numpy as np

from headrace.pipeline.batch import Batch
from headrace.pipeline.collate import Kind, collate
from headrace.pipeline.prefetch import PendingBatch, WaitedFor


def assemble(
    pending: PendingBatch,
    columns: Mapping[str, Kind],
    *,
    replaces: bool,
    waited_seconds: float,
    waited_for: WaitedFor,
) -> Batch:
    """Return the batch that is delivered; without `replaces` its damaged samples are rows that are not valid."""
    assert pending.views is not None
    given = [
        made if made and (replaces or not made.damaged) else None
        for made in map(pending.made.get, range(len(pending.plan.valid)))
    ]
    return Batch(
        images=pending.views[0],
        other_views=pending.views[1:],
        columns={
            name: collate([made.values[name] if made else None for made in given], kind)
            for name, kind in columns.items()
        },
        position=pending.plan.position,
        source=pending.plan.placed.source.astype(np.int32),
        key=[made.key if made else "" for made in given],
        valid=np.array([made is not None for made in given], np.bool_),
        waited_seconds=waited_seconds,
        waited_for=waited_for,
        num_replaced=sum(bool(made.damaged) for made in pending.made.values()) if replaces else 0,
    )
