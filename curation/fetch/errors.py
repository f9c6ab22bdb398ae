"""Why a row has no image: the error classes of the raw parquet, and the error that carries one.

A message must be a function of what the server answered: no times, no ports of ours, no object ids, as it is written
into outputs that must be the same in every run. The one thing a reader would get wrong: `retryable` is about trying
again at once, within the deadline; which classes `--retry-failed` tries again is `FetchConfig.retry_classes`.
"""

ERROR_CLASSES = (
    "dns",
    "connect",
    "tls",
    "timeout",
    "http-4xx",
    "http-429",
    "http-5xx",
    "redirects",
    "too-large",
    "empty",
    "not-image",
    "truncated",
    "bomb",
    "sha256-mismatch",
    "resize",
    "refused-scheme",
    "refused-address",
    "opted-out",
    "bad-url",
    "protocol",
)

TRANSIENT_CLASSES = ("dns", "connect", "timeout", "http-429", "http-5xx", "truncated")
"""What may be gone another day; the default of `FetchConfig.retry_classes`."""


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

    def __str__(self) -> str:
        return self.message
