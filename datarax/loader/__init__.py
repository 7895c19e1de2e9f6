"""From an order and a source to batches: `recipe.py` (step to rows), `producer.py`, `stream.py` (what counts), `loader.py`."""

from datarax.loader.config import DataLoaderConfig as DataLoaderConfig
from datarax.loader.loader import DataLoader as DataLoader
from datarax.loader.recipe import ROW_MASK as ROW_MASK

__all__ = ["ROW_MASK", "DataLoader", "DataLoaderConfig"]
