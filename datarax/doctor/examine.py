"""Which checks there are, in which order, and what each needs of the others.

Everything is as a launch would do it, but for what it would leave behind: no lock, no start, no build, no snapshot.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datarax.checkpoint import Change, Snapshot, list_steps
from datarax.checkpoint.layout import local_directory
from datarax.core.errors import InputError
from datarax.doctor import batches, code, data, devices, disk, model, run
from datarax.doctor.checks import Checklist, Finding, Report
from datarax.loader import DataLoader
from datarax.run_config import RunConfig, apply_environment, batch_sharding, build_loader, load_config
from datarax.sources import DataSource
from datarax.training import LOADER_NAME

_MAKE_READABLE = "make the run readable for this user, or use another run.directory"


def examine(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    run_directory: str | Path | None = None,
    steps: int = 1000,
    num_devices: int | None = None,
) -> Report:
    """Rehearses a launch.

    Args:
        config_path: the TOML file.
        overrides: `key=value` changes to it.
        run_directory: the run, if not `run.directory` of the config.
        steps: how many of the next steps have their files looked at.
        num_devices: devices of the launch, if it will not be here.

    Raises:
        InputError: if the config cannot be read or a number is below 1.
    """
    for name, value in (("--steps", steps), ("--devices", num_devices)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    report = Report(str(config_path))
    checklist = Checklist(report)
    config = _config(checklist, config_path, overrides, run_directory)
    if config is not None:
        report.directory = config.run.directory
        with ExitStack() as opened:
            _Examination(config, checklist, opened, steps, num_devices).make()
    return report


def _config(
    checklist: Checklist, path: str | Path, overrides: Sequence[str], directory: str | Path | None
) -> RunConfig | None:
    def look() -> Finding:
        try:
            config = load_config(path, overrides)
        except InputError as error:
            unreadable.append(error)
            raise
        if directory is not None:
            section = dataclasses.replace(config.run, directory=str(local_directory(directory)))
            config = dataclasses.replace(config, run=section)
        apply_environment(config)
        return Finding(found=str(path), value=config)

    unreadable: list[InputError] = []
    config = checklist.check(
        "config", look, otherwise="correct the file; docs/configuration.md lists every key"
    )
    if unreadable:
        raise unreadable[0]
    return config


class _Examination:
    """The checks of one config, in turn; what one opens, later ones use."""

    def __init__(
        self, config: RunConfig, checklist: Checklist, opened: ExitStack, steps: int, num_devices: int | None
    ) -> None:
        self._config = config
        self._check = checklist.check
        self._opened = opened
        self._steps = steps
        self._num_devices = num_devices
        self._directory = Path(config.run.directory)
        self._before_seconds = 0.0

    def make(self) -> None:
        """Makes all of them."""
        self._check("imports", lambda: code.imports(self._config), otherwise="correct the names")
        self._place_of_the_run()
        snapshot = self._snapshot()
        mesh = self._devices()
        source = self._data()
        loader = self._loader(source, mesh)
        left = self._continuation(loader, snapshot)
        self._files(source, snapshot)
        self._room(snapshot, mesh, left)
        self._surroundings(left)
        self._batches(loader, left)

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

    def _snapshot(self) -> Snapshot | None:
        return self._check_run("snapshot", lambda: run.newest_snapshot(self._config))

    def _check_run(self, name: str, look: Callable[[], Finding]) -> Any:
        return self._check(name, look, needs=["directory"], otherwise=_MAKE_READABLE)

    def _devices(self) -> Any:
        mesh = self._check(
            "mesh",
            lambda: devices.mesh(self._config, self._num_devices),
            otherwise="correct [mesh], or the environment that JAX starts with",
        )
        self._check(
            "processes",
            lambda: devices.processes(self._config, self._num_devices),
            otherwise="correct the environment that JAX starts with",
        )
        return mesh

    def _data(self) -> DataSource | None:
        started = time.perf_counter()
        source = self._check(
            "source",
            lambda: data.opened_source(self._config, self._opened),
            otherwise="make the data readable at this place, or correct [source]",
        )
        self._before_seconds += time.perf_counter() - started
        self._check("manifest", lambda: data.manifest(source), needs=["source"], otherwise="see 'source'")
        return source

    def _loader(self, source: Any, mesh: Any) -> DataLoader | None:
        def look() -> Finding:
            sharding = None if mesh is None else batch_sharding(self._config, mesh)
            loader = self._opened.enter_context(build_loader(self._config, source, sharding=sharding))
            stages = len(self._config.transforms)
            shown = (
                f"batches of {loader.schedule.batch_size:,} rows, order {self._config.loader.order.value}, "
            )
            shown += f"{stages} transform{'' if stages == 1 else 's'}"
            return Finding(found=shown, value=loader, details=loader.order.warnings())

        return self._check(
            "loader", look, needs=["imports", "source"], otherwise="correct [loader] or [[transforms]]"
        )

    def _continuation(self, loader: Any, snapshot: Snapshot | None) -> int | None:
        started = time.perf_counter()
        self._identity(loader, snapshot)
        if snapshot is not None:
            self._check(
                "restore",
                lambda: run.restored(self._config, loader, snapshot),
                needs=["loader", "identity"],
                otherwise="make the loader what it was, or go back to another snapshot",
            )
        self._before_seconds += time.perf_counter() - started
        return self._check(
            "steps",
            lambda: run.steps_left(self._config, loader, snapshot),
            needs=["snapshot", "loader"],
            otherwise="set run.steps or loader.num_epochs",
        )

    def _identity(self, loader: Any, snapshot: Snapshot | None) -> None:
        otherwise = "make every record readable; what cannot be fingerprinted needs a version"
        if loader is None and snapshot is not None:
            look, needs = (lambda: run.identity_without_source(self._config, snapshot)), ["imports"]
        else:
            look, needs = (lambda: run.identity(self._config, loader, snapshot)), ["snapshot", "loader"]
        self._check("identity", look, needs=needs, otherwise=otherwise)

    def _files(self, source: DataSource | None, snapshot: Snapshot | None) -> None:
        def look() -> Finding:
            return data.files(
                self._config,
                source,
                self._recorded_source(snapshot),
                start=run.start_of(snapshot),
                steps=self._steps,
            )

        self._check("files", look, needs=["snapshot"], otherwise="see 'source' and 'loader'")

    def _recorded_source(self, snapshot: Snapshot | None) -> Any:
        """What the run says of its source, unless that may change."""
        name = self._config.source.name
        policy = self._config.resume.policy()
        if snapshot is None or policy.of(f"{LOADER_NAME}.sources.{name}") is not Change.REFUSE:
            return None
        return snapshot.identity[LOADER_NAME]["sources"].get(name)

    def _room(self, snapshot: Snapshot | None, mesh: Any, left: int | None) -> None:
        model_bytes = self._check(
            "model",
            lambda: model.model(self._config, snapshot, mesh),
            needs=["imports"],
            otherwise="correct the task",
        )

        def look() -> Finding:
            committed = len(list_steps(self._directory))
            steps = self._steps if left is None else left
            wanted = disk.need(self._config.save, snapshot, model_bytes or 0, committed=committed, left=steps)
            return disk.space(self._above, wanted, self._config.save)

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
        self._check("saves", lambda: run.saves(self._config, left or 0), otherwise="correct [save]")
        self._check_run("versions", lambda: run.versions(self._directory))
        self._check_run("cpu threads", lambda: run.cpu_threads(self._config))

    def _batches(self, loader: Any, left: int | None) -> None:
        self._check(
            "batches",
            lambda: batches.first_batches(
                loader, left=self._steps if left is None else left, before_seconds=self._before_seconds
            ),
            needs=["loader"],
            otherwise="see the notes",
        )
