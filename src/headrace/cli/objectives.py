"""`headrace objectives`: what a run can minimise, extensions included."""

import typer


def objectives_command() -> None:
    """List what a run can minimise: the value of `objective.kind` in a run file, and what it does.

    Example: headrace objectives
    """
    from headrace.train.objectives import objective_configs

    table = objective_configs()
    width = max(map(len, table))
    for name, config in sorted(table.items()):
        typer.echo(f"{name:{width}}  {(config.__doc__ or '').strip().splitlines()[0]}")
