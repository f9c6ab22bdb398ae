"""The index of URLs finds what was put into it, on disk, in any order."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.reuse import index as indexing
from headrace.curation.fetch.reuse.index import UrlIndex, digests_of
from headrace.curation.fetch.reuse.source import PLACE

ENTRIES = st.lists(st.tuples(st.text(max_size=4), st.booleans()), max_size=30)


@given(entries=ENTRIES, asked=st.lists(st.text(max_size=4), max_size=20), flush=st.integers(1, 8))
def test_the_first_image_of_a_url_is_found_and_before_any_failure(
    tmp_path_factory, entries: list[tuple[str, bool]], asked: list[str], flush: int
) -> None:
    index = UrlIndex(Path(tmp_path_factory.mktemp("index")) / "new")
    before, indexing.FLUSH_ROWS = indexing.FLUSH_ROWS, flush
    try:
        expected: dict[str, tuple[bool, int]] = {}
        for number, (url, failed) in enumerate(entries):
            places = np.zeros(1, PLACE)
            places["failure"], places["offset"] = failed, number
            index.add([url], places)
            expected[url] = min(expected.get(url, (True, len(entries))), (failed, number))
        assert index.sort() == len(expected)
        rows, found = index.find(digests_of(asked))
        assert rows.tolist() == [row for row, url in enumerate(asked) if url in expected]
        assert found["offset"].tolist() == [expected[asked[row]][1] for row in rows]
    finally:
        indexing.FLUSH_ROWS = before
        index.remove()
