"""Which checks every run has, in which order, and what each needs of the others.

What depends on where the batches come from is left to one class for each kind of run: `source_run.py`, `grain_run.py`.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from datarax.checkpoint import Snapshot, list_steps
from datarax.checkpoint.protocols import BatchStream
from datarax.doctor import code, disk, model, run
from datarax.doctor.checks import Checklist, Finding
from datarax.run_config import BaseRunConfig
from datarax.run_config.build import named_code

_MAKE_READABLE = "make the run readable for this user, or use another run.directory"


class Examination(abc.ABC):
    """The checks of one config, in turn; what one opens, later ones use.

    Args:
        config: the run.
        checklist: takes what is found.
        opened: closes what is opened.
        steps: how many of the next steps are looked at.
        num_devices: devices of the launch, if it will not be here.
    """

    _stream_check: ClassVar[str]
    """Name of the check that gives the stream of batches."""
    _ends: ClassVar[str]
    """The keys of the config that say when the run ends."""

    def __init__(
        self,
        config: BaseRunConfig,
        checklist: Checklist,
        opened: ExitStack,
        steps: int,
        num_devices: int | None,
    ) -> None:
        self._base = config
        self._check = checklist.check
        self._opened = opened
        self._steps = steps
        self._num_devices = num_devices
        self._directory = Path(config.run.directory)
        self._before_seconds = 0.0

    def make(self) -> None:
        """Makes all of them."""
        self._check("imports", lambda: code.imports(named_code(self._base)), otherwise="correct the names")
        self._place_of_the_run()
        snapshot = self._check_run("snapshot", lambda: run.newest_snapshot(self._base))
        mesh = self._devices()
        stream = self._stream(mesh)
        left = self._continuation(stream, snapshot)
        self._files(snapshot)
        self._room(snapshot, mesh, left)
        self._surroundings(left)
        self._check(
            "batches",
            lambda: self._first_batches(stream, left),
            needs=[self._stream_check],
            otherwise="see the notes",
        )

    # What each kind of run says for itself.

    @abc.abstractmethod
    def _devices(self) -> Any:
        """Checks the devices; returns the mesh, if there is one here."""

    @abc.abstractmethod
    def _stream(self, mesh: Any) -> Any:
        """Checks the data; returns the stream of batches, None if there is none."""

    @abc.abstractmethod
    def _identity(self, stream: Any, snapshot: Snapshot | None) -> None:
        """Checks the identity."""

    @abc.abstractmethod
    def _restore(self, stream: Any, snapshot: Snapshot) -> None:
        """Checks that the stream's state can be put back, and puts it back."""

    @abc.abstractmethod
    def _files(self, snapshot: Snapshot | None) -> None:
        """Checks the files of the next steps."""

    @abc.abstractmethod
    def _first_batches(self, stream: BatchStream, left: int | None) -> Finding:
        """Takes the first batches."""

    # What is the same for all.

    def _place_of_the_run(self) -> None:
        self._above = self._check(
            "directory", lambda: disk.run_directory(self._directory), otherwise=_MAKE_READABLE
        )
        self._probed = self._check(
            "writing",
            lambda: disk.writing(self._directory, self._above),
            needs=["directory"],
            otherwise="let this user write there, or use another run.directory; its file system must have locks (flock)",
        )
        self._check_run("writer", lambda: run.writer(self._directory))
        self._check_run("leftovers", lambda: run.leftovers(self._directory))

    def _check_run(self, name: str, look: Callable[[], Finding]) -> Any:
        return self._check(name, look, needs=["directory"], otherwise=_MAKE_READABLE)

    def _continuation(self, stream: Any, snapshot: Snapshot | None) -> int | None:
        started = time.perf_counter()
        self._identity(stream, snapshot)
        if snapshot is not None:
            self._restore(stream, snapshot)
        self._before_seconds += time.perf_counter() - started
        return self._check(
            "steps",
            lambda: run.steps_left(self._base, stream, snapshot, ends=self._ends),
            needs=["snapshot", self._stream_check],
            otherwise=f"set {self._ends}",
        )

    def _room(self, snapshot: Snapshot | None, mesh: Any, left: int | None) -> None:
        model_bytes = self._check(
            "model",
            lambda: model.model(self._base, snapshot, mesh),
            needs=["imports"],
            otherwise="correct the task",
        )

        def look() -> Finding:
            committed = len(list_steps(self._directory))
            steps = self._steps if left is None else left
            wanted = disk.need(self._base.save, snapshot, model_bytes or 0, committed=committed, left=steps)
            return disk.space(self._above, wanted, self._base.save)

        # A snapshot says how large the next will be, whether or not the model can be looked at.
        needs = ["directory"] if snapshot is not None else ["directory", "model"]
        self._check("space", look, needs=needs, otherwise="see 'directory'")
        self._check(
            "clock",
            lambda: disk.clock(self._probed, snapshot),
            needs=["writing"],
            otherwise="set the clocks",
        )

    def _surroundings(self, left: int | None) -> None:
        self._check("saves", lambda: run.saves(self._base, left or 0), otherwise="correct [save]")
        self._check_run("versions", lambda: run.versions(self._directory))
        self._check_run("cpu threads", lambda: run.cpu_threads(self._base))
