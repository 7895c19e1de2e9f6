"""A rehearsal before a costly launch: everything that it would stumble over, told at once, and nothing left behind.

`examine.py` lists the steps, `rehearsal.py` makes them; each other file looks at one concern. Read `docs/doctor.md` for what
they mean to a user.
"""

from datarax.doctor.examine import examine as examine
from datarax.doctor.rehearsal import Finding as Finding
from datarax.doctor.rehearsal import Report as Report
from datarax.doctor.rehearsal import Verdict as Verdict

__all__ = ["Finding", "Report", "Verdict", "examine"]
