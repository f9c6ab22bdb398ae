"""A blocklist: files of hashes, hits that are neither stored nor named, and a select that drops them once more."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.blocklist import BlocklistConfig, DigestSet, blocklist_digest, load_blocklist


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@given(st.lists(st.integers(0, 255).map(lambda last: b"\x00" * 7 + bytes([last % 3]) + bytes([last]) * 24)), st.data())
def test_a_set_of_digests_knows_its_members_and_no_other(digests: list[bytes], data: st.DataObject) -> None:
    found = DigestSet(b"".join(digests))
    assert len(found) == len(set(digests))
    assert all(item in found for item in digests)
    other = data.draw(st.binary(min_size=32, max_size=32))
    assert (other in found) == (other in digests)


def test_the_files_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(f"\ufeff# a list\r\n\r\n{digest('a').upper()} # one\r\n{digest('b')}".encode())
    listed = load_blocklist(BlocklistConfig(sha256=(str(path),)))
    assert listed.has_image(digest("a"))
    assert listed.has_image(digest("b"))
    assert not listed.has_image(digest("c"))
    assert not listed.has_image(None)
    again = BlocklistConfig(sha256=(write(tmp_path / "b", digest("b"), digest("a"), digest("a")),))
    assert blocklist_digest(again) == blocklist_digest(BlocklistConfig(sha256=(str(path),)))


@pytest.mark.parametrize("line", ["12", "z" * 64, digest("a") + "0", digest("a")[:-1] + " ", "\u00e9" * 32])
def test_a_damaged_file_is_one_line_with_its_place_and_not_its_content(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "list", digest("a"), "", line)
    with pytest.raises(
        ValueError, match=r"^blocklist .*list, line 3: expected 64 hexadecimal digits, got \d+ "
    ) as error:
        load_blocklist(BlocklistConfig(urls=(path,)))
    assert line not in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        load_blocklist(BlocklistConfig(pdq=(str(tmp_path / "none"),)))


@pytest.mark.parametrize(
    "spelling",
    ["http://A.example/a b.jpg#x", "http://a.example/a%20b.jpg", "a.example"],
)
def test_a_url_is_known_as_it_stands_as_it_is_sent_and_by_its_host(tmp_path: Path, spelling: str) -> None:
    listed = load_blocklist(BlocklistConfig(urls=(write(tmp_path / "list", digest(spelling)),)))
    assert listed.has_url("http://A.example/a b.jpg#x")
    assert not listed.has_url("http://b.example/a.jpg")
    assert not listed.has_url(None)


@pytest.mark.parametrize("first", ["blocklist", "needs", "fetch.config", "select.steps.blocked"])
def test_any_module_may_be_imported_first(first: str) -> None:
    subprocess.run([sys.executable, "-c", f"import headrace.curation.{first}"], check=True, timeout=120)
