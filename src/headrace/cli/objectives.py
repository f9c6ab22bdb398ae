"""`headrace objectives`: what a run can minimise, extensions included."""

from headrace.cli.choices import show_choices
from headrace.cli.result import JsonOption


def objectives_command(json: JsonOption = False) -> None:
    """List what a run can minimise: the value of `objective.kind` in a run file, and what it does.

    Example: headrace objectives
    """
    from headrace.train.objectives import objective_configs

    show_choices(objective_configs(), json=json)
