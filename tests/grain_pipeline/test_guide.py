"""The guide to wrapped pipelines is true: its blocks run."""

import importlib
import re
from pathlib import Path

from datarax.grain_pipeline import load_grain_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "grain.md"


def test_the_blocks_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "first.py").write_text(blocks[0])
    (tmp_path / "my_module.py").write_text(blocks[1])
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("first")
    module = load_grain_pipeline("my_module:build_shard", {"num_records": 1000}, "numbers", None, 1, 4)
    assert next(module) == 1
    assert list(module.shards.get_value().values()) == [(1, 4)]
