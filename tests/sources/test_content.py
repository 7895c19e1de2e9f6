"""Data that lies in no ArrayRecord files: what a sample of it sees, what a manifest records, and what is told of a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from datarax.cli.main import main
from datarax.core.errors import ConfigError, InputError, MismatchError
from datarax.sources import (
    ArrayRecordConfig,
    DataSource,
    GrainConfig,
    GrainSource,
    MemoryConfig,
    MemorySource,
    TensorStoreConfig,
    TensorStoreSource,
)
from datarax.sources.content import load_content
from datarax.training.moved_files import FileWatch
from tests.training.test_moved_files import record

BY_VERSION_2 = {"sample_version": 2}


class Labelled:
    """Like a dataset of Hugging Face: many records at once, and a content id of its own."""

    def __init__(self, count: int = 20_000, changed: int = 0, content_id: str = "a1") -> None:
        self.labels = np.arange(count) % 7
        at = np.random.default_rng(3).permutation(count)[:changed]
        self.labels[at] += 1
        self._fingerprint = content_id

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"number": np.int64(index), "label": np.int64(self.labels[index])}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


class OneByOne(Labelled):
    """The same, one record at a time."""

    __getitems__ = property()  # type: ignore[assignment]


DATA = Labelled()


def grain(data: Any, **settings: Any) -> DataSource:
    return GrainSource(GrainConfig(**settings), data)


# Samples


def test_one_in_a_hundred_changed_labels_is_another_identity():
    was, now = grain(Labelled()), grain(Labelled(changed=200))
    assert was.identity_by(BY_VERSION_2)["sample"] != now.identity_by(BY_VERSION_2)["sample"]
    first = {"sample_version": 1}
    assert was.identity_by(first) == now.identity_by(first), "which the first version did not see"


def test_an_object_that_gives_one_record_at_a_time_is_asked_for_few():
    assert grain(Labelled()).records.num_sampled == 4096
    assert grain(OneByOne()).records.num_sampled == 16


@pytest.mark.parametrize(("megabytes", "is_seen"), [(17, True), (65, False)])
def test_memory_up_to_64_mib_is_sampled_whole(megabytes: int, is_seen: bool):
    data = np.zeros((megabytes << 10, 1024), np.uint8)
    source = MemorySource(MemoryConfig(), {"x": data})
    before = [source.identity_by({"sample_version": version}) for version in (1, 2)]
    data[777, 5] = 1
    assert source.identity_by({"sample_version": 1}) == before[0]
    assert (source.identity_by(BY_VERSION_2) != before[1]) == is_seen


def array(path: Path, shape: tuple[int, ...] = (4_000, 3)) -> Any:
    grid = {"name": "regular", "configuration": {"chunk_shape": [100, *shape[1:]]}}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {"shape": list(shape), "data_type": "int32", "chunk_grid": grid},
    }
    store = ts.open(spec, create=True).result()
    store.write(np.arange(np.prod(shape), dtype=np.int32).reshape(shape)).result()
    return store


def test_a_chunk_that_was_changed_in_place_is_another_identity(tmp_path: Path):
    store = array(tmp_path / "x")
    source = TensorStoreSource(TensorStoreConfig(path=str(tmp_path / "x")))
    before = source.identity_by(BY_VERSION_2)
    store[1_234, 1].write(-1).result()
    assert source.identity_by(BY_VERSION_2) != before


def test_a_run_is_identified_by_the_version_that_it_recorded():
    source = grain(Labelled())
    for version in (1, 2):
        recorded = source.identity_by({"sample_version": version})
        assert recorded["sample_version"] == version
        assert source.identity_by(recorded) == recorded
        assert source.identity_by(recorded, sample=False) == {
            key: value for key, value in recorded.items() if key != "sample"
        }
    for unknown in (None, {}, {"sample_version": 99}, {"sample_version": "2"}):
        assert source.identity_by(unknown) == source.identity()


# Manifests


def kinds(directory: Path) -> dict[str, Any]:
    """Name -> a function that makes a source of data of that kind with these settings, and one that changes record 3,777."""
    memory = np.arange(8_000).reshape(4_000, 2)
    mapped = np.lib.format.open_memmap(directory / "m.npy", "w+", memory.dtype, memory.shape)
    mapped[:] = memory
    store, labelled = array(directory / "x"), Labelled(4_000)

    def changed(column: Any) -> Any:
        column[3_777] += 1

    return {
        "memory": (lambda **s: MemorySource(MemoryConfig(**s), {"x": memory}), lambda: changed(memory)),
        "memory map": (lambda **s: MemorySource(MemoryConfig(**s), mapped), lambda: changed(mapped)),
        "grain": (lambda **s: grain(labelled, **s), lambda: changed(labelled.labels)),
        "tensorstore": (
            lambda **s: TensorStoreSource(TensorStoreConfig(path=str(directory / "x"), **s)),
            lambda: store[3_777].write(-1).result(),
        ),
    }


@pytest.mark.parametrize("kind", ["memory", "memory map", "grain", "tensorstore"])
def test_a_manifest_of_any_kind_names_what_has_changed(kind: str, tmp_path: Path):
    make, change = kinds(tmp_path)[kind]
    path = str(tmp_path / "manifest.json")
    plain = make()
    assert not plain.content_recorded
    with pytest.raises(
        InputError, match=r"cannot be read: No such file.*`datarax build manifest CONFIG` writes it"
    ):
        make(manifest=path)
    written = _write(plain, path)
    source = make(manifest=path)
    assert source.content_recorded
    assert (source.check_content(), source.changed_among(np.arange(4_000))) == ([], {})
    assert source.identity() == {**plain.identity(), "content": written.fingerprint()["sha256"]}
    assert source.clone().identity() == source.identity()
    change()
    (problem,) = source.check_content()
    assert problem == "source 'data' is not what its manifest says: record 3777 has changed"
    assert source.changed_among(np.array([5, 3_777])) == {3_777: "record 3777 has changed"}
    with pytest.raises(InputError, match="records something else than these data"):
        _write(plain, path)


def _write(source: DataSource, path: str) -> Any:
    from datarax.sources.content import write_content

    return write_content(path, source.records)


def test_of_very_many_records_blocks_are_hashed(tmp_path: Path):
    data = np.arange(200_000)
    source = MemorySource(MemoryConfig(), data)
    content = _write(source, str(tmp_path / "m"))
    assert (content.records_per_hash, content.num_hashes) == (4, 50_000)
    assert load_content(str(tmp_path / "m")) == content
    recorded = MemorySource(MemoryConfig(manifest=str(tmp_path / "m")), data)
    data[199_999] = 0
    assert recorded.check_content() == [
        "source 'data' is not what its manifest says: a record in 199996 to 199999 has changed"
    ]


def test_a_manifest_of_other_data_is_refused(tmp_path: Path):
    path = str(tmp_path / "m")
    _write(MemorySource(MemoryConfig(), np.arange(5)), path)
    with pytest.raises(InputError, match=r"has 6 records of kind 'memory', its manifest .* says 5"):
        MemorySource(MemoryConfig(manifest=path), np.arange(6))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"num_records":5', '"num_records":6'),
        lambda text: text.replace('"hashes":"', '"hashes":"0'),
        lambda text: "{}",
        lambda text: "[1]",
        lambda text: text[:50],
        lambda text: "[" * 100_000,
    ],
)
def test_a_manifest_that_is_damaged_is_refused(tmp_path: Path, change):
    path = tmp_path / "m"
    _write(MemorySource(MemoryConfig(), np.arange(5)), str(path))
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r"manifest .*/m is damaged or none of datarax"):
        load_content(str(path))


def test_array_record_files_have_theirs_beside_them():
    with pytest.raises(ConfigError, match="lies beside them"):
        ArrayRecordConfig(files="x", manifest="y")


# Starts


def test_a_content_id_that_changed_is_a_reason_to_look_and_none_to_refuse(tmp_path: Path):
    path = str(tmp_path / "m")
    _write(grain(Labelled(500)), path)
    with grain(Labelled(500), manifest=path) as source:
        run = record(tmp_path / "run", FileWatch(source, tmp_path / "none", print).stamps())
    said: list[str] = []
    FileWatch(grain(Labelled(500), manifest=path), run, said.append)
    assert said == []
    FileWatch(grain(Labelled(500, content_id="b2"), manifest=path), run, said.append)
    assert len(said) == 1
    assert "checking" in said[0]
    with pytest.raises(MismatchError, match=r"is not what its manifest says: .*record"):
        FileWatch(grain(Labelled(500, 5, content_id="b2"), manifest=path), run, said.append)
    FileWatch(grain(Labelled(500, 5, content_id="a1"), manifest=path), run, said.append)  # `verify` sees it


def test_chunks_that_moved_are_held_against_the_manifest(tmp_path: Path):
    store, path = array(tmp_path / "x"), str(tmp_path / "m")
    config = TensorStoreConfig(path=str(tmp_path / "x"), manifest=path)
    _write(TensorStoreSource(TensorStoreConfig(path=str(tmp_path / "x"))), path)
    with TensorStoreSource(config) as source:
        assert len(source.content_stamp()) == 41
        run = record(tmp_path / "run", FileWatch(source, tmp_path / "none", print).stamps())
    store[2_000, 0].write(-1).result()
    with pytest.raises(MismatchError, match="record 2000 has changed"):
        FileWatch(TensorStoreSource(config), run, print)


def test_of_an_array_of_very_many_chunks_a_start_looks_at_the_metadata_only(tmp_path: Path, monkeypatch):
    array(tmp_path / "x")
    monkeypatch.setattr("datarax.sources.tensorstore._MOST_LOOKED_AT", 30)
    with TensorStoreSource(TensorStoreConfig(path=str(tmp_path / "x"))) as source:
        assert list(source.content_stamp()) == ["x/zarr.json"]


# Commands

CONFIG = """
[run]
directory = "{directory}/run"
steps = 4
[source]
kind = "grain"
use = "tests.sources.test_content:DATA"
manifest = "{directory}/manifest.json"
depends_on_files = ["{directory}/words"]
[loader]
batch_size = 8
seed = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = CONFIG.format(directory=tmp_path)
    (tmp_path / "words").write_text("a b c")
    (tmp_path / "config.toml").write_text(text)
    return tmp_path / "config.toml"


def test_build_manifest_records_the_data_of_a_config_and_verify_holds_them_against_it(
    config: Path, capsys, monkeypatch
):
    monkeypatch.setattr("tests.sources.test_content.DATA", Labelled(600))
    assert main(["run", str(config)]) == 2
    assert "`datarax build manifest CONFIG` writes it" in capsys.readouterr().err
    assert main(["build", "manifest", str(config)]) == 0
    assert "recorded: 600 records" in capsys.readouterr().out
    assert main(["run", str(config)]) == 0
    assert main(["verify", str(config.parent / "run")]) == 0
    DATA.labels[599] += 1
    assert main(["verify", str(config.parent / "run")]) == 1
    assert "record 599 has changed" in capsys.readouterr().out


def test_without_a_place_for_it_no_manifest_is_written(config: Path, capsys):
    config.write_text("\n".join(line for line in config.read_text().split("\n") if "manifest" not in line))
    assert main(["build", "manifest", str(config)]) == 2
    assert "set source.manifest" in capsys.readouterr().err


def test_a_file_that_the_records_depend_on_counts_by_its_content(config: Path, capsys, monkeypatch):
    monkeypatch.setattr("tests.sources.test_content.DATA", Labelled(600))
    assert main(["build", "manifest", str(config)]) == main(["run", str(config)]) == 0
    assert main(["plan", str(config)]) == 0
    (config.parent / "words").rename(config.parent / "moved")
    moved = ["--set", f'source.depends_on_files=["{config.parent}/moved"]']
    assert main(["plan", str(config), *moved]) == 0
    (config.parent / "moved").write_text("a b d")
    assert main(["plan", str(config), *moved]) == 1
    assert "sources.data.depends_on_files" in capsys.readouterr().out
    assert main(["plan", str(config)]) == 2
    assert "source 'data' depends on" in capsys.readouterr().err
