"""Where the images of a raw tar are."""

from headrace.shards.errors import ShardError
from headrace.shards.tar import iterate_members
from headrace.shards.windows import Windows

_NO_IMAGE = {"txt", "json", "cls"}


def image_spans(tar_url: str) -> tuple[dict[str, tuple[int, int]], str]:
    """Return the place and size of each key's image, as far as the tar can be read, and what stopped that."""
    spans: dict[str, tuple[int, int]] = {}
    with Windows(tar_url) as windows:
        try:
            for member in iterate_members(windows):
                key, _, extension = member.name.partition(".")
                if extension.lower() not in _NO_IMAGE:
                    spans.setdefault(key, (member.offset, member.size))
        except ShardError as error:
            return spans, str(error)
    return spans, ""
