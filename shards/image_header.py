"""The name that `headrace.shards.images.header` had in 0.1: scripts that import it go on working until 0.3."""

from headrace.shards.images.header import ImageHeader, check_complete, read_header, sniff_format

__all__ = ["ImageHeader", "check_complete", "read_header", "sniff_format"]
