"""The transforms, sources and tasks of the behaviour cases.

Never edited: golden identities hold their source text. A new shape is a new function.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tensorstore
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    GrainConfig,
    GrainSource,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
    TensorStoreConfig,
    TensorStoreSource,
)
from datarax.transforms import (
    Randomness,
    map_batch,
    map_records,
    random_integers,
    random_map_batch,
    random_map_records,
    random_uniform,
    stack,
)

# Data.

RECORD_BYTES = 24


def columns(count=53):
    number = np.arange(count)
    return {
        "x": (number[:, None] * [1, 7, 49]).astype(np.int32),
        "half": (number % 5).astype(ml_dtypes.bfloat16),
        "text": np.array([f"{i:03d}" for i in number], "S3"),
    }


def items(count=41):
    return [
        {"number": i, "vector": np.arange(3, dtype=np.float32) * np.float32(i), "odd": i % 2 == 1}
        for i in range(count)
    ]


def lines(first, last):
    return [f"{i:6d} {chr(97 + i % 26) * (RECORD_BYTES - 8)}\n".encode() for i in range(first, last)]


def write_files(directory):
    """ArrayRecord files of 29, 30 and 8 records, and two zarr3 arrays of 61, below a directory."""
    (directory / "records").mkdir(parents=True)
    for name, first, last in [("a", 0, 29), ("b", 29, 59), ("c", 59, 67)]:
        writer = ArrayRecordWriter(str(directory / "records" / f"{name}.array_record"), "group_size:1")
        for line in lines(first, last):
            writer.write(line)
        writer.close()
    arrays = {
        "image": (np.arange(61 * 6) % 251).astype(np.uint8).reshape(61, 2, 3),
        "label": (np.arange(61) * 3).astype(np.int16),
    }
    for name, array in arrays.items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(directory / "zarr" / name)}}
        chunk = (8, *array.shape[1:])
        store = tensorstore.open(
            spec,
            create=True,
            dtype=array.dtype,
            shape=array.shape,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk),
        )
        store.result()[...].write(array).result()


SOURCES = ("range", "long", "columns", "items", "records", "zarr")


def source(kind, directory, name="data"):
    """A source of one of the kinds; the files below the directory are those of `write_files`."""
    if kind == "range":
        return RangeSource(RangeConfig(name=name, start=3, stop=3 + 7 * 97, step=7))
    if kind == "long":
        return RangeSource(RangeConfig(name=name, stop=10**6))
    if kind == "columns":
        return MemorySource(MemoryConfig(name=name), columns())
    if kind == "items":
        return GrainSource(GrainConfig(name=name), items())
    if kind == "records":
        files = str(directory / "records" / "*.array_record")
        return ArrayRecordSource(ArrayRecordConfig(name=name, files=files))
    paths = {each: str(directory / "zarr" / each) for each in ("image", "label")}
    return TensorStoreSource(TensorStoreConfig(name=name, path=paths))


# Transforms.

SCALE = 3


def as_columns(batch):
    """Whatever a batch transform may get, as a dict of columns."""
    if isinstance(batch, list):
        if isinstance(batch[0], bytes):
            return {"bytes": np.frombuffer(b"".join(batch), np.uint8).reshape(len(batch), -1)}
        return stack(batch)
    return batch if isinstance(batch, dict) else {"number": batch}


def rows_of(batch):
    return len(next(iter(batch.values())))


def measured(batch, scale=1):
    batch = as_columns(batch)
    numbers = [leaf for name, leaf in sorted(batch.items()) if leaf.dtype.kind in "iu"]
    total = sum(leaf.reshape(rows_of(batch), -1).astype(np.int64).sum(axis=1) for leaf in numbers)
    return {**batch, "total": total * scale * SCALE}


def noisy(batch, seeds):
    return {**as_columns(batch), "noise": (seeds >> np.uint64(48)).astype(np.int32)}


def drawn(batch, seeds, width=2):
    batch = as_columns(batch)
    uniform, integers = random_uniform(seeds, (width,)), random_integers(seeds, -5, 70, stream=1)
    return {**batch, "uniform": uniform, "integers": integers}


def tagged(record, tag=7):
    record = record if isinstance(record, dict) else {"number": record}
    return {**record, "tag": np.int16(tag)}


def rolled(record, seed):
    record = record if isinstance(record, dict) else {"number": record}
    return {**record, "roll": seed % 1000, "high": seed >> 40}


def with_generator(record, rng):
    return {**record, "normal": rng.normal(size=2), "below": int(rng.integers(1000))}


def adder(by):
    def add(batch):
        return {**as_columns(batch), "by": np.full(rows_of(as_columns(batch)), by)}

    return add


class Shift:
    """A callable with what it was told."""

    step = 2

    def __init__(self, by):
        self.by = by

    def __call__(self, batch):
        return {**as_columns(batch), "shift": np.full(rows_of(as_columns(batch)), self.by * self.step)}


STAGES = {
    "columns": map_batch(as_columns, name="columns"),
    "measured": map_batch(measured),
    "measured by 4": map_batch(measured, name="measured4", parameters={"scale": 4}),
    "noisy": random_map_batch(noisy),
    "noisy again": random_map_batch(noisy, name="again"),
    "drawn": random_map_batch(drawn, parameters={"width": 3}),
    "tagged": map_records(tagged),
    "rolled": random_map_records(rolled, randomness=Randomness.SEED),
}
"""Those that every source's batches can go through once they are columns, and that draw without NumPy or JAX."""

OTHER_STAGES = {
    "declared": map_batch(measured, name="declared", version=3, parameters={"scale": 2}),
    "depends": map_batch(measured, name="depends", version="a", depends_on=("grain",)),
    "generator": random_map_records(with_generator, name="generator"),
    "keys": random_map_batch(noisy, name="keys", randomness=Randomness.KEY),
    "record keys": random_map_records(rolled, name="record keys", randomness=Randomness.KEY),
    "closure": map_batch(adder(5), name="closure"),
    "callable": map_batch(Shift(4), name="callable"),
    "array parameter": map_batch(measured, name="array", parameters={"scale": np.arange(4, dtype=np.int16)}),
    "lambda": map_batch(lambda batch: batch, name="lambda"),
}


def measured_otherwise(batch, scale=1):
    return {**measured(batch, scale), "total": np.zeros(rows_of(as_columns(batch)), np.int64)}


def means(batch):
    return {"mean": float(batch["total"].mean()), "largest": float(batch["total"].max())}


# Models.


def model(step):
    """A leaf of most kinds, as it is after `step` steps."""
    return {
        "w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + step,
        "half": jnp.full((3,), step, jnp.bfloat16),
        "pair": (jnp.asarray(step, jnp.int32), np.arange(4) * step),
        "weak": jnp.asarray(1.5) * step,
        "a.b": {"count": step, "rate": step / 8, "even": step % 2 == 0, "nothing": None},
    }


class Task:
    """Its state says how many steps were done."""

    def init(self, config, mesh):
        return model(0)

    def step(self, state, batch):
        return model(state["a.b"]["count"] + 1), {"count": state["a.b"]["count"]}


task = Task()
