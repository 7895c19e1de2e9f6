"""Feeds mutated files to every reader of a file that others may have written; keeps what reaches new lines. `make fuzz`

python -m tests.fuzz --seconds 60 --seed 0

A reader may refuse with a ValueError, which all errors of ours that are about content are. Anything else is a fault.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datarax
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.manifest import Manifest
from datarax.checkpoint.record import Record, process_parts, read_history
from datarax.core.tree import canonical_json, decode, digest, encode
from datarax.run_config import parse_any_stored_config
from datarax.sources import load_manifest
from datarax.store.files import parse_json

_PACKAGE = str(Path(datarax.__file__).parent)
_GOLDEN = Path(__file__).parents[1] / "checkpoints/golden/snapshots"
_TOKENS = (
    *(b"-1", b"1e999", b"NaN", b"null", b"true", b'""', b"[]", b"{}", b"18446744073709551616", b'"\\u0000"'),
    *(
        b'{"$array":{}}',
        b'{"$int":"g"}',
        b'{"$dict":[[1]]}',
        b'{"$jax":{"dtype":"<i8","shape":[-1],"data":"AA=="}}',
    ),
    *(b"9" * 5000, b"0x" + b"f" * 400, b"[" * 3000 + b"]" * 3000, b"x." * 300),
    *(b"[" * 300 + b"]" * 300, b'"../../etc/passwd"', b"\xff\xfe", b"= ", b"\n[source]\n", b"2.5"),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader, and good files to begin with."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    sealed: bool = False
    """Whether a file holds a checksum of itself: it is made anew after each mutation, as a forger would."""


def _files(pattern):
    return [path.read_bytes() for path in sorted(_GOLDEN.glob(pattern))]


def _dataset_manifest(data):
    with tempfile.TemporaryDirectory() as place:
        Path(place, "manifest.json").write_bytes(data)
        load_manifest(place)


def _stored_config(data):
    parse_any_stored_config(data.decode(), where="the config")


TARGETS = {
    "record": Target(Record.from_bytes, _files("*/run/*/data/record.json")),
    "manifest": Target(Manifest.from_bytes, _files("*/run/*/manifest.json"), sealed=True),
    "processes": Target(process_parts, _files("*/run/*/data/processes.json")),
    "history": Target(read_history, _files("*/run/history/*.json")),
    "identity": Target(parse_identity, _files("*/run/identity/*.json")),
    "state": Target(
        lambda data: decode(parse_json(data)),
        [json.dumps(encode({"a": (1, 2.5, b"x", None), "b": [True, "é", 2**70], 3: {}})).encode()],
    ),
    "dataset manifest": Target(_dataset_manifest, _files("*/data/manifest.json") or [b"{}"], sealed=True),
    "config": Target(_stored_config, _files("*/run/configs/*.toml")),
}


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """One to four changes at random places."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(made) + 1), chance.choice((1, 1, 2, 8, 32))
        kind = chance.randrange(5)
        if kind == 0 and made:
            made[at % len(made)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del made[at : at + length]
        elif kind == 2:
            made[at:at] = chance.choice(_TOKENS)
        elif kind == 3:
            made[at : at + length] = chance.choice(_TOKENS)
        else:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            made[at : at + length] = other[start : start + chance.choice((4, 16, 64))]
    return bytes(made)


def _with_checksum(data: bytes) -> bytes:
    try:
        tree = json.loads(data)
        body = {key: value for key, value in tree.items() if key != "checksum"}
        return canonical_json({**body, "checksum": digest(body)})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def lines_of(read: Callable[[bytes], object], data: bytes) -> set[tuple[str, int]]:
    """The lines of the package that reading goes through.

    Raises:
        AssertionError: if the reader raises anything but a ValueError.
    """
    seen: set[tuple[str, int]] = set()

    def local(frame, event, argument):
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame, event, argument):
        return local if frame.f_code.co_filename.startswith(_PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read(data)
    except ValueError:
        pass
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {data!r}") from error
    finally:
        sys.settrace(before)
    return seen


def fuzz(target: Target, chance: random.Random, go_on: Callable[[int], bool]) -> tuple[int, int]:
    """Tries one mutation after the other while `go_on(number)`; returns how many, and how many were kept for new lines."""
    corpus, known = list(target.seeds), set[tuple[str, int]]()
    for seed in corpus:
        known |= lines_of(target.read, seed)
    number = kept = 0
    while go_on(number):
        data = mutated(chance.choice(corpus), chance, corpus)
        data = _with_checksum(data) if target.sealed and chance.random() < 0.8 else data
        lines = lines_of(target.read, data)
        if not lines <= known:
            known |= lines
            corpus.append(data)
            kept += 1
        number += 1
    return number, kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, target in TARGETS.items():
        end = time.monotonic() + arguments.seconds
        number, kept = fuzz(
            target, random.Random(f"{arguments.seed} {name}"), lambda _, end=end: time.monotonic() < end
        )
        print(f"{name:18} {number:8} files, {kept:5} kept for new lines", flush=True)


if __name__ == "__main__":
    main()
