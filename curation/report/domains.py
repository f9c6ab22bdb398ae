"""Domains of URLs: the host without what stands before the name that was registered.

By a rule, not by the list of public suffixes, which changes: the last two labels, or three where the last is a country
and the one before it is short or one of the usual words (`co.uk`, `com.br`). Hosted pages (`name.blogspot.com`) count
for their host's domain, so that no person's page is named.
"""

import re
from collections.abc import Sequence

import pyarrow as pa

ADDRESS = "(IP address)"
NONE = "(no domain)"

_SECOND = frozenset(
    (
        *("ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "gv", "info", "ltd", "me", "mil"),
        *("ne", "net", "nhs", "nom", "or", "org", "plc", "sch"),
    )
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def domain_of(host: str) -> str:
    """Return the domain of a host; `ADDRESS` or `NONE` where there is none to name."""
    host = host.lower().rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return NONE
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        return ADDRESS if host.strip("[].") else NONE
    labels = host.split(".")
    if len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        return NONE
    country = len(labels[-1]) == 2 and len(labels) > 2 and (labels[-2] in _SECOND or len(labels[-2]) <= 2)
    return ".".join(labels[-3:] if country else labels[-2:])


def domains(hosts: pa.Array) -> pa.Array:
    """Return the domain of each host."""
    encoded = hosts.dictionary_encode()
    names: Sequence[str] = [domain_of(host or "") for host in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices)
