"""`headrace verify`: check every byte of a dataset and name each damaged sample."""

from dataclasses import asdict

import typer

from headrace.cli.engine import ExecutorOption, RayAddressOption, WorkersOption, engine_config
from headrace.cli.progress import show_progress
from headrace.cli.result import NEW_MIXTURE, JsonOption, say_json, say_next


def verify_command(
    dataset: str = typer.Argument(..., help="Folder or URL of a dataset."),
    decode: bool = typer.Option(False, "--decode", help="Also decode every image."),
    index_dir: str = typer.Option("", "--index-dir", help="Where the index lies, if not beside the shards."),
    executor: ExecutorOption = "local",
    workers: WorkersOption = 0,
    ray_address: RayAddressOption = "",
    json: JsonOption = False,
) -> None:
    """Check shards against their index; one line for each damaged sample.

    Exit code 0: whole; 1: damaged, or no dataset there.

    Example: headrace verify /data/cifar --decode
    """
    from headrace.shards.dataset import open_dataset
    from headrace.shards.verify import verify_dataset

    engine = engine_config(executor, workers, ray_address)
    opened = open_dataset(dataset, index_dir=index_dir or None)
    with show_progress("verify") as on_progress:
        damages = verify_dataset(
            dataset,
            index_dir=index_dir or None,
            decode=decode,
            engine=engine,
            on_progress=on_progress,
            on_damage=None if json else print,
        )
    if json:
        facts = {"dataset": dataset, "num_shards": len(opened.shards), "num_samples": opened.num_samples}
        say_json("verify", {**facts, "damages": [asdict(damage) for damage in damages]})
    elif damages:
        print(f"damage in {len(damages)} places of {len(opened.shards)} shards, {opened.num_samples} samples")
    else:
        print(f"whole: {len(opened.shards)} shards, {opened.num_samples} samples")
        say_next(NEW_MIXTURE)
    if damages:
        raise typer.Exit(1)
