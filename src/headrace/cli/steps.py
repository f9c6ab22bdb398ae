"""`headrace steps`: the steps of select that there are, those of extensions too."""

from headrace.cli.choices import show_choices
from headrace.cli.result import JsonOption


def steps_command(json: JsonOption = False) -> None:
    """List the steps that a recipe may write under `select`.

    Example: headrace steps
    """
    from headrace.curation.select.steps import known_steps

    show_choices(known_steps(), json=json)
