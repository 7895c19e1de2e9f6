"""A config, and the checks that its kind of run has.

Everything is as a launch would do it, but for what it would leave behind: no lock, no start, no build, no snapshot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from datarax.checkpoint.layout import local_directory
from datarax.core.errors import InputError
from datarax.doctor.checks import Checklist, Finding, Report
from datarax.doctor.examination import Examination
from datarax.doctor.grain_run import GrainExamination
from datarax.doctor.source_run import SourceExamination
from datarax.run_config import AnyRunConfig, GrainRunConfig, apply_environment, load_any_config


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
            _examination(config, checklist, opened, steps, num_devices).make()
    return report


def _examination(
    config: AnyRunConfig, checklist: Checklist, opened: ExitStack, steps: int, num_devices: int | None
) -> Examination:
    if isinstance(config, GrainRunConfig):
        return GrainExamination(config, checklist, opened, steps, num_devices)
    return SourceExamination(config, checklist, opened, steps, num_devices)


def _config(
    checklist: Checklist, path: str | Path, overrides: Sequence[str], directory: str | Path | None
) -> AnyRunConfig | None:
    def look() -> Finding:
        try:
            config = load_any_config(path, overrides)
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
