"""`headrace decoders`: what may decode the pictures of a stream, those of extensions too."""

from headrace.cli.choices import show_choices
from headrace.cli.result import JsonOption


def decoders_command(json: JsonOption = False) -> None:
    """List the decoders that a mixture may name under `decoder`.

    Example: headrace decoders
    """
    from headrace.pipeline.decode import decoder_types

    show_choices(decoder_types(), json=json)
