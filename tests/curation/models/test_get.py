"""Known models arrive whole or not at all, from a wheel, a URL or a file of one's own."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.models import Action, models_command
from headrace.curation.models import known
from headrace.curation.models.folder import model_url
from headrace.curation.models.get import get_model
from headrace.curation.models.known import Address, ByHand, KnownModel, WheelMember

CONTENT = bytes(range(256)) * 4096
WHEEL = "drawn-1.0-py3-none-any.whl"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., KnownModel]:
    """Return a function that makes a model of CONTENT known."""

    def add(source: WheelMember | Address | ByHand) -> KnownModel:
        model = KnownModel(
            name="drawn",
            file="drawn.onnx",
            purpose="tests",
            source=source,
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            num_bytes=len(CONTENT),
            licence="MIT",
        )
        monkeypatch.setitem(known.KNOWN_MODELS, "drawn", model)
        return model

    return add


def write_wheel(path: Path, member: str, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr("../outside.txt", "a path that no reader may follow")
        wheel.writestr("drawn-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: drawn\nVersion: 1.0\n")
        wheel.writestr("drawn-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("drawn-1.0.dist-info/RECORD", "")
    return path


MEMBER = WheelMember(package="drawn", version="1.0", member="drawn/model.onnx")


def test_a_wheel_of_the_users_index_gives_one_member_and_nothing_else(
    add: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(MEMBER)
    write_wheel(tmp_path / "index" / WHEEL, MEMBER.member, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (folder / ".wheel-killed").mkdir(parents=True)
    (folder / ".drawn.onnx.killed.tmp").write_bytes(b"half")
    assert get_model("drawn").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["drawn.onnx"]
    assert model_url("drawn") == str(folder / "drawn.onnx")
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert get_model("drawn") == folder / "drawn.onnx"


def test_an_index_without_the_wheel_is_one_line_that_says_what_else_to_do(
    add: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(MEMBER)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"pip did not fetch wheel drawn 1\.0, .*models get drawn --from WHEEL") as why:
        get_model("drawn")
    assert "\n" not in str(why.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", ["wheel", "file", "url"])
def test_other_bytes_are_refused_and_nothing_is_left(
    add: Any, folder: Path, tmp_path: Path, range_server: Any, how: str
) -> None:
    add(MEMBER if how == "wheel" else ByHand(where="a friend"))
    for number, content in enumerate((CONTENT[:-1] + b"x", CONTENT[:1000], CONTENT * 3, b"")):
        if how == "wheel":
            place = str(write_wheel(tmp_path / "w" / f"{number}.whl", MEMBER.member, content))
        else:
            (tmp_path / f"{number}.onnx").write_bytes(content)
            place = str(tmp_path / f"{number}.onnx")
        if how == "url":
            place = f"{range_server(str(tmp_path)).url}/{number}.onnx"
        with pytest.raises(ValueError, match=r"is not drawn: .*bytes, sha256 .*expected"):
            get_model("drawn", taken_from=place)
        assert list(folder.iterdir()) == []
    if how == "wheel":
        noise, other = tmp_path / "noise.whl", write_wheel(tmp_path / "other.whl", "else.onnx", CONTENT)
        noise.write_bytes(b"noise")
        whole = write_wheel(tmp_path / "whole.whl", MEMBER.member, CONTENT).read_bytes()
        damaged, locked = tmp_path / "damaged.whl", tmp_path / "locked.whl"
        begin, directory = 30 + len(MEMBER.member), whole.index(b"PK\x01\x02")
        damaged.write_bytes(whole[:begin] + b"\xff" * 8 + whole[begin + 8 :])
        locked.write_bytes(whole[: directory + 8] + b"\x01" + whole[directory + 9 :])
        odd = [(wheel, "is not a wheel") for wheel in (noise, damaged, locked)]
        for wheel, message in (*odd, (other, "no member drawn/model.onnx")):
            with pytest.raises(ValueError, match=message):
                get_model("drawn", taken_from=str(wheel))


def test_a_cut_download_goes_on_where_it_was_cut(add: Any, folder: Path, tmp_path: Path, range_server: Any) -> None:
    (tmp_path / "drawn.onnx").write_bytes(CONTENT)
    server = range_server(str(tmp_path))
    add(Address(url=f"{server.url}/drawn.onnx"))
    folder.mkdir()
    (folder / ".drawn.onnx.part").write_bytes(CONTENT[:900_000])
    assert get_model("drawn").read_bytes() == CONTENT
    assert sum(end - start for _, start, end in server.ranges) < 500_000
    # What was begun of another file is no beginning.
    (folder / "drawn.onnx").unlink()
    (folder / ".drawn.onnx.part").write_bytes(bytes(900_000))
    assert get_model("drawn").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["drawn.onnx"]


def test_a_killed_get_leaves_nothing_that_counts_and_the_next_one_ends_it(
    add: Any, folder: Path, tmp_path: Path
) -> None:
    add(MEMBER)
    # A pip that never ends, found before any other.
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text(
        "import sys, time\nif '--version' not in sys.argv:\n    print('x')\n    time.sleep(600)\n"
    )
    program = (
        "from headrace.curation.models import known, get\n"
        f"known.KNOWN_MODELS['drawn'] = known.{known.KNOWN_MODELS['drawn']!r}\n".replace(
            "source=WheelMember", "source=known.WheelMember"
        )
        + "get.get_model('drawn')\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{fake.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    running = subprocess.Popen([sys.executable, "-c", program], env=env, start_new_session=True)
    try:
        until = time.monotonic() + 200
        while not list(folder.glob(".wheel-*")):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        with pytest.raises(ValueError, match="being written by another process"):
            get_model("drawn")
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    with pytest.raises(ValueError, match="run: headrace models get drawn"):
        model_url("drawn")
    wheel = write_wheel(tmp_path / WHEEL, MEMBER.member, CONTENT)
    assert get_model("drawn", taken_from=str(wheel)).read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["drawn.onnx"]


def test_a_model_that_lost_bytes_since_is_refused_by_name(add: Any, folder: Path) -> None:
    add(ByHand(where="a friend"))
    folder.mkdir()
    (folder / "drawn.onnx").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"drawn\.onnx has 1048575 bytes, drawn has 1048576; remove it and run"):
        model_url("drawn")
    with pytest.raises(ValueError, match=r"take a friend, then run: headrace models get drawn --from FILE"):
        get_model("drawn")


def test_the_list_says_source_licence_size_sum_and_what_is_there(
    add: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = add(MEMBER)
    models_command(Action.LIST)
    text = capsys.readouterr().out
    for fact in ("drawn", "MIT", "tests", "wheel drawn 1.0", model.sha256, "models get drawn", str(folder)):
        assert fact in text
    for action, name, message in (
        (Action.GET, "", "which model"),
        (Action.PATH, "nothing", "unknown model 'nothing'; known: centerface"),
        (Action.PATH, "centrface", "unknown model 'centrface'; did you mean 'centerface'\\? known: centerface"),
        (Action.LIST, "drawn", "takes no name"),
    ):
        with pytest.raises(ValueError, match=message):
            models_command(action, name)
    models_command(Action.GET, "drawn", taken_from=str(write_wheel(tmp_path / WHEEL, MEMBER.member, CONTENT)))
    models_command(Action.LIST)
    assert "[here]" in capsys.readouterr().out
