"""How a URL is spelled in a request: as the list spells it, but for what may not stand there.

The sets of letters that are quoted, the tabs and line ends that are dropped, dot segments and backslashes are those of
the URL standard (url.spec.whatwg.org), so a server gets what a browser would send. Everything else stays, also what
could be spelled otherwise (`%2C`, `%7e`, `%zz`): signatures are over the very bytes.
"""

import re

from yarl import URL

# "Path percent-encode set" and "special-query percent-encode set".
_NOT_IN_PATH = re.compile(r'[\x00-\x20"#<>?^`{}\x7f-\U0010ffff]')
_NOT_IN_QUERY = re.compile(r"""[\x00-\x20"#'<>\x7f-\U0010ffff]""")

_DROPPED = re.compile(r"[\t\n\r]")
_ENDS = "".join(map(chr, range(0x21)))
_PARTS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#\\]*)(?P<rest>.*)", re.DOTALL)
_SINGLE_DOT = re.compile(r"\.|%2e", re.IGNORECASE)
_DOUBLE_DOT = re.compile(r"(?:\.|%2e){2}", re.IGNORECASE)


def trimmed(text: str) -> str:
    """Return a URL without spaces and controls at its ends, and without tabs and line ends anywhere."""
    return _DROPPED.sub("", text.strip(_ENDS).strip())


def parse(text: str) -> URL:
    """Return an absolute URL with its path and query as `text` spells them. Raises ValueError."""
    found = _PARTS.fullmatch(text)
    if found is None:
        raise ValueError("the URL has no host")
    if found["rest"].startswith("\\"):
        raise ValueError("a backslash ends the host")
    authority = URL(f"{found['scheme']}://{found['authority']}/")
    return authority if found["rest"] in ("", "/") else with_target(authority, *split(found["rest"]))


def split(rest: str) -> tuple[str, str | None]:
    """Return path and query of what follows the authority of a URL; None without a query. The fragment is dropped."""
    path, mark, query = rest.partition("#")[0].partition("?")
    return path.replace("\\", "/"), query if mark else None


def with_target(url: URL, path: str, query: str | None) -> URL:
    """Return `url` with another path and query, quoted where they must be."""
    target = _absolute_path(path)
    if query is not None:
        # yarl drops the mark of an empty query, so it goes with the path, which is sent as it is.
        target += "?" + _quoted(query, _NOT_IN_QUERY)
    return URL.build(scheme=url.scheme, authority=url.raw_authority, path=target, encoded=True)


def resolve(base: URL, text: str) -> URL:
    """Return where a reference leads from `base`. Raises ValueError."""
    if _PARTS.fullmatch(text):
        return parse(text)
    scheme, colon, rest = text.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if scheme.lower() != base.scheme:
            return URL(text)  # whoever checks it will refuse the scheme
        text = rest
    path, query = split(text)
    if path.startswith("//"):
        return parse(f"{base.scheme}:{path}" + ("" if query is None else f"?{query}"))
    base_path, _, base_query = base.raw_path_qs.partition("?")
    if not path:
        return with_target(base, base_path, query if query is not None or "?" not in base.raw_path_qs else base_query)
    return with_target(base, path if path.startswith("/") else base_path.rpartition("/")[0] + "/" + path, query)


def _absolute_path(path: str) -> str:
    """Return a path without dot segments, quoted."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        dots = _DOUBLE_DOT.fullmatch(segment) or _SINGLE_DOT.fullmatch(segment)
        if dots is None:
            kept.append(_quoted(segment, _NOT_IN_PATH))
            continue
        if _DOUBLE_DOT.fullmatch(segment) and kept:
            kept.pop()
        if number == len(segments) - 1:
            kept.append("")
    return "/" + "/".join(kept)


def _quoted(text: str, letters: re.Pattern[str]) -> str:
    return letters.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "replace")), text)
