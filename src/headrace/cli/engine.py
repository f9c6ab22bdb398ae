"""Where the work of a command runs: the options of `import` and `index` that a recipe has as `engine`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from headrace.shards.units import EngineConfig

Executor = Literal["local", "inline", "ray"]
ExecutorOption = Annotated[
    Executor, typer.Option("--executor", help="A pool of processes, this process alone, or a Ray cluster.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Shards at a time; 0 = one for each CPU (Ray: all the cluster has).")
]
RayAddressOption = Annotated[
    str, typer.Option("--ray-address", help="Address of a running Ray cluster; without it one is started here.")
]


def engine_config(executor: Executor, workers: int, ray_address: str) -> "EngineConfig":
    """Return the options as the config that the stages of a recipe have. Raises ValueError."""
    from headrace.shards.units import EngineConfig

    if ray_address and executor != "ray":
        raise ValueError(f"--ray-address is for --executor ray, got --executor {executor}")
    return EngineConfig(executor=executor, workers=workers, ray_address=ray_address)
