"""Restore and replay a run in a fresh process, and say whether what was recorded is what comes out again.

`run.py` decides what is looked at, in this order: files against their manifests (`files.py`); the recorded recipe against what
its stored config gives today (`recipes.py`); a stream restored from the snapshot before and run through the real reading path
(`replay.py`); the data against their manifest. `report.py` is the answer. Nothing is written, no lock is taken, no peers are
needed.
"""

from datarax.verify.report import SnapshotReport as SnapshotReport
from datarax.verify.report import VerifyReport as VerifyReport
from datarax.verify.run import FAST_STEPS as FAST_STEPS
from datarax.verify.run import verify_run as verify_run

__all__ = ["FAST_STEPS", "SnapshotReport", "VerifyReport", "verify_run"]
