"""`headrace build`: raw shards + ledger -> curated shards, and a mixture file that streams them."""

from typing import Annotated

import typer

from headrace.cli.result import JsonOption, say_next
from headrace.cli.stages import (
    DryRunOption,
    MergeOption,
    OverridesArgument,
    PartOption,
    RecipeArgument,
    StartOverOption,
    TakeOverOption,
    run_stages,
)


def build_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    part: PartOption = None,
    merge: MergeOption = False,
    json: JsonOption = False,
    start_over: StartOverOption = False,
    mixture: Annotated[
        str, typer.Option("--mixture", metavar="FILE", help="Also write a mixture file of the dataset.")
    ] = "",
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="DATASET=SHARE", help="In the mixture, another dataset; may be repeated."),
    ] = None,
) -> None:
    """Write the curated shards: metadata cut, faces blurred.

    Example: headrace build recipe.yaml --mixture mixture.yaml --with data/imagenet=0.2
    """
    from headrace.cli.mixture_file import mixture_file
    from headrace.curation.datasets import recipe_dataset
    from headrace.curation.recipe import load_recipe

    if others and not mixture:
        raise ValueError("--with: give --mixture FILE, the mixture that is to hold the other dataset")
    file = None
    if mixture:
        read = load_recipe(recipe, overrides or ())
        dataset, name = recipe_dataset(read.job, read.build.dataset)
        file = mixture_file(mixture, dataset, others or (), name=name)
    options = {"build": {"start_over": start_over}}
    run_stages(
        ("build",),
        recipe,
        overrides,
        dry_run=dry_run,
        take_over=take_over,
        json=json,
        options=options,
        part=part,
        merge=merge,
    )
    if file is not None and not dry_run and part is None:
        file.write()
        if not json:
            say_next(["headrace", "stream", mixture])
