"""The table of docs/scale.md is what its command prints."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_the_page_is_what_the_command_prints() -> None:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    constants = json.loads((ROOT / "benchmarks/results/curation/scale.json").read_text())
    assert "\n".join(scale.table(constants, 12.8e9)) in (ROOT / "docs" / "scale.md").read_text()
