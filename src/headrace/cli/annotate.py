"""`headrace annotate`: raw shards -> columns."""

from headrace.cli.result import JsonOption
from headrace.cli.stages import (
    DryRunOption,
    MergeOption,
    OverridesArgument,
    PartOption,
    RecipeArgument,
    TakeOverOption,
    run_stages,
)


def annotate_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    part: PartOption = None,
    merge: MergeOption = False,
    json: JsonOption = False,
) -> None:
    """Compute columns (hashes, scores, faces) for raw shards; old columns are never computed again.

    Example: headrace annotate recipe.yaml annotate.batch_size=128
    """
    run_stages(
        ("annotate",), recipe, overrides, dry_run=dry_run, take_over=take_over, json=json, part=part, merge=merge
    )
