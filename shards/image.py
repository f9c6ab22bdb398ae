"""The name that `headrace.shards.images.decode` had in 0.1: scripts that import it go on working until 0.3.

New scripts: `from headrace.shards import decode_rgb`.
"""

from headrace.shards.images.decode import MAX_PIXELS, apply_orientation, decode_rgb

__all__ = ["MAX_PIXELS", "apply_orientation", "decode_rgb"]
