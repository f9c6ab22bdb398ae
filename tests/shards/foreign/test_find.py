"""What a user means: files, folders, globs, braces; compressed tars are named."""

from pathlib import Path

import pytest

from headrace.shards.foreign.find import expand_files, find_tars, overlooked, refuse_compressed, spell_out


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{000..003}.tar", ["000.tar", "001.tar", "002.tar", "003.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{008..10}", ["008", "009", "010"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("plain", ["plain"]),
        ("back{brace}", ["back{brace}"]),
        ("{}", ["{}"]),
    ],
)
def test_braces_stand_for_files(pattern: str, expected: list[str]) -> None:
    assert list(spell_out(pattern)) == expected


@pytest.mark.parametrize("pattern", ["{0..9999999999}", "{0..9999}{0..9999}"])
def test_braces_without_end_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="files, over 1000000"):
        list(spell_out(pattern))


def test_a_brace_pattern_must_be_there_as_a_whole(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        (tmp_path / f"{number:03d}.tar").write_bytes(b"")
    found = [str(tmp_path / f"{number:03d}.tar") for number in (0, 1)]
    assert expand_files(f"{tmp_path}/{{000..001}}.tar", ".tar") == found
    with pytest.raises(ValueError, match=r"1 of 4 are not there: .*002\.tar$"):
        expand_files(f"{tmp_path}/{{000..003}}.tar", ".tar")
    assert expand_files(f"{tmp_path}/{{5..6}}.tar", ".tar") == []
    with pytest.raises(ValueError, match=r"no \.tar there"):
        find_tars([f"{tmp_path}/{{5..6}}.tar"])


def test_a_path_that_exists_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("{0..1}", "a[b]", "what?", "st*r", "sp ace", "~x"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.tar").write_bytes(b"")
        assert find_tars([str(folder)]) == {str(folder): ["x.tar"]}
        assert find_tars([str(folder / "x.tar")]) == {str(folder): ["x.tar"]}
    monkeypatch.setenv("HOME", str(tmp_path / "a[b]"))
    assert expand_files("~/x.tar", ".tar") == ["~/x.tar"]
    assert find_tars(["~"]) == {"~": ["x.tar"]}


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.zst", "0.tar.xz"])
def test_compressed_tars_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for url in (tmp_path, tmp_path / name, f"{tmp_path}/*"):
        with pytest.raises(ValueError, match=rf"1 compressed tars \({name}\).*unpack them"):
            find_tars([str(url)])
    refuse_compressed(str(tmp_path / "other"))


def test_tars_in_another_case_or_deeper_are_named_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "part-1").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("B.TAR", "c.tar.GZ", "part-1/d.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert overlooked(str(tmp_path)) == ["B.TAR", "c.tar.GZ", "part-1/"]
    with pytest.raises(ValueError, match=r"no \.tar there; there is B\.TAR, c\.tar\.GZ, part-1/: .*FOLDER/\*/\*\.tar"):
        find_tars([str(tmp_path)])
    assert find_tars([f"{tmp_path}/*/*.tar"]) == {f"{tmp_path}/part-1": ["d.tar"]}
    assert overlooked(f"{tmp_path}/part-1/d.tar") == []
