"""Compressed images -> the pixels of a batch: the one table of decoders.

To add one: a file with a class that has the methods of `decoder.Decoder`, and a line in `choice`; or, in a package of
your own, `Extension(decoders={"mine": Mine})` (`headrace.extensions`).
"""

from headrace.pipeline.decode.choice import (
    AUTO,
    DECODERS,
    auto,
    chosen_decoder,
    decoder_types,
    make_decoder,
)
from headrace.pipeline.decode.dali_pipeline import dali_fault, dali_version
from headrace.pipeline.decode.decoder import Decoder, DecoderType, Images, Item
from headrace.pipeline.decode.region import describe_jpeg_decoder
from headrace.pipeline.decode.resize import describe_resizer

__all__ = [
    "AUTO",
    "DECODERS",
    "Decoder",
    "DecoderType",
    "Images",
    "Item",
    "auto",
    "chosen_decoder",
    "dali_fault",
    "decoder_types",
    "describe_decoding",
    "make_decoder",
]


def describe_decoding(decoder: str = "turbo") -> str:
    """Return which libraries decode and resize on this machine, in one line for people."""
    if decoder == "dali":
        fault = dali_fault()
        return fault or f"DALI {dali_version()}, the box of the windows; resizes by itself"
    return f"{describe_jpeg_decoder()}; resizes by {describe_resizer()}"
