"""`headrace decoders`: what may decode the pictures of a stream, those of extensions too."""

from headrace.cli.choices import show_choices
from headrace.cli.result import JsonOption


def decoders_command(json: JsonOption = False) -> None:
    """List the decoders that a mixture may name under `decoder`.

    Example: headrace decoders
    """
    from headrace.pipeline.decode import AUTO, auto, decoder_types
    from headrace.pipeline.mixture import Mixture, Source

    device = cuda_device()
    name, why = auto(Mixture(sources=(Source(name="any", url="any"),)), device or "cpu")
    here = f"Here it is {name}: {why if why and device else device or 'no CUDA device'}."
    show_choices({AUTO: auto, **decoder_types()}, json=json, notes={AUTO: here})


def cuda_device() -> str:
    """Return the CUDA device that a stream here may be opened for; empty if there is none."""
    from headrace.pipeline.decode.memory import check_device

    try:
        return check_device("cuda")
    except ValueError:
        return ""
