"""The training session: restore, loop, save, leave. The only place where loader and checkpoints meet."""

from datarax.training.metrics import NonFiniteError
from datarax.training.progress import LogConfig
from datarax.training.recorded import LOADER_NAME
from datarax.training.resume import ResumeConfig, total_steps
from datarax.training.session import Outcome, TrainingSession
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
