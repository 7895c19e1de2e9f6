"""A run of the user's own, killed at random moments in real processes, compared with one that nobody disturbed.

`plan` says what will be done and is a pure function of a seed; `start` knows processes and signals; `compare` knows two
finished runs; `campaign` does one after the other, and `report` is what it answers. Nothing here prints. The code of a user
runs in those processes only.
"""

from datarax.chaos.campaign import Stopped as Stopped
from datarax.chaos.campaign import UndisturbedRunError as UndisturbedRunError
from datarax.chaos.campaign import run_chaos as run_chaos
from datarax.chaos.plan import PlannedKill as PlannedKill
from datarax.chaos.plan import plan_kills as plan_kills
from datarax.chaos.report import ChaosReport as ChaosReport
from datarax.chaos.report import Kill as Kill
from datarax.chaos.report import Trial as Trial

__all__ = ["ChaosReport", "Kill", "PlannedKill", "Trial", "UndisturbedRunError", "plan_kills", "run_chaos"]
