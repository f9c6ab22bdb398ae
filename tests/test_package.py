"""Promises of the package as a whole: what the wheel holds, what importing costs, who may import whom."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("shards", "curation", "pipeline", "train", "examples")


EXTENSIONS = {"headrace/pipeline/decode/_jpeg_region.abi3.so", "headrace/shards/images/_area.abi3.so"}


def _run(*command: str, cwd: Path = ROOT, timeout: float = 280, env: dict[str, str] | None = None) -> str:
    whole = {**os.environ, **(env or {})}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, env=whole)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _tree() -> list[str]:
    return _run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of sdist and wheel of the working tree, built in a copy so that no build folder appears here."""
    copy = tmp_path_factory.mktemp("tree")
    for name in _tree():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("packages")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=copy)
    return out


def test_the_wheel_holds_the_tree_and_nothing_else(packages: Path) -> None:
    # `build` makes the wheel from the sdist, so this is what the sdist holds too.
    wheel = next(packages.glob("*.whl"))
    expected = set()
    for name in _tree():
        top, _, rest = name.partition("/")
        path = f"headrace/{name}" if top in LINKED else name.removeprefix("src/") if name.startswith("src/") else ""
        if path and rest and not (ROOT / name).is_symlink() and (ROOT / name).exists():
            expected.add(path)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held - EXTENSIONS == expected
    assert held & EXTENSIONS == (EXTENSIONS if shutil.which("cc") is not None else set())


def test_without_a_compiler_the_package_builds_and_lacks_only_the_extensions(packages: Path, tmp_path: Path) -> None:
    with tarfile.open(next(packages.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    program = "import sys; sys.argv[1:] = ['-q', 'bdist_wheel']; exec(open('setup.py').read())"
    _run(sys.executable, "-W", "ignore", "-c", program, cwd=source, env={"CC": "false"})
    with zipfile.ZipFile(next(source.glob("dist/*.whl"))) as archive:
        held = set(archive.namelist())
    assert not held & EXTENSIONS
    assert "headrace/pipeline/decode/region.py" in held


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_the_package_works_without_the_repository_on_the_newest_python(
    packages: Path, tmp_path: Path, pattern: str
) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    bin_folder = tmp_path / "venv" / "bin"
    _run(uv, "venv", "--quiet", "--python", _newest_python(), str(tmp_path / "venv"), cwd=tmp_path)
    package = str(next(packages.glob(pattern)))
    install = (uv, "pip", "install", "--quiet", "--python", str(bin_folder / "python"))
    _run(*install, "-c", str(ROOT / "constraints.txt"), package, cwd=tmp_path, timeout=600)
    headrace = str(bin_folder / "headrace")
    assert _run(headrace, "--version", cwd=tmp_path).startswith("headrace ")
    assert "core" in _run(headrace, "doctor", cwd=tmp_path)
    assert "wrote first.yaml" in _run(headrace, "new", "recipe", "first.yaml", cwd=tmp_path)
    (tmp_path / "urls.csv").write_text("url,caption\nhttps://example.org/1.jpg,a cat\n")
    for words in (("models", "list"), ("new", "mixture", "mixture.yaml")):
        assert _run(headrace, *words, cwd=tmp_path)
    without_faces = ("annotate.faces=null", "build.blur_faces=false")
    first = ("curate", "first.yaml", "job=job", "input.urls.0=urls.csv", "--dry-run")
    plan = _run(headrace, *first, *without_faces, cwd=tmp_path)
    assert "fetch:" in plan
    assert not (tmp_path / "job").exists()


def _newest_python() -> str:
    """Return the newest Python on this machine that a venv can be made of; the one that runs the tests at least."""
    for minor in range(19, sys.version_info.minor, -1):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.run([found, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return found
    return sys.executable


def test_help_answers_without_heavy_imports() -> None:
    program = (
        "import sys, headrace.cli.app\n"
        "heavy = {'torch', 'duckdb', 'pyarrow', 'cv2', 'numpy', 'aiohttp', 'webdataset', 'open_clip', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert _run(sys.executable, "-c", program).strip() == "[]"


def test_only_the_trainer_and_the_tensors_of_batches_import_torch() -> None:
    program = (
        "import sys, pkgutil, importlib, headrace\n"
        "sys.modules['torch'] = None\n"
        "rooms = [m.name for m in pkgutil.iter_modules(headrace.__path__, 'headrace.')]\n"
        "for room in set(rooms) - {'headrace.train', 'headrace.torch', 'headrace.pipeline'}:\n"
        "    module = importlib.import_module(room)\n"
        "    for inside in pkgutil.walk_packages(getattr(module, '__path__', []), room + '.'):\n"
        "        importlib.import_module(inside.name)\n"
        "importlib.import_module('headrace.pipeline.stream')"
    )
    _run(sys.executable, "-c", program)


def test_training_imports_no_torchvision_timm_or_open_clip() -> None:
    program = (
        "import sys, pkgutil, importlib, headrace.train\n"
        "for module in pkgutil.walk_packages(headrace.train.__path__, 'headrace.train.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'torchvision', 'timm', 'open_clip'} & set(sys.modules)))"
    )
    assert _run(sys.executable, "-c", program).strip() == "[]"


def test_imports_point_down_only() -> None:
    _run(str(Path(sys.executable).parent / "lint-imports"))


def test_no_committed_file_names_a_registry_or_this_machine() -> None:
    needles = ("pypi" + ".org", "python" + "hosted", "npm" + "js", "debian" + ".org", "/work" + "/", "/ro" + "ot/")
    found = [
        f"{name}: {needle}"
        for name in _tree()
        if (ROOT / name).is_file()
        for needle in needles
        if needle.encode() in (ROOT / name).read_bytes()
    ]
    assert found == []
