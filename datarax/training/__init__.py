"""The training session: restore, loop, save, leave. The only place where loader and checkpoints meet."""

from datarax.training.metrics import NonFiniteError
from datarax.training.recorded import LOADER_NAME
from datarax.training.session import (
    LogConfig,
    Outcome,
    ResumeConfig,
    TrainingSession,
    total_steps,
)
from datarax.training.task import (
    Task,
    load_task,
)

__all__ = [
    "LOADER_NAME",
    "LogConfig",
    "NonFiniteError",
    "Outcome",
    "ResumeConfig",
    "Task",
    "TrainingSession",
    "load_task",
    "total_steps",
]
