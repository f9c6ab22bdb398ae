"""Compressed images -> the pixels of a batch: the one table of decoders.

To add one: a file with a class that has the methods of `decoder.Decoder`, and a line here; or, in a package of your
own, `Extension(decoders={"mine": Mine})` (`headrace.extensions`).
"""

from collections.abc import Callable

from headrace.extensions import with_extensions
from headrace.pipeline.decode.decoder import Decoder, Images, Item
from headrace.pipeline.decode.region import describe_jpeg_decoder
from headrace.pipeline.decode.resize import describe_resizer
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.decode.undecoded import Undecoded
from headrace.pipeline.mixture import NO_DECODER, Mixture

DecoderType = Callable[[Mixture], Decoder]

DECODERS: dict[str, DecoderType] = {"turbo": Turbo, NO_DECODER: Undecoded}

__all__ = ["DECODERS", "Decoder", "DecoderType", "Images", "Item", "decoder_types", "describe_decoding"]


def decoder_types() -> dict[str, DecoderType]:
    """Return every decoder by name, those of extensions too."""
    return with_extensions("decoders", DECODERS)


def describe_decoding() -> str:
    """Return which libraries decode and resize on this machine, in one line for people."""
    return f"{describe_jpeg_decoder()}; resizes by {describe_resizer()}"
