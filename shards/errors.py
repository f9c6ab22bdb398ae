"""The one error of this floor that callers catch: a damaged shard or sample.

The message says where (shard, key, byte offset) and then what, printable and without secrets: names in tars are data,
and what a terminal would obey is taken out of them. The attributes are as they came; damage to a whole shard has no
key.
"""

from headrace.text import printable, without_secrets


class ShardError(ValueError):
    """A damaged shard or sample."""

    def __init__(
        self, message: str, *, shard: str | None = None, key: str | None = None, offset: int | None = None
    ) -> None:
        where = "".join(
            (
                f"{shard}: " if shard is not None else "",
                f"sample {key!r} " if key is not None else "",
                f"at byte {offset}: " if offset is not None else ": " if key is not None else "",
            )
        ).replace(" : ", ": ")
        super().__init__(printable(without_secrets(where + message)))
        self.shard = shard
        self.key = key
        self.offset = offset
        self.detail = message
