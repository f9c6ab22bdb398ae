"""Units in threads of this process: for work that waits. No heartbeats: a unit is heard of when it ends."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headrace.shards.heartbeat import Beat
from headrace.shards.progress import Tally
from headrace.shards.units import EngineConfig, Run


@contextlib.contextmanager
def open_threads(engine: EngineConfig) -> Iterator[Run]:
    """Yield the function that runs units in threads; none of them can die alone."""
    with ThreadPoolExecutor(engine.workers or 4) as pool:

        def run(work: Callable[[Any], Any], units: Mapping[int, Any], tally: Tally[Any]) -> dict[int, str]:
            for number, result in zip(units, pool.map(work, units.values()), strict=True):
                tally.ended(number, result, Beat())
            return {}

        yield run
