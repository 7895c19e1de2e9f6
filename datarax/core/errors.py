"""The errors that datarax raises on purpose, and the exit code that each means on the command line.

Every error derives from `DataraxError` and from the builtin that a caller would expect. A message says what was
asked, what was found, where, and what to do. Errors of the user's own code are never wrapped in these.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class DataraxError(Exception):
    """Base of all errors that datarax raises on purpose."""

    exit_code = 70
    """What the command line exits with when this error ends a command."""


class _Refused(DataraxError):
    """What was asked for cannot be done as it was asked."""

    exit_code = 2


class _Unfit(DataraxError):
    """Two things that must be the same are not, or a thing is not what it was."""

    exit_code = 1


class _Failed(DataraxError):
    """Something outside of this process failed."""

    exit_code = 74


class ConfigError(_Refused, ValueError):
    """A setting is unknown, missing, of the wrong kind, or contradicts another; nothing has run."""


class InputError(_Refused, ValueError):
    """Data, a path or an argument that the user named cannot be used as it is; nothing has run."""


class RunLockedError(_Refused, RuntimeError):
    """Another process is writing to this run directory."""


class RunLostError(_Failed, OSError):
    """The run directory that this process was writing to is gone, or is another one by now."""


class SnapshotNotFoundError(_Refused, LookupError):
    """The run has no committed snapshot at the step that was asked for."""


@dataclass(frozen=True)
class Difference:
    """One field that differs between a recorded tree and the present one."""

    path: str
    """Dotted path of the field."""
    was: Any
    """The recorded value; `MISSING` if the field was absent."""
    now: Any
    """The present value; `MISSING` if the field is absent."""

    def __str__(self) -> str:
        return f"{self.path}: was {self.was!r}, is {self.now!r}"


class _Missing:
    """The value of a field that is absent on one side. A singleton, `MISSING`."""

    def __repr__(self) -> str:
        return "(absent)"


MISSING = _Missing()
"""In a `Difference`: there is no such field on this side."""


class MismatchError(_Unfit, ValueError):
    """A snapshot does not belong to this data, order, pipeline or model; nothing was changed.

    `advice` holds, for each of the `differences`, the nearest thing to do, or nothing.
    """

    def __init__(
        self, message: str, differences: Sequence[Difference] = (), advice: Sequence[str] = ()
    ) -> None:
        super().__init__("\n".join([message, *difference_lines(differences, advice)]))
        self.differences = tuple(differences)
        self.advice = tuple(advice)


def difference_lines(differences: Sequence[Difference | str], advice: Sequence[str] = ()) -> list[str]:
    """A line for each difference and below it, further in, what to do about it, if there is anything to say."""
    lines = []
    for i, difference in enumerate(differences):
        lines.append(f"  {difference}")
        if i < len(advice) and advice[i]:
            lines.append(f"    do: {advice[i]}")
    return lines


class SnapshotDamagedError(_Unfit, ValueError):
    """A committed snapshot fails its checks; nothing was changed.

    `problems` names each file or field that failed, `earlier_step` the committed step before (None if there is none), which
    was not looked at.
    """

    def __init__(self, message: str, *, step: int, problems: Sequence[str], earlier_step: int | None) -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]))
        self.step = step
        self.problems = tuple(problems)
        self.earlier_step = earlier_step


class SaveError(_Failed, OSError):
    """A snapshot could not be written."""


class PeerError(DataraxError, RuntimeError):
    """Something failed on one or more processes of a run, so all of them gave it up together; names each and what it said."""

    def __init__(self, message: str, *, exit_code: int = 70) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DisagreementError(_Unfit, RuntimeError):
    """The processes of a run hold different things where they must hold the same; nothing was done."""


class PeerLostError(_Failed, RuntimeError):
    """Another process of the run did not come in time; `missing` are those known to be absent."""

    def __init__(self, message: str, *, missing: Sequence[int]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class ReadError(_Failed, OSError):
    """Data that was readable at the start could not be read while running."""


SILENT_ENDS = (StopIteration, StopAsyncIteration, GeneratorExit)
"""What ends a loop, or whatever else asks for one thing after the other, as if there were no more."""


def tell_where(error: BaseException, where: str) -> None:
    """Notes on an error of the user's code where that was; to be called in `except`, before `raise`.

    Raises:
        RuntimeError: from the error, if it is one of `SILENT_ENDS`: as PEP 479 has it for generators.
    """
    if isinstance(error, SILENT_ENDS):
        raise silent_end(error, where) from error
    error.add_note(where)


@contextlib.contextmanager
def exits_are_errors() -> Iterator[None]:
    """Within it no code of the user's ends the process, or decides how it ends: a SystemExit is an error as any other.

    Raises:
        RuntimeError: from it, with its notes.
    """
    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        made = silent_end(error, "by code that is not datarax's")
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        raise made from error


def silent_end(error: BaseException, where: str) -> RuntimeError:
    """What to raise from an error that would pass for the end of the data."""
    return RuntimeError(f"{type(error).__name__} was raised {where}; it would have ended the loop in silence")
