"""What can be wrong with one sample."""


class SampleError(ValueError):
    """One sample is damaged for good; `reason` is crc, size or decode, or a word of a map function that raises it.

    Samples are counted by it: a few words, not a message each.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
