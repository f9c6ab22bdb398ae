"""`headrace annotators`: the annotators that there are, those of extensions too."""


def annotators_command() -> None:
    """List the annotators that a recipe may name under `annotate`.

    Example: headrace annotators
    """
    from headrace.cli.choices import show_choices
    from headrace.curation.annotate.annotators import known_annotators

    show_choices(known_annotators())
