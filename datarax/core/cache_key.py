"""Keys for a module's cache: equal for the same value in the same structure, never equal for anything else.

Plain values count by type and value, containers by structure, and everything else (arrays above all:
comparing their contents would copy them off the device) by identity. An identity is never given out twice: it
is a running number, tied to the object by a weak reference, so an object at the address of a dead one has
another number.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

_SCALARS = (type(None), bool, int, float, complex, str, bytes)


def cache_key(value: Any) -> int:
    """A 128-bit key of `value`.

    The same string, number or array object has the same key each time, also inside lists, tuples and dicts;
    two array objects have different keys even if their contents are equal. Keys of values that hold no
    objects by identity are the same in every process.
    """
    return int.from_bytes(hashlib.blake2b(_encoded(value), digest_size=16).digest(), "little")


def _encoded(value: Any) -> bytes:
    kind = type(value)
    if kind in _SCALARS:
        # hex, because Python refuses to write very large integers in decimal
        return _framed(kind.__name__, (hex(value) if kind is int else repr(value)).encode())
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return _framed(f"numpy {value.dtype.str}", value.tobytes())
    if kind is dict:
        return _framed("dict", *sorted(_framed("item", _encoded(k), _encoded(v)) for k, v in value.items()))
    if kind is list or kind is tuple:
        return _framed(kind.__name__, *map(_encoded, value))
    return _framed("object", str(_identities.number(value)).encode())


def _framed(tag: str, *parts: bytes) -> bytes:
    """An encoding in which no other tag or split into parts can give the same bytes."""
    return b"".join(b"%d:%s" % (len(part), part) for part in (tag.encode(), b"%d" % len(parts), *parts))


class _Identities:
    """Numbers for objects; thread-safe."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[Callable[[], Any], int]] = {}
        self._next = itertools.count()
        self._lock = (
            threading.RLock()
        )  # re-entrant: a collection may drop an entry while a number is looked up

    def number(self, value: Any) -> int:
        address = id(value)
        with self._lock:
            known = self._numbers.get(address)
            if known is not None and known[0]() is value:
                return known[1]
            number = next(self._next)
            self._numbers[address] = (self._reference(value, address, number), number)
            return number

    def _reference(self, value: Any, address: int, number: int) -> Callable[[], Any]:
        def forget(_: Any) -> None:
            with self._lock:
                if self._numbers.get(address, (None, None))[1] == number:
                    del self._numbers[address]

        try:
            return weakref.ref(value, forget)
        except TypeError:
            return lambda: (
                value
            )  # cannot be referred to weakly: kept alive, so that its address is never reused


_identities = _Identities()
