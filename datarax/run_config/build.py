"""From a config to what it describes: mesh, loader or Grain pipeline, session."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from datarax.checkpoint.protocols import BatchStream
from datarax.core.config import to_tree
from datarax.core.errors import ConfigError
from datarax.grain_pipeline import GrainPipeline, load_grain_pipeline
from datarax.loader import DataLoader
from datarax.multihost import Processes
from datarax.run_config.config import BaseRunConfig, GrainRunConfig, MeshSection, RunConfig
from datarax.sources import DataSource
from datarax.sources.open import open_source
from datarax.training import TrainingSession, load_task
from datarax.transforms.load import load_transforms
from datarax.trust import load_attribute


def apply_environment(config: BaseRunConfig) -> None:
    """Sets what must stand in the environment before JAX starts its backend."""
    if config.run.cpu_threads is not None:
        os.environ["NPROC"] = str(config.run.cpu_threads)


def build_mesh(config: BaseRunConfig, processes: Processes | None = None) -> jax.sharding.Mesh | None:
    """The mesh that a config describes over the devices of all processes; None if it describes none and there is one process.

    Raises:
        ConfigError: if its axes do not fit the number of devices.
    """
    if config.mesh is None and (processes or Processes()).count == 1:
        return None
    sizes = mesh_sizes(config.mesh or MeshSection(), jax.device_count())
    kinds = (jax.sharding.AxisType.Auto,) * len(
        sizes
    )  # the compiler splits the model's work, as most tasks expect
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def mesh_sizes(section: MeshSection, devices: int) -> dict[str, int]:
    """The size of each axis over this many devices.

    Raises:
        ConfigError: if the axes do not fit them.
    """
    fixed = math.prod(size for size in section.axes.values() if size != -1)
    sizes = {name: devices // fixed if size == -1 else size for name, size in section.axes.items()}
    if math.prod(sizes.values()) != devices:
        shown = ", ".join(f"{name} = {size}" for name, size in section.axes.items())
        raise ConfigError(
            f"mesh.axes ({shown}) does not fit {devices} devices; their product must be that number"
        )
    return sizes


def batch_sharding(
    config: BaseRunConfig, mesh: jax.sharding.Mesh | None
) -> jax.sharding.NamedSharding | None:
    """The sharding of a batch over a mesh: rows over the batch axes, all else whole. None without a mesh."""
    if mesh is None:
        return None
    axes = (config.mesh or MeshSection()).batch_axes
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(tuple(axes) or None))


def named_code(config: BaseRunConfig) -> list[tuple[str, str]]:
    """The key of everything that a config calls by name, and what stands there."""
    named: dict[str, str | None] = {}
    if isinstance(config, GrainRunConfig):
        named["grain_pipeline.use"] = config.grain_pipeline.use
    if isinstance(config, RunConfig):
        named["source.use"] = config.source.settings.get("use")
        named |= {f"transforms.{i}.use": section.use for i, section in enumerate(config.transforms)}
        named["batch_stats_fn"] = config.batch_stats_fn
    if config.task is not None:
        named["task.use"] = config.task.use
    return [(key, use) for key, use in named.items() if use is not None]


def build_loader(config: RunConfig, source: DataSource, **placement: Any) -> DataLoader:
    """The loader that a config describes, over an opened source.

    Args:
        config: the run.
        source: its source, already open.
        placement: `sharding` and `rows`, handed on to the loader.

    Raises:
        ConfigError: if a setting does not fit the source or a transform cannot be loaded.
    """
    loader_config = config.loader
    if config.batch_stats_fn is not None:
        function = load_attribute(config.batch_stats_fn, "batch_stats_fn")
        if not callable(function):
            raise ConfigError(
                f"batch_stats_fn = {config.batch_stats_fn!r} is a {type(function).__name__}, not a function"
            )
        loader_config = dataclasses.replace(loader_config, batch_stats_fn=function)
    return DataLoader(
        loader_config,
        source,
        transforms=load_transforms(transform_settings(config)),
        identity_packages=config.identity.packages,
        name="train",
        **placement,
    )


@contextlib.contextmanager
def open_loader(
    config: RunConfig,
    *,
    build: bool = False,
    check: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **placement: Any,
) -> Iterator[DataLoader]:
    """The loader that a config describes, over its source; both are closed at the end.

    Args:
        config: the run.
        build: make the data first if they are missing and the config says how; if they are there, check that they are these.
        check: only check it.
        say: told about it, a line at a time.
        placement: handed on to `build_loader`.

    Raises:
        ConfigError: if the config does not fit its source.
        InputError: if data are missing, empty or malformed.
        BuildError: if building fails on the way.
    """
    with (
        open_source(config.source, build=build, check=check, say=say) as source,
        build_loader(config, source, **placement) as loader,
    ):
        yield loader


def transform_settings(config: RunConfig) -> list[dict[str, Any]]:
    """What `load_transforms` makes the stages of a config from, here or in another process."""
    return [{**to_tree(section), "parameters": dict(section.parameters)} for section in config.transforms]


def build_grain_pipeline(
    config: GrainRunConfig, *, process_index: int = 0, process_count: int = 1
) -> GrainPipeline:
    """The Grain pipeline that a config names, as one of the run's processes has it.

    Raises:
        ConfigError: if it cannot be made or described, or is one that Grain cannot resume; says which stage and why.
    """
    table = config.grain_pipeline
    return load_grain_pipeline(
        table.use,
        table.parameters,
        table.name,
        table.version,
        process_index,
        process_count,
        impure=table.impure,
        identity_packages=config.identity.packages,
    )


def build_session(config: BaseRunConfig, loader: BatchStream, **output: Any) -> TrainingSession:
    """The session that a config describes; `output` is handed on (`stream`, `mesh`, `processes`).

    Raises:
        ConfigError: if the task cannot be loaded or nothing says when the run ends.
    """
    task = config.task
    return TrainingSession(
        config.run.directory,
        loader=loader,
        task=load_task(task.use) if task else None,
        parameters=task.parameters if task else None,
        steps=config.run.steps,
        save=config.save,
        resume=config.resume,
        log=config.log,
        on_nonfinite=config.run.on_nonfinite,
        config_text=config.to_toml(),
        **output,
    )
