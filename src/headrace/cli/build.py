"""`headrace build`: raw shards + ledger -> curated shards."""

from headrace.cli.result import JsonOption
from headrace.cli.stages import (
    DryRunOption,
    OverridesArgument,
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
    json: JsonOption = False,
    start_over: StartOverOption = False,
) -> None:
    """Write the curated shards: metadata cut, faces blurred.

    Example: headrace build recipe.yaml build.jpeg_quality=92
    """
    options = {"build": {"start_over": start_over}}
    run_stages(("build",), recipe, overrides, dry_run=dry_run, take_over=take_over, json=json, options=options)
