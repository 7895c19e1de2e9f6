"""A kind of source is one file, here written by the test, and one line of the table."""

import sys
from pathlib import Path
from typing import Any

import pytest

from datarax.core.errors import ConfigError
from datarax.run_config import build_loader, parse_config, parse_stored_config
from datarax.sources import open as table
from datarax.testing import SourceLaws

MODULE = """
import os
from dataclasses import dataclass, replace

from datarax.store.files import local_path
from datarax.sources.records import Records
from datarax.sources.source import DataSource, SourceConfig


@dataclass(frozen=True, kw_only=True)
class FixedWidthConfig(SourceConfig):
    path: str
    width: int

    def resolved(self):
        return replace(self, path=local_path(self.path, "path"))

    def open(self):
        return DataSource(self, FixedWidthRecords(self.path, self.width))


class FixedWidthRecords(Records):
    kind = "fixed_width"

    def __init__(self, path, width):
        self.path, self.width = path, width
        self.file = open(path, "rb")

    def __reduce__(self):
        return type(self), (self.path, self.width)

    def __len__(self):
        return os.path.getsize(self.path) // self.width

    def read(self, indices):
        return [os.pread(self.file.fileno(), self.width, int(i) * self.width) for i in indices]

    def outline(self):
        return {"width": self.width}

    def close(self):
        self.file.close()
"""

RECORDS = [b"record %d" % i for i in range(7)]
CONFIG = """
run = {{ directory = "run" }}
source = {{ kind = "fixed_width", name = "bytes", path = "{path}", width = 8 }}
loader = {{ batch_size = 3, seed = 5, num_epochs = 2 }}
"""


@pytest.fixture(autouse=True)
def new_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one file, and the one line."""
    (tmp_path / "fixed_width_kind.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(table.KINDS, "fixed_width", "fixed_width_kind:FixedWidthConfig")
    (tmp_path / "data.bin").write_bytes(b"".join(RECORDS))
    return CONFIG.format(path=tmp_path / "data.bin")


class TestFixedWidthLaws(SourceLaws):
    def records(self) -> list[Any]:
        return RECORDS

    def build(self, directory: Path, records: list[Any]) -> Any:
        (directory / "data.bin").write_bytes(b"".join(records))
        settings = {"path": str(directory / "data.bin"), "width": 8}
        return lambda: table.open_source(table.SourceTable(kind="fixed_width", settings=settings))


def test_a_run_over_the_new_kind_goes_on_where_it_was(new_kind: str):
    config = parse_config(new_kind)
    with table.open_source(config.source) as source, build_loader(config, source) as loader:
        batches = [batch.tolist() for batch in loader]
    assert len(batches) == 4
    assert sorted(map(bytes, [*batches[0], *batches[1], batches[2][0]])) == RECORDS
    with table.open_source(config.source) as source, build_loader(config, source) as loader:
        assert [next(loader).tolist() for _ in range(2)] == batches[:2]
        state, identity = loader.get_state(), loader.identity()
    assert identity["sources"]["bytes"]["kind"] == "fixed_width"
    with table.open_source(config.source) as source, build_loader(config, source) as loader:
        loader.set_state(state)
        assert loader.identity() == identity
        assert [batch.tolist() for batch in loader] == batches[2:]


def test_reading_a_stored_config_never_imports_the_kind(new_kind: str):
    kept = parse_config(new_kind).to_toml()
    del sys.modules["fixed_width_kind"]  # imported to check what the user gave
    stored = parse_stored_config(kept, where="the stored config")
    assert "fixed_width_kind" not in sys.modules
    assert stored.to_toml() == kept
    with table.open_source(stored.source) as source:
        assert len(source) == 7


def test_a_setting_of_the_kind_is_checked_like_any_other(new_kind: str):
    with pytest.raises(
        ConfigError,
        match=r"with does not belong to kind = 'fixed_width', which takes depends_on_files, kind, manifest, name",
    ):
        parse_config(new_kind.replace("width = 8", "with = 8"))
    with pytest.raises(ConfigError, match=r"source.width must be an integer, got '8'"):
        parse_config(new_kind.replace("width = 8", 'width = "8"'))
    with pytest.raises(ConfigError, match=r"source.width is required and missing"):
        parse_config(new_kind.replace(", width = 8", ""))
