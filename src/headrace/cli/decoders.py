"""`headrace decoders`: what may decode the pictures of a stream, those of extensions too."""


def decoders_command() -> None:
    """List the decoders that a mixture may name under `decoder`.

    Example: headrace decoders
    """
    from headrace.cli.choices import show_choices
    from headrace.pipeline.decode import decoder_types

    show_choices(decoder_types())
