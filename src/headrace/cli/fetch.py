"""`headrace fetch`: URL list -> raw shards."""

from typing import Annotated

import typer

from headrace.cli.result import JsonOption
from headrace.cli.stages import DryRunOption, OverridesArgument, RecipeArgument, TakeOverOption, run_stages


def fetch_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed; successes go to new raw shards.")
    ] = False,
    dry_run: DryRunOption = False,
    take_over: TakeOverOption = False,
    json: JsonOption = False,
) -> None:
    """Download a URL list into raw shards. Safe by default, resumable.

    Example: headrace fetch recipe.yaml fetch.concurrency=128
    """
    options = {"fetch": {"retry_failed": retry_failed}}
    run_stages(("fetch",), recipe, overrides, dry_run=dry_run, take_over=take_over, json=json, options=options)
