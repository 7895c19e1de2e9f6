"""The only place of our own file access: what we write is whole and durable, or not there.

`store` says what a store is, `local` is the one of a directory, `files` holds the guards of single files.
"""

from datarax.store.local import LocalStore as LocalStore
from datarax.store.store import Entry as Entry
from datarax.store.store import Lease as Lease
from datarax.store.store import Store as Store

__all__ = ["Entry", "Lease", "LocalStore", "Store"]
