"""The kinds of `nnx.Variable` that modules count and remember with.

`IterationCount` is an array that transforms may change. `HostInt` is an exact integer of any size that only
the host may change, `HostFlag` a bool that stays a Python bool inside transforms, and `Held` shows what its module keeps
elsewhere. What NNX takes out of them and puts back is the packed form of their value. Knows nothing of modules. Read next:
`datarax.core.module`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError
from flax.nnx import reprlib
from flax.typing import MISSING
from jax.extend.core import get_opaque_trace_state


class PackedVariable(nnx.Variable[Any]):
    """A Variable whose raw content, which is all that NNX and transforms see of it, is packed from its value.

    `create_value`, which NNX calls with the constructor's value, packs, and takes also what comes back from NNX.
    """

    def __init__(self, value: Any, **metadata: Any) -> None:
        # Neither a mutable array nor a hijax value could hold what is packed.
        super().__init__(value, **{"ref": False, "hijax": False} | metadata)

    def set_raw_value(self, value: Any, *, _unsafe_bypass_check: bool = False) -> None:
        """Set the value without a look at what it was, and the way back for what NNX took out."""
        super().set_raw_value(self.create_value(value), _unsafe_bypass_check=_unsafe_bypass_check)


def _check_whole(variable: PackedVariable, index: Any) -> None:
    if index is not MISSING and index is not ...:
        raise TypeError(
            f"a {type(variable).__name__} has no element {index!r} of its own; a part of what a module holds cannot be set: "
            "use [...] for the whole"
        )


class IterationCount(PackedVariable):
    """A count that can be changed inside transforms: as a rule an int32 `jax.Array` of shape ().

    A Python int would be static for NNX and could not be changed inside `nnx.jit` or `nnx.vmap`; an array is
    data. The type lets `nnx.StateAxes` say what a transform does with counts; the `...` entry is required::

        shared = nnx.StateAxes({IterationCount: None, ...: None})
        nnx.vmap(f, in_axes=(shared, 0))  # += 1 counts once for all rows
        carried = nnx.StateAxes({IterationCount: nnx.Carry, ...: None})
        nnx.scan(f, in_axes=(carried, 0))  # += 1 counts once for each step

    A count never wraps. Set on the host past the largest value of its dtype (2**31 - 1 for int32), or below
    zero, it raises OverflowError and keeps its value. A transform cannot raise; there it stays at the
    largest.

    A NumPy int32 of shape () is the same count before anything has looked at it: it reads as a `jax.Array`, and
    to make it starts no backend of JAX, after which `jax.distributed.initialize` would be refused.

    A NumPy int64 of shape () is a count of the host: transforms would cut it to 32 bits, so it passes through
    them as exact as a `HostInt`, and can be neither read nor changed inside.
    """

    def create_value(self, value: Any) -> Any:
        """The raw content for a count."""
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.int64 and value.shape == ():
            if int(value) < 0:
                raise OverflowError(f"a count is at least 0 and below 2**63, got {value}")
            return _Words(int(value))
        return value

    def get_value(self, *, index: Any = MISSING) -> Any:
        """The count, or with `index` a part of it; a count of the host as a NumPy array int64[].

        Raises:
            TraceContextError: inside a transform, for a count of the host.
        """
        raw = self.get_raw_value()
        if isinstance(raw, _Words):
            return np.asarray(raw.exact(), np.int64)
        value = super().get_value(index=index)
        if not (isinstance(raw, np.ndarray) and raw.dtype == np.int32 and raw.shape == ()):
            return value
        with jax.ensure_compile_time_eval():  # inside a transform too, it is a number and no tracer
            return jnp.asarray(value)

    def set_value(self, value: Any, *, index: Any = MISSING) -> None:
        """Set the count, or with `index` a part of it.

        Raises:
            OverflowError: on the host, if a count has wrapped or would be negative; nothing has changed.
            TraceContextError: inside a transform, for a count of the host.
        """
        if isinstance(self.get_raw_value(), _Words):
            _check_host(self, value)
            self.set_raw_value(np.asarray(value, np.int64))
            return
        before = self.get_value()
        # Into a copy: the assignment below writes a part into the array itself.
        self.set_raw_value(before.copy() if isinstance(before, np.ndarray) else before)
        super().set_value(value, index=index)
        after = self.get_raw_value()
        if isinstance(after, jax.core.Tracer):
            if jnp.issubdtype(after.dtype, jnp.signedinteger):
                self.set_raw_value(jnp.where(after < 0, jnp.iinfo(after.dtype).max, after))
        elif _is_negative(after):
            self.set_raw_value(before)
            raise OverflowError(
                f"{type(self).__name__} was set to {after}: a count is at least 0, and one of dtype "
                f"{getattr(after, 'dtype', 'int')} wraps past its largest value. It keeps {before}; "
                "reset it (reset_operation_stats) to count on"
            )


def _is_negative(count: Any) -> bool:
    if isinstance(count, jax.Array) and not (count.is_fully_addressable or count.is_fully_replicated):
        return False  # no process can look at all of it
    return isinstance(count, (jax.Array, np.ndarray, np.generic, int)) and bool(np.any(np.asarray(count) < 0))


# What jax reports while nothing is being traced; the same in every thread.
_HOST = get_opaque_trace_state(convention="nnx")

_WORD_BITS = 32


@jax.tree_util.register_pytree_node_class
class _Words:
    """An exact integer to Python; to jax a node with uint32 scalars, the least significant word first.

    uint32 is the widest integer that jax keeps without x64. As data the words pass through transforms
    unchanged, and a jitted function is not traced anew for each new value, as it would be for static
    metadata. An integer that is looked up becomes words, and a copy a plain integer, of that moment.
    """

    def __init__(self, content: int | tuple[Any, ...] | Callable[[], int]) -> None:
        self._content = content

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        if isinstance(self._content, tuple):
            return self._content, None
        number = self.exact()
        # At least two, so that an integer below 2**64 never changes the structure that jit caches by.
        count = max(2, -(-number.bit_length() // _WORD_BITS))
        words = (number >> (_WORD_BITS * i) & 0xFFFFFFFF for i in range(count))
        return tuple(np.array(word, np.uint32) for word in words), None

    @classmethod
    def tree_unflatten(cls, _: None, words: Any) -> _Words:
        return cls(tuple(words))

    def exact(self) -> int:
        """The integer.

        Raises:
            TraceContextError: inside a transform, where it has no value.
            ValueError: if something has changed the words' dtype or shape.
        """
        if isinstance(self._content, tuple):
            words = self._content
            if any(isinstance(word, jax.core.Tracer) for word in words):
                raise TraceContextError(
                    "an integer of the host (epoch, position, idx, a 64-bit count) has no value inside a jax "
                    "transform; read it before the call and pass what is needed as an argument"
                )
            if any(getattr(word, "dtype", None) != np.uint32 or word.shape != () for word in words):
                raise ValueError(
                    f"a HostInt holds {words} instead of uint32 words; what touched it is not exact"
                )
            self._content = sum(int(word) << (_WORD_BITS * i) for i, word in enumerate(words))
        return self._content() if callable(self._content) else self._content

    def __reduce__(self) -> tuple[Any, ...]:
        return _Words, (self._content if isinstance(self._content, tuple) else self.exact(),)

    def __repr__(self) -> str:
        return repr(self._content() if callable(self._content) else self._content)


def looked_up(read: Callable[[], int]) -> Any:
    """Raw content for a `HostInt`, or an `IterationCount` of the host, that is what `read()` says at each look.

    For numbers that change far more often than anyone looks at them: to set a Variable costs 3 µs and more. It
    stays in a Variable until something writes there; what NNX brings back from a transform is a plain integer.

    Args:
        read: gives an int >= 0.
    """
    return _Words(read)


class HostInt(PackedVariable):
    """None or a Python int >= 0 of any size, exact on the host and through every transform.

    `get_value()` and `[...]` give the Python int. Inside a transform it can be neither changed nor read (both
    raise flax's TraceContextError): the value passes through as data, so no new value makes jit trace again.
    """

    def create_value(self, value: Any) -> _Words | None:
        """The raw content for an integer."""
        if value is None or isinstance(value, _Words):
            return value
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"expected None or an int >= 0, got {type(value).__name__} {value!r}")
        if value < 0:
            raise ValueError(f"expected None or an int >= 0, got {value}")
        return _Words(int(value))

    def get_value(self, *, index: Any = MISSING) -> int | None:
        """The integer, or None.

        Raises:
            TraceContextError: inside a transform, unless it is None.
        """
        _check_whole(self, index)
        raw: Any = self.get_raw_value()
        return raw.exact() if isinstance(raw, _Words) else raw

    def set_value(self, value: int | None, *, index: Any = MISSING) -> None:
        """Set the integer, on the host only.

        Raises:
            TypeError: unless it is None, an int or a NumPy integer; a bool is refused.
            ValueError: if it is negative.
            TraceContextError: inside a transform.
        """
        _check_whole(self, index)
        _check_host(self, value)
        self.set_raw_value(value)

    def __nnx_repr__(self) -> Iterator[Any]:
        yield reprlib.Object(type=type(self).__name__)
        yield reprlib.Attr("value", self.get_raw_value())  # inside a transform there is no other


def on_host() -> bool:
    """Whether no jax transform is being traced here."""
    return bool(get_opaque_trace_state(convention="nnx") == _HOST)


def _check_host(variable: nnx.Variable[Any], value: Any) -> None:
    if not on_host():
        raise TraceContextError(
            f"cannot set a {type(variable).__name__} of the host to {value!r} inside a jax transform"
        )


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    """A bool that jax sees as structure: a transform is traced once for each of its two values."""

    value: bool


class HostFlag(PackedVariable):
    """A bool that stays a Python bool inside transforms, where it may be read, changed and branched on."""

    def create_value(self, value: Any) -> _Static:
        """The raw content for a bool."""
        if not isinstance(value, (bool, _Static)):
            raise TypeError(f"expected a bool, got {type(value).__name__} {value!r}")
        return _Static(value) if isinstance(value, bool) else value

    def get_value(self, *, index: Any = MISSING) -> bool:
        """The bool."""
        return self.get_raw_value().value

    def set_value(self, value: bool, *, index: Any = MISSING) -> None:
        """Set the bool.

        Raises:
            TypeError: unless it is a bool.
        """
        self.set_raw_value(value)

    def __bool__(self) -> bool:
        return self.get_value()


class Held(PackedVariable):
    """What its module keeps elsewhere, on the host, read at each look; always None to NNX.

    A batch, or the state of somebody else's iterator, must neither travel through every transform that its module is an
    argument of, nor come back as arrays of the device. In states it is the value itself, or None where its module names it
    in `unsaved_state`. Whoever clones a module gives the clone a `Held` of its own: see `DataraxModule._cloned`.

    Args:
        read: gives the value; compared by identity.
        write: has the module keep another value; None: only the module itself does, and restores it.
    """

    def __init__(
        self, read: Callable[[], Any], write: Callable[[Any], None] | None = None, **metadata: Any
    ) -> None:
        super().__init__(None, read=read, write=write, **metadata)

    def get_value(self, *, index: Any = MISSING) -> Any:
        """The value, or with `index` a part of it."""
        value = self.get_metadata("read")()
        return value if index is MISSING or index is ... else value[index]

    def set_value(self, value: Any, *, index: Any = MISSING) -> None:
        """Have the module keep another value.

        Raises:
            TypeError: for a part of it, or if only the module itself changes it.
        """
        _check_whole(self, index)
        write = self.get_metadata("write")
        if write is None:
            raise TypeError("what this module holds here only the module itself changes: see its methods")
        write(value)
