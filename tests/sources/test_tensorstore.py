"""zarr3 arrays: what is refused, what is lost, and what the identity leaves out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.sources import TensorStoreConfig, TensorStoreSource

VALUES = np.arange(1, 41, dtype=np.int32).reshape(20, 2)


def write(path: Path, values: np.ndarray = VALUES, chunk: int = 4) -> str:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    layout = ts.ChunkLayout(chunk_shape=[chunk, *values.shape[1:]][: values.ndim])
    store = ts.open(spec, create=True, dtype=values.dtype, shape=values.shape, chunk_layout=layout).result()
    store[...] = values
    return str(path)


def open_source(path: object, **settings: object) -> TensorStoreSource:
    return TensorStoreSource(TensorStoreConfig(path=path, **settings))


@pytest.mark.parametrize(
    "indices",
    [np.arange(3, 12), np.array([5]), np.array([3, 9, 5, 6]), np.array([4, 4, 5]), np.arange(9, 2, -1)],
)
def test_runs_and_lists_of_indices_read_the_same_rows(tmp_path: Path, indices: np.ndarray):
    source = open_source(write(tmp_path / "a"))
    assert np.array_equal(source.read(indices), VALUES[indices])


def test_a_single_array_gives_arrays_and_a_table_gives_dicts(tmp_path: Path):
    path = write(tmp_path / "a")
    assert open_source(path)[3].tolist() == [7, 8]
    assert open_source({"tokens": path})[3]["tokens"].tolist() == [7, 8]


def test_a_spec_stands_for_a_path(tmp_path: Path):
    path = write(tmp_path / "a")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    assert open_source(spec).identity() == open_source(path).identity()


def test_chunks_are_no_identity(tmp_path: Path):
    a, b = write(tmp_path / "a", chunk=4), write(tmp_path / "b", chunk=7)
    assert open_source(a).identity() == open_source(b).identity()
    assert open_source(a).content_fingerprint() == open_source(b).content_fingerprint()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}/nowhere", r"array .*/nowhere cannot be opened: NOT_FOUND"),
        ("gs://bucket/array", "is not a local path"),
        ({"x": 3}, "array 'x' must be a path or a TensorStore spec with a driver, got 3"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path: Path, path: object, message: str):
    with pytest.raises(InputError, match=message):
        open_source(path.format(tmp_path) if isinstance(path, str) else path)


def test_metadata_that_is_damaged_is_refused_by_name(tmp_path: Path):
    path = write(tmp_path / "a")
    (tmp_path / "a" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"array .*/a cannot be opened"):
        open_source(path)


def test_arrays_that_are_not_equally_long_or_long_at_all_are_refused(tmp_path: Path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", VALUES[:-1])
    with pytest.raises(InputError, match="different numbers of records: x: 20, y: 19"):
        open_source({"x": a, "y": b})
    with pytest.raises(InputError, match="single number"):
        open_source(write(tmp_path / "c", np.array(3)))
    with pytest.raises(InputError, match="source 'data' is empty"):
        open_source(write(tmp_path / "d", VALUES[:0]))


def test_a_lost_chunk_is_an_error_and_not_zeros(tmp_path: Path):
    path = write(tmp_path / "a")
    (tmp_path / "a" / "c" / "2" / "0").unlink()
    source = open_source(path)
    assert np.array_equal(source.read([0, 19]), VALUES[[0, 19]])
    with pytest.raises(ReadError, match=r"array .*/a cannot be read: .*is missing; if it was left out"):
        source.read([9])
    assert open_source(path, missing_chunks="fill")[9].tolist() == [0, 0]


def write_with(driver: str, path: Path, **metadata: object) -> dict:
    kvstore = {"driver": "file", "path": str(path)}
    spec = {"driver": driver, "kvstore": kvstore}
    ts.open({**spec, **metadata}, create=True).result()[...] = np.ones((20, 2), np.uint32)
    return spec


def lose_half(path: Path) -> None:
    """Removes every second chunk, and leaves what describes the array."""
    described = {"zarr.json", ".zarray", "info", "attributes.json"}
    chunks = sorted(each for each in path.rglob("*") if each.is_file() and each.name not in described)
    for chunk in chunks[::2]:
        chunk.unlink()


ZARR2 = {"metadata": {"shape": [20, 2], "dtype": "<u4", "chunks": [4, 2]}}
N5 = {"dimensions": [20, 2], "blockSize": [4, 2], "dataType": "uint32", "compression": {"type": "raw"}}
WINDOW = {"transform": {"input_inclusive_min": [0, 0], "input_exclusive_max": [20, 2]}}


def cast(base: dict) -> dict:
    return {"driver": "cast", "dtype": "float32", "base": base}


def downsample(base: dict) -> dict:
    return {"driver": "downsample", "downsample_method": "stride", "downsample_factors": [1, 2], "base": base}


def stack(*layers: dict) -> dict:
    return {"driver": "stack", "dtype": "uint32", "layers": [{**layer, **WINDOW} for layer in layers]}


def auto(spec: dict) -> dict:
    return {**spec, "driver": "auto"}


@pytest.mark.parametrize(
    "seen_through",
    [
        pytest.param(lambda spec: spec, id="as it is"),
        pytest.param(lambda spec: {**spec, "driver": "zarr2"}, id="alias"),
        auto,
        cast,
        downsample,
        pytest.param(stack, id="stack"),
        pytest.param(lambda spec: stack(auto(spec)), id="stack of auto"),
        pytest.param(lambda spec: cast(downsample(auto(spec))), id="cast of downsample of auto"),
        pytest.param(lambda spec: cast(stack(auto(spec))), id="cast of stack of auto"),
    ],
)
def test_a_lost_chunk_is_an_error_through_whatever_it_is_seen(tmp_path: Path, seen_through):
    spec = seen_through(write_with("zarr", tmp_path / "a", **ZARR2))
    before = open_source(spec)
    assert np.all(before.read(np.arange(20)) == 1)
    lose_half(tmp_path / "a")
    with pytest.raises(ReadError, match=r"cannot be read: .*is missing; if it was left out"):
        open_source(spec).read(np.arange(20))
    filled = open_source(spec, missing_chunks="fill").read(np.arange(20))
    assert 0 < np.count_nonzero(filled) < filled.size


PARTS = {
    "window": ([5, 2], [{"input_dimension": 0, "offset": 3}, {"input_dimension": 1}]),
    "flip": ([20, 2], [{"input_dimension": 0, "stride": -1, "offset": 19}, {"input_dimension": 1}]),
    "chosen rows": ([2, 2], [{"index_array": [[7], [1]]}, {"input_dimension": 1}]),
}


@pytest.mark.parametrize("seen_through", [dict, cast, downsample])
@pytest.mark.parametrize("kind", [dict, auto])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_of_an_array_is_that_part_through_whatever_it_is_seen(tmp_path, part, kind, seen_through):
    spec = write_with("zarr", tmp_path / "a", **ZARR2)
    ts.open(spec).result()[...] = np.arange(40, dtype=np.uint32).reshape(20, 2)
    end, output = part
    transform = {"input_inclusive_min": [0, 0], "input_exclusive_max": end, "output": output}
    seen = seen_through({**kind(spec), "transform": transform})
    expected = ts.open(seen).result().read().result()
    assert len(expected) == end[0]
    np.testing.assert_array_equal(open_source(seen).read(np.arange(end[0])), expected)


@pytest.mark.parametrize("through", [dict, auto])
@pytest.mark.parametrize("driver", ["n5", "neuroglancer_precomputed"])
def test_a_lost_chunk_is_an_error_for_every_driver_that_stores_chunks(tmp_path: Path, driver: str, through):
    path = tmp_path / "a"
    if driver == "n5":
        spec = write_with(driver, path, metadata=N5)
    else:
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
        scale = {"size": [20, 2, 1], "encoding": "raw", "chunk_size": [4, 2, 1], "resolution": [1, 1, 1]}
        image = {"type": "image", "data_type": "uint32", "num_channels": 1}
        store = ts.open({**spec, "multiscale_metadata": image, "scale_metadata": scale}, create=True).result()
        store[...] = np.ones((20, 2, 1, 1), np.uint32)
    assert np.all(open_source(through(spec)).read(np.arange(20)) == 1)
    lose_half(path)
    with pytest.raises(ReadError, match="is missing"):
        open_source(through(spec)).read(np.arange(20))


def test_a_spec_that_says_itself_that_missing_chunks_are_filled_is_believed_wherever_it_says_so(
    tmp_path: Path,
):
    spec = write_with("zarr", tmp_path / "a", **ZARR2)
    lose_half(tmp_path / "a")
    says = {**spec, "fill_missing_data_reads": True}
    for through in (dict, cast, downsample, stack):
        assert not np.all(open_source(through(says)).read(np.arange(20)) == 1)


def test_what_holds_an_array_in_one_piece_has_no_chunk_to_miss():
    assert open_source({"driver": "array", "array": [[1, 2], [3, 4]], "dtype": "int32"})[1].tolist() == [3, 4]


def test_a_driver_that_cannot_be_seen_through_is_refused_unless_missing_chunks_may_be_filled(monkeypatch):
    monkeypatch.setattr("datarax.sources.tensorstore._WHOLE_DRIVERS", frozenset())
    spec = {"driver": "array", "array": [[1, 2], [3, 4]], "dtype": "int32"}
    with pytest.raises(InputError, match=r"the driver 'array', of which .* set missing_chunks = \"fill\""):
        open_source(cast(spec))
    assert open_source(cast(spec), missing_chunks="fill")[1].tolist() == [3, 4]


@pytest.mark.parametrize(
    "spec", [{"driver": "nonsense"}, {"driver": "cast"}, {"driver": "zarr3", "kvstore": 3}]
)
def test_a_spec_that_is_none_is_refused_by_name(spec: dict):
    with pytest.raises(InputError, match=r"array {\"driver\": .* cannot be opened"):
        open_source(spec)


def test_a_chunk_that_is_cut_short_is_an_error(tmp_path: Path):
    path = write(tmp_path / "a")
    chunk = tmp_path / "a" / "c" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ReadError, match=r"array .*/a cannot be read"):
        open_source(path).read([9])


def test_a_cache_changes_no_row(tmp_path: Path):
    source = open_source(write(tmp_path / "a"), cache_bytes=1 << 20)
    for _ in range(2):
        assert np.array_equal(source.read([9, 3]), VALUES[[9, 3]])


@pytest.mark.parametrize(
    "settings",
    [{"path": ""}, {"path": 3}, {"path": "x", "missing_chunks": "zero"}, {"path": "x", "cache_bytes": -1}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict):
    with pytest.raises(ConfigError):
        TensorStoreConfig(**settings)


@pytest.mark.parametrize("around", [dict, cast])
def test_a_stack_without_layers_is_refused(around):
    with pytest.raises(InputError, match="a stack without layers"):
        open_source(around({"driver": "stack", "layers": []}))


@pytest.mark.parametrize("named", ["path", "spec", "cast", "stack"])
@pytest.mark.parametrize("file", ["zarr.json", "c/1/0"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "dangling"])
def test_what_is_no_file_is_named_and_waits_for_nobody(tmp_path: Path, kind: str, file: str, named: str):
    path = write(tmp_path / "a")
    odd = tmp_path / "a" / file
    odd.unlink()
    os.mkfifo(odd) if kind == "fifo" else odd.symlink_to("/dev/zero" if kind == "zero" else "nowhere")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    given = {"path": path, "spec": spec, "cast": cast(spec), "stack": stack(spec)}[named]
    with pytest.raises(InputError, match=f"array {path}: {odd} is no regular file"):
        open_source(given)


@pytest.mark.parametrize("named", ["place", "base", "layer", "zip", "png", "png by URL"])
def test_a_pipe_behind_a_url_or_as_the_only_file_is_named(tmp_path: Path, named: str):
    path, url = write(tmp_path / "a"), f"file://{tmp_path}/a/"
    odd = tmp_path / "a" / "zarr.json"
    odd.unlink()
    os.mkfifo(odd)
    given = {
        "place": {"driver": "zarr3", "kvstore": url},
        "base": cast(f"{url}|zarr3:"),
        "layer": {
            "driver": "stack",
            "layers": [{"driver": "zarr3", "kvstore": url, "schema": {"domain": {"shape": [2]}}}],
        },
        "zip": {"driver": "zarr3", "kvstore": {"driver": "zip", "base": f"{url}zarr.json"}},
        "png": {"driver": "png", "kvstore": {"driver": "file", "path": str(odd)}},
        "png by URL": {"driver": "png", "kvstore": f"{url}zarr.json"},
    }[named]
    with pytest.raises(InputError, match=f"array {path}.*is no regular file"):
        open_source(given)


def test_only_so_many_files_of_an_array_are_looked_at(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("datarax.sources.tensorstore._MOST_LOOKED_AT", 2)
    path = write(tmp_path / "a", chunk=1)
    (tmp_path / "a" / "c" / "19" / "odd").symlink_to("nowhere")
    assert len(open_source(path)) == 20
