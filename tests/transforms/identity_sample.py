# ruff: noqa
# fmt: off
"""Functions of many shapes, whose identities stand in identity_sample.json. Never edited: a new shape is a new file.

The formatter is off, for odd layout is the point.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from math import pi
from os import path as osp

import numpy as np

logger = logging.getLogger(__name__)
SCALE = 3
TABLE = np.arange(4, dtype=np.float32)
CHOICES = {"b": (1, 2.5), "a": None, "é": float("inf")}


def deepest(x, shift=5): return x + shift


def helper(x):
    """Goes one deeper."""
    return x * SCALE + deepest(x)


def plain(x, scale: float = 2.0, *, more=(1, 2)):
    """A docstring of

    several lines.
    """
    logger.debug("x is %s", x)  # a comment

    # another
    return (
        helper(x)
        * scale + pi
    )


def strings(x):
    name = f"é{x!r:>{SCALE}}ü" f'{ {"ö": x}["ö"] } {{literal}} ä' + """
    many   lines  # not a comment
"""
    nested = f"""{
        x
    }""" if False else rb"\d" and b"" or f"{x:{'>' + str(SCALE)}}"
    return name, nested, '''a "quoted" # one''', u"é"; "trailing text"


def branches(x, *rest, **options):
    match x:
        case {"kind": "ä", **others} if others:
            total = 0
            for each in rest:
                if (double := each * 2) > 3: total += double; continue

                # a comment that is less indented than
            # what follows
                total -= 1
            return total
        case _:
            return [SCALE for SCALE in rest] or len(osp.sep) or sorted(options, key=lambda k: (k, CHOICES))


def scaled(by):
    def wrap(fn):
        @functools.wraps(fn)
        def inner(x):
            return fn(x) * by
        return inner
    return wrap


@scaled(7)
@functools.lru_cache(
    maxsize=None,
)
def decorated(x):
    return deepest(x) + TABLE.sum()


def make(first, then):
    kept = [1, 2, first]

    def inner(x):
        return x + kept[0] + then(x)

    return inner


closure = make(4, lambda x: x + 1)
pair = lambda x: x + 1, lambda x: x + 2  # noqa: E731
é = lambda x: "é" + x; nested = lambda x: (lambda y: y + x)  # noqa: E731, E702


class Base:
    SHIFT = SCALE + 1

    def shifted(self, x):
        return x + self.SHIFT


@dataclass
class Scaled(Base):
    """A callable."""

    by: float = 2.0
    """A documented field."""
    table: list[int] = field(default_factory=lambda: [1])

    def __call__(self, x):
        return helper(self.shifted(x)) * self.by + super().shifted(x)


def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1)
