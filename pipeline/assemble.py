"""From a batch whose threads are done with it to the batch that is delivered."""

from collections.abc import Mapping

import numpy as np

from headrace.pipeline.batch import Batch
from headrace.pipeline.collate import Kind, collate
from headrace.pipeline.decode.memory import hand_over
from headrace.pipeline.mapping import Mapper
from headrace.pipeline.prefetch import PendingBatch, WaitedFor


def assemble(
    pending: PendingBatch,
    columns: Mapping[str, Kind],
    mapper: Mapper | None,
    *,
    replaces: bool,
    waited_seconds: float,
    waited_for: WaitedFor,
) -> Batch:
    """Return the batch that is delivered; without `replaces` its damaged samples are rows that are not valid.

    Columns of the map function take the place of those of the index. Raises ValueError if they do not go together.
    """
    assert pending.views is not None
    hand_over(pending.views)
    given = [
        made if made and (replaces or not made.damaged) else None
        for made in map(pending.made.get, range(len(pending.plan.valid)))
    ]
    keys = [made.key if made else "" for made in given]
    delivered = {
        name: collate([made.values[name] if made else None for made in given], kind) for name, kind in columns.items()
    }
    if mapper is not None:
        delivered |= mapper.collate([made.mapped if made else None for made in given], keys)
    return Batch(
        images=pending.views[0] if pending.views else np.empty((len(keys), 0, 0, 3), np.uint8),
        other_views=pending.views[1:],
        columns=delivered,
        position=pending.plan.position,
        source=pending.plan.placed.source.astype(np.int32),
        key=keys,
        data=[] if pending.views else [made.payload.data if made else b"" for made in given],
        valid=np.array([made is not None for made in given], np.bool_),
        waited_seconds=waited_seconds,
        waited_for=waited_for,
        lane=pending.plan.placed.lane,
        num_replaced=sum(bool(made.damaged) for made in pending.made.values()) if replaces else 0,
    )
