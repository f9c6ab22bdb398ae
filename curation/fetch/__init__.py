"""Stage 1: a URL list becomes raw shards in img2dataset's layout.

Safe by default: nothing of a list is opened but public http(s) addresses. A failure is a row too: raw parquets hold
every row of the list, in the order of the keyed permutation.
"""

from headrace.curation.fetch.config import FetchConfig, InputConfig

__all__ = ["FetchConfig", "InputConfig"]
