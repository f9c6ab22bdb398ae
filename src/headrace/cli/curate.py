"""`headrace curate`: all stages of a recipe."""

from headrace.cli.result import JsonOption
from headrace.cli.stages import (
    STAGES,
    DryRunOption,
    OverridesArgument,
    RecipeArgument,
    StartOverOption,
    TakeOverOption,
    run_stages,
)


def curate_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    json: JsonOption = False,
    start_over: StartOverOption = False,
) -> None:
    """Run fetch, annotate, select, build and report; what is already done is not done again.

    Example: headrace curate examples/dfn2b.yaml job=/data/dfn --dry-run
    """
    options = {"build": {"start_over": start_over}}
    run_stages(STAGES, recipe, overrides, dry_run=dry_run, take_over=take_over, json=json, options=options)
