"""Units in threads of this process: for work that waits."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headrace.shards.units import EngineConfig, Run, named


@contextlib.contextmanager
def open_threads(engine: EngineConfig) -> Iterator[Run]:
    """Yield the function that runs units in threads; none of them can die alone."""
    with ThreadPoolExecutor(engine.workers or 4) as pool:

        def run(
            work: Callable[[Any], Any], units: Mapping[int, Any], on_result: Callable[[int, Any], None]
        ) -> dict[int, str]:
            for number, result in zip(units, pool.map(lambda unit: named(work, unit), units.values()), strict=True):
                on_result(number, result)
            return {}

        yield run
