"""A rehearsal before a costly launch: everything that it would stumble over, told at once, and nothing left behind.

`examination.py` lists the checks and their order, `source_run.py` and `grain_run.py` hold those that depend on where the
batches come from, `checks.py` says what a check is; each other file looks at one concern. Read `docs/doctor.md` for what
they mean to a user.
"""

from datarax.doctor.checks import Check as Check
from datarax.doctor.checks import Report as Report
from datarax.doctor.checks import Verdict as Verdict
from datarax.doctor.examine import examine as examine

__all__ = ["Check", "Report", "Verdict", "examine"]
