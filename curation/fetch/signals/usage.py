"""Preferences on the use of content: `train-ai=n` (IETF AIPREF) and `ai-train=no` (Content-Signal).

AIPREF is a dictionary of RFC 9651, structured fields: of a key that stands twice the last one counts, a value that is
no token says nothing, and one error anywhere means that nothing is said (draft-ietf-aipref-vocab-08, section 6.4).
Its category is the training of generative models; we obey it whatever is trained: it is the owner's word on training.
"""

import re
from collections.abc import Iterable

_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*")
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*")
_BARE_ITEM = re.compile(
    r"-?[0-9]{1,15}(?![0-9.])|-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9])"  # integer, decimal
    r"|@-?[0-9]{1,15}(?![0-9.])|\?[01]"  # date, boolean
    r'|%?"(?:[ !#-\[\]-~]|\\["\\])*"'  # string, display string
    r"|:[A-Za-z0-9+/=]*:"  # bytes
    r"|" + _TOKEN.pattern
)
_SPACES = re.compile(r" *")
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def usage_forbids_training(values: Iterable[str]) -> bool | None:
    """Return what the Content-Usage header lines say of `train-ai`: True forbids, False allows, None is unknown."""
    try:
        stated = parse_dictionary(", ".join(values)).get("train-ai")
    except ValueError:
        return None
    return {"n": True, "y": False}.get(stated or "")


def signal_forbids_training(values: Iterable[str]) -> bool | None:
    """Return what Content-Signal lines say of `ai-train`: one `no` is enough."""
    stated = set()
    for part in re.split(r"[,;]", ",".join(values).lower()):
        name, _, value = part.partition("=")
        if name.strip() == "ai-train":
            stated.add(value.strip())
    return True if "no" in stated else False if "yes" in stated else None


def parse_dictionary(text: str) -> dict[str, str]:
    """Return the members of a dictionary that are tokens; others are there with an empty text.

    Raises ValueError where RFC 9651, section 4.2.2, fails.
    """
    members: dict[str, str] = {}
    text, at = text.strip(" "), 0
    while at < len(text):
        key, at = _take(_KEY, text, at)
        value = ""
        if text.startswith("=", at):
            value, at = _member(text, at + 1)
        at = _parameters(text, at)
        members[key] = value
        if at == len(text):
            break
        _, at = _take(_COMMA, text, at)
        if at == len(text):
            raise ValueError("a comma at the end")
    return members


def _member(text: str, at: int) -> tuple[str, int]:
    if not text.startswith("(", at):
        value, at = _take(_BARE_ITEM, text, at)
        return value if _TOKEN.fullmatch(value) else "", at
    at += 1
    while True:
        _, at = _take(_SPACES, text, at)
        if text.startswith(")", at):
            return "", at + 1
        _, at = _take(_BARE_ITEM, text, at)
        at = _parameters(text, at)
        if text[at : at + 1] not in (" ", ")"):
            raise ValueError("an inner list without an end")


def _parameters(text: str, at: int) -> int:
    while text.startswith(";", at):
        _, at = _take(_SPACES, text, at + 1)
        _, at = _take(_KEY, text, at)
        if text.startswith("=", at):
            _, at = _take(_BARE_ITEM, text, at + 1)
    return at


def _take(pattern: re.Pattern[str], text: str, at: int) -> tuple[str, int]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError(f"nothing that may stand at {at}")
    return found[0], found.end()
