"""`headrace annotators`: the annotators that there are, those of extensions too."""

from headrace.cli.choices import show_choices
from headrace.cli.result import JsonOption


def annotators_command(json: JsonOption = False) -> None:
    """List the annotators that a recipe may name under `annotate`.

    Example: headrace annotators
    """
    from headrace.curation.annotate.annotators import known_annotators

    show_choices(known_annotators(), json=json)
