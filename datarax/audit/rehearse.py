"""`datarax doctor`: a rehearsal before a costly launch: everything that it would stumble over, told at once.

A config, and the steps of a launch that its kind of run has. Everything is as a launch would do it, but for what it would leave
behind: no lock, no start, no build, no snapshot. What the steps mean to a user is in `docs/doctor.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from datarax.audit import rehearse_data as data
from datarax.audit import rehearse_place as place
from datarax.audit import rehearse_run as run
from datarax.audit.rehearsal import Finding, Rehearsal, Step, raised
from datarax.checkpoint.layout import local_directory
from datarax.core.errors import InputError
from datarax.run_config import GrainRunConfig, apply_environment, load_any_config

_READABLE = "make the run readable for this user, or use another run.directory"
_FINGERPRINT = "make every record readable; what cannot be fingerprinted needs a version"

_BEFORE = (
    Step("imports", place.imports, "correct the names"),
    Step("directory", place.run_directory, _READABLE),
    Step(
        "writing",
        place.writing,
        "let this user write there, or use another run.directory; its file system must have locks (flock)",
        ["directory"],
    ),
    Step("writer", place.writer, _READABLE, ["directory"]),
    Step("leftovers", place.leftovers, _READABLE, ["directory"]),
    Step("snapshot", run.newest_snapshot, _READABLE, ["directory"]),
    Step("mesh", place.mesh, "correct [mesh], or the environment that JAX starts with"),
)
_SOURCE = (
    Step("processes", place.processes, "correct the environment that JAX starts with"),
    Step("source", data.opened_source, "make the data readable at this place, or correct [source]"),
    Step(
        "manifest",
        data.manifest,
        "move these files elsewhere, record all files, or set source.unlisted",
        ["source", "directory"],
    ),
    Step("loader", data.loader, "correct [loader] or [[transforms]]", ["imports", "source"]),
)
_PIPELINE = Step(
    "pipeline",
    data.pipeline,
    "correct the function that [grain_pipeline] names, or its parameters",
    ["imports"],
)
_AFTER = (
    Step("identity", run.identity, _FINGERPRINT, ["snapshot", "imports"]),
    Step("restore", run.restored, "make the batches what they were, or go back to another snapshot"),
    Step("steps", run.steps_left, "say when the run ends", ["snapshot", "loader", "pipeline"]),
    Step("files", data.files, "see 'source' and 'loader'", ["snapshot"]),
    Step("model", run.model, "correct the task", ["imports"]),
    Step("space", place.space, "see 'directory'", ["directory"]),
    Step("clock", place.clock, "set the clocks", ["writing"]),
    Step("saves", run.saves, "correct [save]"),
    Step("versions", run.versions, _READABLE, ["directory"]),
    Step("cpu threads", run.cpu_threads, _READABLE, ["directory", "versions"]),
    Step("batches", data.first_batches, "see the notes", ["loader", "pipeline"]),
)
_TRANSFORMS = Step(
    "transforms", data.steady_transforms, "correct the transform that is named", ["loader", "batches"]
)


def rehearse(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    run_directory: str | Path | None = None,
    steps: int = 1000,
    num_devices: int | None = None,
) -> Rehearsal:
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
    with ExitStack() as opened:
        rehearsal = Rehearsal(str(config_path), opened, steps, num_devices)
        try:
            config = load_any_config(config_path, overrides)
            if run_directory is not None:
                section = dataclasses.replace(config.run, directory=str(local_directory(run_directory)))
                config = dataclasses.replace(config, run=section)
        except InputError:
            raise
        except Exception as error:
            rehearsal.checks["config"] = raised(
                error, "correct the file; docs/configuration.md lists every key"
            )
            return rehearsal
        apply_environment(config)
        rehearsal.config = config
        rehearsal.checks["config"] = Finding(found=str(config_path))
        if isinstance(config, GrainRunConfig):
            rehearsal.make([*_BEFORE, _PIPELINE, *_AFTER])
        else:
            rehearsal.make([*_BEFORE, *_SOURCE, *_AFTER, _TRANSFORMS])
    return rehearsal


__all__ = ["rehearse"]
