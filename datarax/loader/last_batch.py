"""The Variable that shows the last batch handed over.

A batch is data of the host: it must neither travel through every transform that its loader is an argument of, nor come
back as an array of the device. So the Variable itself holds None, and looks where the loader keeps the batch.
"""

from __future__ import annotations

from typing import Any, Protocol

from flax import nnx
from flax.typing import MISSING


class _Holder(Protocol):
    current: Any


class LastBatch(nnx.Variable[Any]):
    """`holder.current`, read at each look; always None to NNX and in states.

    Args:
        holder: compared by identity.
    """

    def __init__(self, holder: _Holder, **metadata: Any) -> None:
        super().__init__(None, **{"ref": False, "hijax": False, "holder": holder} | metadata)

    def get_value(self, *, index: Any = MISSING) -> Any:
        """The last batch, or with `index` a part of it."""
        batch = self.get_metadata()["holder"].current
        return batch if index is MISSING or index is ... else batch[index]

    def set_value(self, value: Any, *, index: Any = MISSING) -> None:
        """Show another batch."""
        if index is not MISSING and index is not ...:
            raise TypeError("a part of the last batch cannot be set; set the whole")
        self.get_metadata()["holder"].current = value

    def set_raw_value(self, value: Any, *, _unsafe_bypass_check: bool = False) -> None:
        """The way back for what NNX took out, which is None."""
        super().set_raw_value(None, _unsafe_bypass_check=_unsafe_bypass_check)
