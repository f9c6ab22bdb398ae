"""Text of other people's data on a terminal: without what a terminal would obey, and of bounded length.

Names in tars, URLs, captions, server answers: all of it may hold escape codes, or marks that turn the direction of
writing. Whatever is shown to a person goes through here once, at the border.
"""

import difflib
import re
from collections.abc import Iterable

MAX_SHOWN = 200
"""Letters of one quoted value; a message is read by people."""
MAX_LINE = 500
"""Letters of one text of the web in a listing."""


# Both patterns are linear: a URL of the web may have a million letters. So the scheme is not part of the first.
_USERINFO = re.compile(r"((?<=[A-Za-z0-9+.-])://[^/?#\s@:]*):[^/?#\s@]*@")
# Names in the query of a URL whose value gives access: signatures of object stores, tokens, keys.
_SECRET = re.compile(
    r"([?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|[a-z_-]*(?:signature|token|secret|password|passwd|credential|apikey)|"
    r"awsaccesskeyid|api[_-]?key|key-pair-id|policy|sig|auth|access[_-]?key)=)[^&\s'\"#]+",
    re.IGNORECASE,
)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return `did you mean 'WORD'?` of the known word that is most like one that is not; empty if none is."""
    near = difflib.get_close_matches(str(word)[:MAX_SHOWN], list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def known_words(word: object, known: Iterable[str], *, what: str = "known") -> str:
    """Return `did you mean 'WORD'? known: A, B` of a word that is none of them; no question if none is like it."""
    words = list(known)
    near = did_you_mean(word, words)
    return f"{near} {what}: {', '.join(words)}".lstrip()


def without_secrets(text: str) -> str:
    """Return `text` with `***` for what gives access in the URLs it quotes: passwords, signatures, tokens."""
    return _SECRET.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def one_line(text: str) -> str:
    """Return `text` on one line, without secrets and control characters: tabs and line ends become spaces."""
    return printable(without_secrets(" ".join(text.split())))


def cut_line(text: str) -> str:
    """Return `text` as `one_line` does, and at most `MAX_LINE` letters of it: a URL of the web may have a million."""
    return one_line(text)[:MAX_LINE]


def printable(text: str) -> str:
    """Return `text` with a space for each letter that does not print: escape codes, bidi controls, line ends."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shown(value: object, *, limit: int = MAX_SHOWN) -> str:
    """Return `repr(value)` on one line, cut in the middle if it is longer than `limit` letters."""
    text = printable(repr(value))
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
