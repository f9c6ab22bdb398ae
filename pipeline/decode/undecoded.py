"""No decoder: the bytes of each image as they lie in the shard, for whoever decodes them himself."""

from collections.abc import Sequence

from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.decode.decoder import Images, Item
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture
from headrace.shards.images.header import check_complete


class Undecoded:
    """Nothing is decoded: `Batch.data` has the bytes of each image, checked as far as that goes without decoding."""

    def __init__(self, mixture: Mixture) -> None:
        self.items_per_call = 8
        self.calls_at_once = mixture.decode_threads or own_cores()

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:  # noqa: ARG002  there are no views
        """Return no memory: without pixels a batch has no views."""
        return ()

    def decode(
        self,
        items: Sequence[Item],
        windows_per_view: Sequence[ChooseWindow],  # noqa: ARG002
        out: Sequence[Images],  # noqa: ARG002
    ) -> list[SampleError | None]:
        """Look for the end of each JPEG, which of plain ones the gate leaves to their decoder: that is not ours."""
        return [_fault_of(item) for item in items]

    def close(self) -> None:
        """Nothing to free."""


def _fault_of(item: Item) -> SampleError | None:
    if item.header.format != "jpeg":
        return None
    try:
        check_complete(item.data, item.header)
    except ValueError as error:
        return SampleError("decode", str(error))
    return None
