"""Which decoder a stream has: the mixture's, or, where that is `auto`, the one that suits the device."""

import logging

from headrace.extensions import with_extensions
from headrace.pipeline.decode.dali import Dali
from headrace.pipeline.decode.dali_pipeline import dali_fault
from headrace.pipeline.decode.decoder import Decoder, DecoderType, MadeForDevice
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.decode.undecoded import Undecoded
from headrace.pipeline.mixture import NO_DECODER, Mixture

AUTO = "auto"
DECODERS: dict[str, DecoderType] = {"turbo": Turbo, "dali": Dali, NO_DECODER: Undecoded}

log = logging.getLogger(__name__)


def decoder_types() -> dict[str, DecoderType]:
    """Return every decoder by name, those of extensions too."""
    return with_extensions("decoders", DECODERS)


def auto(mixture: Mixture, device: str) -> tuple[str, str]:
    """`dali` on a CUDA device if DALI works there, else `turbo`.

    Returns the name, and why not `dali`.
    """
    if device == "cpu":
        return "turbo", "on the CPU turbo is faster"
    if mixture.jpeg_scaling == "on":
        return "turbo", "jpeg_scaling is turbo's"
    fault = dali_fault(device)
    return ("turbo", f"dali is {fault}") if fault else ("dali", "")


def chosen_decoder(mixture: Mixture, device: str) -> str:
    """Return the name of the decoder that a stream on `device` has. Raises ValueError if it cannot be had there."""
    if mixture.decoder == AUTO:
        name, why = auto(mixture, device)
        if why and device != "cpu":
            log.info("decoder auto is turbo on %s: %s", device, why)
        return name
    if mixture.decoder == "dali":
        fault = dali_fault(device)
        if fault:
            raise ValueError(f"decoder: dali is {fault}; or set decoder: turbo")
        if mixture.jpeg_scaling == "on":
            raise ValueError("jpeg_scaling: on needs decoder: turbo, got dali, which decodes at full size")
    return mixture.decoder


def make_decoder(mixture: Mixture, device: str) -> Decoder:
    """Return the decoder that `mixture` names, which is not `auto`, for batches on `device`."""
    kind = decoder_types()[mixture.decoder]
    return kind.for_device(mixture, device) if isinstance(kind, MadeForDevice) else kind(mixture)
