"""A config, and the steps of a launch that its kind of run has.

Everything is as a launch would do it, but for what it would leave behind: no lock, no start, no build, no snapshot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from datarax.checkpoint.layout import local_directory
from datarax.core.errors import InputError
from datarax.doctor import batches, data, grain, machine, model, place, run
from datarax.doctor.rehearsal import Finding, Rehearsal, Report, Step, raised
from datarax.run_config import AnyRunConfig, GrainRunConfig, apply_environment, load_any_config

_MAKE_READABLE = "make the run readable for this user, or use another run.directory"
_FINGERPRINT = "make every record readable; what cannot be fingerprinted needs a version"

_BEFORE = (
    Step("imports", machine.imports, "correct the names"),
    Step("directory", place.run_directory, _MAKE_READABLE),
    Step(
        "writing",
        place.writing,
        "let this user write there, or use another run.directory; its file system must have locks (flock)",
        ["directory"],
    ),
    Step("writer", place.writer, _MAKE_READABLE, ["directory"]),
    Step("leftovers", place.leftovers, _MAKE_READABLE, ["directory"]),
    Step("snapshot", run.newest_snapshot, _MAKE_READABLE, ["directory"]),
    Step("mesh", machine.mesh, "correct [mesh], or the environment that JAX starts with"),
)
_SOURCE = (
    Step("processes", machine.processes, "correct the environment that JAX starts with"),
    Step("source", data.opened_source, "make the data readable at this place, or correct [source]"),
    Step(
        "manifest",
        data.manifest,
        "move these files elsewhere, record all files, or set source.unlisted",
        ["source", "directory"],
    ),
    Step("loader", data.loader, "correct [loader] or [[transforms]]", ["imports", "source"]),
    Step("identity", run.identity_of_loader, _FINGERPRINT, ["snapshot", "imports"]),
    Step("restore", run.restored_loader, "make the loader what it was, or go back to another snapshot"),
    Step("steps", run.steps_left, "set run.steps or loader.num_epochs", ["snapshot", "loader"]),
    Step("files", data.files, "see 'source' and 'loader'", ["snapshot"]),
)
_GRAIN = (
    Step(
        "pipeline",
        grain.pipeline,
        "correct the function that [grain_pipeline] names, or its parameters",
        ["imports"],
    ),
    Step("identity", run.identity, _FINGERPRINT, ["snapshot", "pipeline"]),
    Step("restore", grain.restored, "make the pipeline what it was, or go back to another snapshot"),
    Step("steps", run.steps_left, "set run.steps", ["snapshot", "pipeline"]),
    Step("files", grain.files, "see 'pipeline'"),
)
_AFTER = (
    Step("model", model.model, "correct the task", ["imports"]),
    Step("space", place.space, "see 'directory'", ["directory"]),
    Step("clock", place.clock, "set the clocks", ["writing"]),
    Step("saves", run.saves, "correct [save]"),
    Step("versions", run.versions, _MAKE_READABLE, ["directory"]),
    Step("cpu threads", run.cpu_threads, _MAKE_READABLE, ["directory"]),
    Step("batches", batches.first_batches, "see the notes"),
)
_TRANSFORMS = Step(
    "transforms", batches.steady_transforms, "correct the transform that is named", ["loader", "batches"]
)


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
    try:
        config = _config(config_path, overrides, run_directory)
    except InputError:
        raise
    except Exception as error:
        finding = raised(error, "correct the file; docs/configuration.md lists every key")
        report.checks.append(dataclasses.replace(finding, name="config"))
        return report
    report.checks.append(Finding(name="config", found=str(config_path)))
    report.directory = config.run.directory
    with ExitStack() as opened:
        rehearsal = Rehearsal(config, report, opened, num_steps=steps, num_devices=num_devices)
        if isinstance(config, GrainRunConfig):
            rehearsal.make([*_BEFORE, *_GRAIN, *_AFTER])
        else:
            rehearsal.make([*_BEFORE, *_SOURCE, *_AFTER, _TRANSFORMS])
    return report


def _config(path: str | Path, overrides: Sequence[str], directory: str | Path | None) -> AnyRunConfig:
    config = load_any_config(path, overrides)
    if directory is not None:
        section = dataclasses.replace(config.run, directory=str(local_directory(directory)))
        config = dataclasses.replace(config, run=section)
    apply_environment(config)
    return config
