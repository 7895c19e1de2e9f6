"""Snapshots: what a module and a model are, on disk, in one commit, and back again.

The only package that imports Orbax. Start with `checkpointer` (the writer) and `snapshot` (the readers);
`checkpoints/README.md` describes every file. Never imports loaders, sources or orders: any module with `get_state`
and `set_state` will do.
"""

from datarax.checkpoint.checkpointer import Checkpointer as Checkpointer
from datarax.checkpoint.file_stamps import FileStamps as FileStamps
from datarax.checkpoint.global_arrays import make_global as make_global
from datarax.checkpoint.model_item import compare_template as compare_model
from datarax.checkpoint.model_item import describe_model as describe_model
from datarax.checkpoint.model_item import held_alone as held_alone
from datarax.checkpoint.policy import Change as Change
from datarax.checkpoint.policy import ChangePolicy as ChangePolicy
from datarax.checkpoint.record import SNAPSHOT_FORMAT as SNAPSHOT_FORMAT
from datarax.checkpoint.record import HistoryEntry as HistoryEntry
from datarax.checkpoint.record import Record as Record
from datarax.checkpoint.restore import Restored as Restored
from datarax.checkpoint.restore import restore_snapshot as restore_snapshot
from datarax.checkpoint.save_config import SaveConfig as SaveConfig
from datarax.checkpoint.snapshot import Snapshot as Snapshot
from datarax.checkpoint.snapshot import ledger_record as ledger_record
from datarax.checkpoint.snapshot import ledger_steps as ledger_steps
from datarax.checkpoint.snapshot import list_steps as list_steps
from datarax.checkpoint.snapshot import newest_good_step as newest_good_step
from datarax.checkpoint.snapshot import read_config as read_config
from datarax.checkpoint.snapshot import read_identity as read_identity
from datarax.core.tree import EncodingError as EncodingError
from datarax.core.tree import decode as decode
from datarax.core.tree import encode as encode

__all__ = [
    "SNAPSHOT_FORMAT",
    "Change",
    "ChangePolicy",
    "Checkpointer",
    "EncodingError",
    "FileStamps",
    "HistoryEntry",
    "Record",
    "Restored",
    "SaveConfig",
    "Snapshot",
    "compare_model",
    "decode",
    "describe_model",
    "encode",
    "held_alone",
    "ledger_record",
    "ledger_steps",
    "list_steps",
    "make_global",
    "newest_good_step",
    "read_config",
    "read_identity",
    "restore_snapshot",
]
