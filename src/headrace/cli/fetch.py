"""`headrace fetch`: URL list -> raw shards."""

from typing import Annotated

import typer

from headrace.cli.result import JsonOption, say_json
from headrace.cli.stages import (
    DryRunOption,
    MergeOption,
    OverridesArgument,
    PartOption,
    TakeOverOption,
    run_stages,
)
from headrace.text import printable


def fetch_command(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE.yaml", help="The recipe file.")] = None,
    overrides: OverridesArgument = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed; successes go to new raw shards.")
    ] = False,
    from_img2dataset: Annotated[
        str | None,
        typer.Option("--from-img2dataset", metavar="ARGS", help="Print the recipe of an img2dataset command; no more."),
    ] = None,
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    part: PartOption = None,
    merge: MergeOption = False,
    json: JsonOption = False,
) -> None:
    """Download a URL list into raw shards. Safe by default, resumable.

    Example: headrace fetch recipe.yaml fetch.concurrency=128
    """
    if from_img2dataset is not None:
        _say_recipe(from_img2dataset, json=json)
        return
    if recipe is None:
        raise ValueError("name a RECIPE.yaml; `headrace new recipe RECIPE.yaml` writes one")
    options = {"fetch": {"retry_failed": retry_failed}}
    run_stages(
        ("fetch",),
        recipe,
        overrides,
        dry_run=dry_run,
        take_over=take_over,
        json=json,
        options=options,
        part=part,
        merge=merge,
    )


def _say_recipe(arguments: str, *, json: bool) -> None:
    from headrace.curation.stages import recipe_of_img2dataset

    text = recipe_of_img2dataset(arguments)
    if json:
        say_json("fetch", {"recipe": text})
    else:
        for line in text.splitlines():
            print(printable(line))
