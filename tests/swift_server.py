"""A real S3 on loopback: OpenStack Swift with s3api, one for all tests of a process.

Its programs are in the folder that HEADRACE_SWIFT names, or in `.venv/swift/bin`. A test that finds none is skipped by
name, and CI allows no such skip.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

REPOSITORY = Path(__file__).parents[1]
START_SECONDS = 60
SWIFT_LANES = ("account", "container", "object")


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(START_SECONDS * 20):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server until the block ends; it listens at `port` when the block begins."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        _wait_for(port, process, log)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _swift_programs() -> Path | None:
    named = os.environ.get("HEADRACE_SWIFT")
    for folder in (Path(named) if named else None, REPOSITORY / ".venv" / "swift" / "bin"):
        if folder is not None and (folder / "swift-proxy-server").exists():
            return folder
    found = shutil.which("swift-proxy-server")
    return Path(found).parent if found else None


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real OpenStack Swift with s3api: key `test:tester`, secret `testing`."""
    programs = _swift_programs()
    if programs is None:
        pytest.skip("needs OpenStack Swift: swift-requirements.txt into .venv/swift, or HEADRACE_SWIFT")
    home = tmp_path_factory.mktemp("swift")
    ports = {name: free_port() for name in (*SWIFT_LANES, "proxy")}
    _write_swift(home, programs, ports)
    with contextlib.ExitStack() as servers:
        for name in (*SWIFT_LANES, "proxy"):
            command = [str(programs / f"swift-{name}-server"), str(home / f"{name}.conf"), "-v"]
            servers.enter_context(running(command, ports[name], home / f"{name}.log"))
        yield ports["proxy"]


def _write_swift(home: Path, programs: Path, ports: dict[str, int]) -> None:
    (home / "srv" / "sdb1").mkdir(parents=True)
    (home / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    user = f"user = {_user_name()}\n"
    common = f"bind_ip = 127.0.0.1\nworkers = 0\nmount_check = false\n{user}swift_dir = {home}\ndevices = {home}/srv\n"
    for name in SWIFT_LANES:
        (home / f"{name}.conf").write_text(
            f"[DEFAULT]\nbind_port = {ports[name]}\n{common}"
            f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
        builder = [str(programs / "swift-ring-builder"), str(home / f"{name}.builder")]
        device = f"r1z1-127.0.0.1:{ports[name]}/sdb1"
        for words in (["create", "4", "1", "1"], ["add", device, "1"], ["rebalance"]):
            done = subprocess.run([*builder, *words], capture_output=True, text=True, check=False)
            assert done.returncode in (0, 1), done.stdout + done.stderr  # 1 = warnings
    filters = "catch_errors cache listing_formats bulk s3api tempauth symlink slo dlo versioned_writes"
    sections = "".join(f"[filter:{name}]\nuse = egg:swift#{_egg(name)}\n" for name in filters.split())
    sections = sections.replace("egg:swift#tempauth\n", "egg:swift#tempauth\nuser_test_tester = testing .admin\n")
    (home / "proxy.conf").write_text(
        f"[DEFAULT]\nbind_port = {ports['proxy']}\n{common}"
        f"[pipeline:main]\npipeline = {filters} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        f"{sections}"
    )


def _egg(name: str) -> str:
    return {"cache": "memcache"}.get(name, name)


def _user_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, Any]]:
    """`s3_settings(port)`: fsspec's configuration for the S3 at a port, as a user would write it."""
    import fsspec

    def use(port: int) -> dict[str, Any]:
        settings = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "test:tester", "secret": "testing"}
        monkeypatch.setitem(fsspec.config.conf, "s3", settings)
        return settings

    return use
