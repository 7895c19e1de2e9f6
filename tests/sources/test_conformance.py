"""Every kind of source keeps the laws of `datarax.testing.SourceLaws`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore as ts
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.core.tree import canonical_json
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    DataSource,
    GrainConfig,
    GrainSource,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
    TensorStoreConfig,
    TensorStoreSource,
    write_manifest,
)
from datarax.testing import SourceLaws

Opener = Callable[[], DataSource]

# Trailing zeros: an array of NumPy byte strings would lose them.
RECORDS = [b"record %d" % i + b"\0" * i for i in range(7)]
COLUMNS = {"x": np.arange(14, dtype=np.float32).reshape(7, 2), "y": {"z": np.arange(7)}}


class OwnSourceLaws(SourceLaws):
    """Of our own kinds: they also say what they are without reading a record."""

    def test_the_outline_is_the_identity_without_samples_and_reads_no_record(
        self, source: DataSource, monkeypatch: pytest.MonkeyPatch
    ):
        identity = source.identity()

        def refuse(*arguments: Any) -> Any:
            raise AssertionError("a record was read")

        monkeypatch.setattr(type(source), "_read", refuse)
        monkeypatch.setattr(type(source._runtime), "read", refuse, raising=False)
        outline = source.outline()
        identity.pop("sample", None)
        assert canonical_json(outline) == canonical_json(identity)


def write_files(directory: Path, records: list[bytes]) -> None:
    """Three files; the second is empty, and the order of the names is not the order of writing."""
    for name, part in (("c", records[4:]), ("a", records[:4]), ("b", [])):
        writer = ArrayRecordWriter(str(directory / f"{name}.array_record"), "group_size:1")
        for record in part:
            writer.write(record)
        writer.close()


class TestArrayRecordLaws(OwnSourceLaws):
    def records(self) -> list[Any]:
        return RECORDS

    def build(self, directory: Path, records: list[Any]) -> Opener:
        write_files(directory, records)
        return lambda: ArrayRecordSource(ArrayRecordConfig(files=f"{directory}/*.array_record"))


class TestArrayRecordWithManifestLaws(TestArrayRecordLaws):
    def build(self, directory: Path, records: list[Any]) -> Opener:
        write_files(directory, records)
        write_manifest(f"{directory}/*")
        return lambda: ArrayRecordSource(ArrayRecordConfig(files=str(directory), max_open_files=1))


class TestColumnsInMemoryLaws(OwnSourceLaws):
    def records(self) -> list[Any]:
        return [{"x": COLUMNS["x"][i], "y": {"z": COLUMNS["y"]["z"][i]}} for i in range(7)]

    def build(self, directory: Path, records: list[Any]) -> Opener:
        columns = jax.tree.map(lambda *rows: np.stack(rows), *records)
        return lambda: MemorySource(MemoryConfig(), columns)


class TestListInMemoryLaws(OwnSourceLaws):
    def records(self) -> list[Any]:
        return RECORDS

    def build(self, directory: Path, records: list[Any]) -> Opener:
        return lambda: MemorySource(MemoryConfig(), list(records))


class TestRangeLaws(OwnSourceLaws):
    def records(self) -> list[Any]:
        return list(np.arange(30, -4, -5))

    def build(self, directory: Path, records: list[Any], start: int = 30, stop: int = -4) -> Opener:
        return lambda: RangeSource(RangeConfig(start=start, stop=stop, step=-5))

    def changed(self, directory: Path) -> Opener:
        return self.build(directory, [], start=31)

    def shortened(self, directory: Path) -> Opener:
        return self.build(directory, [], stop=0)


class TestTensorStoreLaws(OwnSourceLaws):
    def records(self) -> list[Any]:
        return [{"x": COLUMNS["x"][i], "z": COLUMNS["y"]["z"][i] + 1} for i in range(7)]

    def build(self, directory: Path, records: list[Any]) -> Opener:
        paths = {name: str(directory / name) for name in ("x", "z")}
        for name in paths:
            write_zarr(directory / name, np.stack([record[name] for record in records]))
        return lambda: TensorStoreSource(TensorStoreConfig(path=paths))


def write_zarr(path: Path, values: np.ndarray) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    layout = ts.ChunkLayout(chunk_shape=[3, *values.shape[1:]])
    store = ts.open(spec, create=True, dtype=values.dtype, shape=values.shape, chunk_layout=layout).result()
    store[...] = values


class Foreign:
    """A data set of somebody else, in the least that Grain's protocol asks for."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return self.records[index]


class TestForeignObjectLaws(OwnSourceLaws):
    def records(self) -> list[Any]:
        return [{"text": f"record {i}", "tokens": np.arange(i), "more": (i, None, 0.5)} for i in range(7)]

    def build(self, directory: Path, records: list[Any]) -> Opener:
        return lambda: GrainSource(GrainConfig(), Foreign(list(records)))
