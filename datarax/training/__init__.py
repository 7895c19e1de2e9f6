"""The training session: restore, loop, save, leave. The only place where loader and checkpoints meet."""

from datarax.training.finiteness import NonFiniteError as NonFiniteError
from datarax.training.recorded import LOADER_NAME as LOADER_NAME
from datarax.training.session import LogConfig as LogConfig
from datarax.training.session import Outcome as Outcome
from datarax.training.session import ResumeConfig as ResumeConfig
from datarax.training.session import TrainingSession as TrainingSession
from datarax.training.session import total_steps as total_steps
from datarax.training.task import Task as Task
from datarax.training.task import load_task as load_task

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
