"""The Variable that shows what its module keeps elsewhere, on the host.

A batch, or the state of somebody else's iterator, must neither travel through every transform that its module is an
argument of, nor come back as arrays of the device. So the Variable itself holds None, and looks where the module keeps
the value.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from flax.typing import MISSING


class Held(nnx.Variable[Any]):
    """`getattr(holder, field)`, read at each look; always None to NNX.

    In states it is the value itself, or None where its module names it in `unsaved_state`. Whoever clones a module gives
    the clone a `Held` of its own: see `DataraxModule._cloned`.

    Args:
        holder: compared by identity.
        field: the attribute of `holder`.
    """

    def __init__(self, holder: object, field: str, **metadata: Any) -> None:
        super().__init__(None, **{"ref": False, "hijax": False, "holder": holder, "field": field} | metadata)

    def get_value(self, *, index: Any = MISSING) -> Any:
        """The value, or with `index` a part of it."""
        metadata = self.get_metadata()
        value = getattr(metadata["holder"], metadata["field"])
        return value if index is MISSING or index is ... else value[index]

    def set_value(self, value: Any, *, index: Any = MISSING) -> None:
        """Have the module keep another value."""
        if index is not MISSING and index is not ...:
            raise TypeError("a part of what a module holds cannot be set; set the whole")
        metadata = self.get_metadata()
        setattr(metadata["holder"], metadata["field"], value)

    def set_raw_value(self, value: Any, *, _unsafe_bypass_check: bool = False) -> None:
        """The way back for what NNX took out, which is None."""
        super().set_raw_value(None, _unsafe_bypass_check=_unsafe_bypass_check)
