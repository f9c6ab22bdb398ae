"""Why a row has no image: the error that carries a class of the raw parquet.

A message must be a function of what the server answered: no times, no ports of ours, no object ids, as it is written
into outputs that must be the same in every run. `retryable` is about trying again at once,
within the deadline; which classes `--retry-failed` tries again is `FetchConfig.retry_classes`.
"""

from headrace.curation.raw.schema import ERROR_CLASSES


class FetchError(Exception):
    """One URL, or one attempt at it, gave no image."""

    def __init__(
        self, error_class: str, message: str, *, retryable: bool = False, wait_seconds: float | None = None
    ) -> None:
        assert error_class in ERROR_CLASSES, error_class
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = message
        self.retryable = retryable
        self.wait_seconds = wait_seconds
        """What the server asked for with Retry-After."""
        self.stands_for: float | None = None
        """Since when the host gives no answer, where that is not since this attempt began."""
        self.is_refusal = False
        """The server said that it has too much to do (429, 503)."""
        self.is_slow = False
        """The answer dripped; the next one would."""
        self.not_asked = False
        """Concluded from other rows of the host: it was not asked for this one."""

    def __str__(self) -> str:
        return self.message
