"""What a decoder is: compressed pictures of one batch -> the pixels of each view, in the batch's memory.

A decoder is made once a stream, from the mixture, and chosen by the mixture's key `decoder`. It gets what is ready of
a batch, decodes each picture once and cuts every view from it. One bad picture is an answer, never an exception: the
others of the call are delivered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture
from headrace.shards.images.header import ImageHeader

# A 16-bit PNG of 64 Mi pixels takes 1.4 GB while it is decoded. Pictures over this are decoded one at a time, whatever
# the number of threads, so that memory is bounded by one of them and a few hundred MB a thread.
LARGE_PIXELS = 16 << 20

Images: TypeAlias = Any
"""One view of a batch: uint8 [B, S, S, 3], RGB. A numpy array; of `dali` on a CUDA device a torch tensor there.

Typed as neither, since nearly every caller knows which it opened; `memory` tells them apart."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture to decode. Its header was read and its end looked for: no decoder needs to do so again."""

    data: bytes
    header: ImageHeader
    """Format, stored width and height; the orientation is the index's, as curation cuts EXIF out of the data."""
    position: int
    """What its windows are asked with."""
    row: int
    """Its row in every array of `out`."""

    @property
    def is_large(self) -> bool:
        """Whether it is decoded while no other large one is."""
        return self.header.height * self.header.width > LARGE_PIXELS


class Decoder(Protocol):
    """Decodes the pictures of one stream; made by `make_decoder`: `DECODERS[name](mixture)`, or its `for_device`."""

    items_per_call: int
    """Pictures in a call, fewer at the end of a batch: 1 where threads are the parallelism; more where a call is."""
    calls_at_once: int
    """Threads that may call `decode` at the same time, never for the same rows."""

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch: for each view its [num_items, size, size, 3], not set to anything."""

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        """Write view v of each item into `out[v][item.row]`; return why not, or None, for each item.

        The window of view v is `windows_per_view[v](item.position, height, width)`, asked with the upright size and
        in upright coordinates. An item with an error is written again: a replacement follows, or zeros.
        """

    def close(self) -> None:
        """Free what the decoder holds; no call is under way."""


DecoderType = Callable[[Mixture], Decoder]


@runtime_checkable
class TellsAugment(Protocol):
    """What a decoder may have besides: it says how long its crops and resizes took, apart from decoding."""

    on_augment: Callable[[float], None]
    """Called with the seconds of one picture, in the thread that decodes; the stream sets it."""


@runtime_checkable
class MadeForDevice(Protocol):
    """What a decoder's class may have besides: it can make batches for a CUDA device."""

    def for_device(self, mixture: Mixture, device: str) -> Decoder:
        """Return a decoder whose batches lie on `device` (`cuda:N`), or in pinned memory."""
