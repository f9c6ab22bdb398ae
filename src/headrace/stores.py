"""File systems of other libraries, with one patience in place of theirs.

s3fs tries five times what botocore has tried five times, each for its own time-out: a stall is seen after six minutes,
and who waits is not told. Here a store tries once and says so; `headrace.patience` does the rest. What a user has set
himself, in fsspec's configuration (`FSSPEC_S3_...`) or as `config_kwargs`, stays.
"""

import functools
import os
from typing import Any

import fsspec

from headrace.patience import Patience

S3 = ("s3://", "s3a://")
CONNECTIONS = 64
"""More than any stream reads at once; botocore's ten would be a queue that nobody sees."""
CONNECT_SECONDS = 20.0


def open_fs(url: str) -> tuple[Any, str]:
    """Return (filesystem, path inside it). A string without a scheme is a local path."""
    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path)


def open_store(url: str, patience: Patience) -> tuple[Any, str]:
    """Return (file system, path inside it) to read `url` with; its own retries are off where it lets them be."""
    fs, path = fsspec.core.url_to_fs(url)
    if not url.startswith(S3) or not hasattr(fs, "config_kwargs"):
        return fs, str(path)
    scheme = url.partition("://")[0]
    return _patient_s3(scheme, fs, patience.timeout_seconds, os.getpid()), str(path)


@functools.lru_cache(16)
def _patient_s3(_scheme: str, fs: Any, timeout_seconds: float, _process: int) -> Any:
    config = {
        "connect_timeout": min(timeout_seconds, CONNECT_SECONDS),
        "read_timeout": timeout_seconds,
        "max_pool_connections": CONNECTIONS,
        "retries": {"total_max_attempts": 1},
        **fs.config_kwargs,
    }
    patient = type(fs)(*fs.storage_args, **{**fs.storage_options, "config_kwargs": config})
    if "retries" not in fs.config_kwargs:
        patient.retries = 1  # of s3fs itself: this instance is ours, no user's has the same configuration
    return patient
