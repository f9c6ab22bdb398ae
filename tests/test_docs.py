"""The documents tell the truth: keys, commands, links, and every README command runs."""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headrace.cli.app import COMMANDS
from headrace.curation.models.known import KNOWN_MODELS
from headrace.curation.needs import check_needs, check_recipe
from headrace.curation.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_key_reference_is_what_the_configs_say(reference: ModuleType) -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == reference.render(), "run: python docs/reference.py"


def test_the_command_reference_is_what_the_commands_say(reference: ModuleType) -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference.render_commands(), "run: python docs/reference.py"


def test_the_list_of_modules_is_what_the_tree_holds(reference: ModuleType) -> None:
    assert (ROOT / "docs" / "modules.md").read_text() == reference.render_modules(), "run: python docs/reference.py"


def test_every_config_key_has_a_text(reference: ModuleType) -> None:
    pending, seen = [config for _, config in reference.PAGES], set()
    without = []
    while pending:
        config = pending.pop()
        if config in seen:
            continue
        seen.add(config)
        texts = reference._field_texts(config)
        without += [f"{config.__name__}.{item.name}" for item in dataclasses.fields(config) if item.name not in texts]
        hints = reference.typing.get_type_hints(config, include_extras=True)
        pending += [part for hint in hints.values() for part in reference._dataclasses(hint)]
    assert without == []


def test_every_key_of_a_recipe_that_a_page_names_exists(reference: ModuleType) -> None:
    def known(path: list[str], config: type) -> bool:
        hints = reference.typing.get_type_hints(config, include_extras=True)
        nested = list(reference._dataclasses(hints.get(path[0], type(None))))
        return path[0] in hints and (len(path) == 1 or not nested or any(known(path[1:], part) for part in nested))

    sections = "input|fetch|annotate|placement|build|report|limits|engine"
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "modules.md")]
    named = {
        (page.name, key)
        for page in pages
        for key in re.findall(rf"`((?:{sections})(?:\.[a-z_0-9]+)+)(?:[=:][^`]*)?`", page.read_text(encoding="utf-8"))
        if not key.endswith((".jpg", ".txt"))
    }
    assert len(named) > 40
    assert [item for item in sorted(named) if not known(item[1].split("."), Recipe)] == []


def test_each_example_of_a_command_stands_on_a_line_of_its_own(reference: ModuleType) -> None:
    blocks = re.findall(r"```\n(.*?)```", reference.render_commands(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert len(lines) > len(COMMANDS)
    assert [line for line in lines if not line.startswith(("headrace ", "torchrun ", "# "))] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_and_has_help_with_an_example(command: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md"]
    assert any(f"headrace {command}" in text for text in [README, *texts])
    done = subprocess.run(
        [str(Path(sys.executable).parent / "headrace"), command, "--help"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert "Example: headrace" in " ".join(done.stdout.split())


def test_every_link_to_a_file_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))]
    broken = [f"{page.name}: {link}" for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def test_every_source_file_named_in_the_concepts_exists() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:shards|curation|pipeline|train)/[a-z_/]*(?:\.py)?)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_first_recipe_needs_one_known_file_and_no_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_MODELS", str(tmp_path))
    recipe = load_recipe(ROOT / "examples" / "first.yaml", ["job=jobs/first", "input.urls.0=urls.csv"])
    check_recipe(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="run: headrace models get centerface"):
        check_needs(recipe, ("fetch", "annotate", "select", "build", "report"))
    model = KNOWN_MODELS["centerface"]
    with (tmp_path / model.file).open("wb") as file:
        file.truncate(model.num_bytes)
    with pytest.raises(ValueError, match=r"centerface\.onnx does not load in OpenCV.*annotate\.faces"):
        check_needs(recipe, ("fetch", "annotate", "select", "build", "report"))
    check_needs(recipe, ("fetch",))


@pytest.mark.full
def test_the_documents_build_as_a_site_without_a_warning(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "mkdocs"), "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_readme_commands_run(tmp_path: Path) -> None:
    """`make demo`'s own command, then each command of the README's bash blocks, in a folder of their own."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    commands = [line.split("  #")[0] for block in blocks for line in block.splitlines() if line.strip()]
    assert len(commands) >= 3
    binaries = Path(sys.executable).parent
    for command in ["headrace demo --out demo-out", *commands]:
        name, *arguments = shlex.split(command)
        assert name == "headrace"
        done = subprocess.run(
            [str(binaries / name), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
