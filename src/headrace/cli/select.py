"""`headrace select`: columns -> ledger."""

from headrace.cli.result import JsonOption
from headrace.cli.stages import DryRunOption, OverridesArgument, RecipeArgument, TakeOverOption, run_stages


def select_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    json: JsonOption = False,
) -> None:
    """Decide what is kept, in the recipe's order; write the ledger.

    Example: headrace select recipe.yaml --dry-run
    """
    run_stages(("select",), recipe, overrides, dry_run=dry_run, take_over=take_over, json=json)
