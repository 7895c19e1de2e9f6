"""From what a run keeps of its recipe to an open stream of batches; each config is built once, each source opened once.

Code that a run names is imported only if nobody but the caller and root could have named it: `docs/trust.md`.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from datarax.checkpoint import read_config
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.protocols import BatchStream, is_addressable
from datarax.checkpoint.record import Record
from datarax.core.errors import ConfigError, InputError, SnapshotDamagedError
from datarax.grain_pipeline.config import arguments_for
from datarax.loader.stream import Stream
from datarax.run_config import (
    AnyRunConfig,
    GrainRunConfig,
    RunConfig,
    apply_environment,
    build_grain_pipeline,
    build_loader,
    parse_any_stored_config,
)
from datarax.run_config.build import named_code
from datarax.sources import DataSource, RangeConfig, RangeSource
from datarax.sources.open import open_source
from datarax.training import LOADER_NAME

MakeStream = Callable[..., BatchStream]
"""Makes the stream of a run that keeps no config, at its beginning. If it has parameters named `process_index` and
`process_count`, it is told them."""

TRUST_VARIABLE = "DATARAX_TRUST"
"""Environment variable with directories, separated as in PATH, below which every run is trusted."""

_MOST_READ_AHEAD = 4


class DataUnavailableError(Exception):
    """The data of a stored config cannot be opened: a finding, reported once and not by each snapshot."""


class Recipes:
    """Streams as the stored configs describe them.

    Args:
        directory: the run.
        config: used instead of the stored configs.
        overrides: `key=value` changes to them.
        make_stream: makes the stream, instead of any config.
        opened: closes what is opened here.
        keys_only: no record will be read. Then no code that the run names is imported, and a range of as many numbers may stand
            in for data that are not here.
        trust: whether code that the run names may be imported although others could have written it.
    """

    def __init__(
        self,
        directory: Path,
        config: AnyRunConfig | None,
        overrides: Sequence[str],
        make_stream: MakeStream | None,
        opened: ExitStack,
        *,
        keys_only: bool = False,
        trust: bool = False,
    ) -> None:
        self._directory = directory
        self._config = config
        self._overrides = tuple(overrides)
        self._make_stream = make_stream
        self._opened = opened
        self._keys_only = keys_only
        self._trust = trust
        self._stored = lru_cache(maxsize=8)(self._parsed)  # of many snapshots it is the same
        self._of_the_run = config is None and make_stream is None
        self.stored = self._of_the_run and not overrides
        """Whether all that is opened is what the run itself keeps, nothing of it asked for by the user."""
        self._without_code = keys_only and self._of_the_run
        self.left_out: dict[str, str] = {}
        """What cannot be compared because it is not here, or is code: how fields of an identity begin -> a note."""
        self.sources: list[DataSource] = []
        """Every source that was opened."""
        self._streams: dict[tuple[str, int, int], tuple[BatchStream, dict[str, Any]]] = {}
        self._known_sources: dict[str, DataSource | DataUnavailableError] = {}

    @property
    def unavailable(self) -> list[str]:
        """Why some sources could not be opened."""
        known = self._known_sources.values()
        return [str(each) for each in known if isinstance(each, DataUnavailableError)]

    def trains(self, record: Record) -> bool:
        """Whether the run of this record has a task, so that its snapshots hold a model; not if its config cannot be read."""
        try:
            return record.config is not None and self._stored(record.config).task is not None
        except (SnapshotDamagedError, ConfigError):
            return False  # which is said elsewhere

    def streams(
        self, config_digest: str | None, process_count: int, recorded: Mapping[str, Any]
    ) -> list[BatchStream]:
        """The stream of the config with this digest, as it was when it was built, for each of the processes that saved it.

        With the overrides asked for. One alone stands for all processes where the state is global. `recorded` is the identity
        that was recorded, {} if it cannot be read.

        Raises:
            InputError: if the run keeps no such config, the data that the user named here cannot be opened, or there are no
                keys to compare.
            ConfigError: if the stream cannot be made so often.
            DataUnavailableError: if the data of a stored config cannot be opened.
        """
        key = (config_digest or "") if self._of_the_run else ""
        for index in range(process_count):
            place = (key, index, process_count)
            if place not in self._streams:
                stream = self._built(config_digest, index, process_count, recorded)
                self._opened.callback(stream.close)
                if isinstance(stream, Stream):
                    stream.leave_out_identity()  # it is compared field by field, and its data may not be here
                self._streams[place] = (stream, stream.get_state())
        made = [self._streams[key, index, process_count] for index in range(process_count)]
        for stream, initial in made:
            stream.set_state(initial)
        return [stream for stream, _ in made]

    def _built(
        self, config_digest: str | None, index: int, count: int, recorded: Mapping[str, Any]
    ) -> BatchStream:
        if self._make_stream is not None:
            return self._made(self._make_stream, index, count)
        config = self._config if self._config is not None else self._stored(config_digest, self._overrides)
        apply_environment(config)
        if isinstance(config, GrainRunConfig):
            if self._keys_only:
                raise self._no_keys()
            self._check_trust(config, config_digest)
            return build_grain_pipeline(config, process_index=index, process_count=count)
        if self._without_code:
            if config.transforms or config.batch_stats_fn is not None:
                note = "nothing was imported that the run names, so its transforms were not compared"
                self.left_out[f"{LOADER_NAME}.pipeline."] = note
            config = dataclasses.replace(config, transforms=(), batch_stats_fn=None)
        self._check_trust(config, config_digest)
        # Digest all bytes again whatever the config says now: whether they were recorded is the snapshot's to say.
        # And make few batches ahead, however many the run had room for.
        loader = dataclasses.replace(
            config.loader, byte_digest=True, read_ahead=min(config.loader.read_ahead, _MOST_READ_AHEAD)
        )
        config = dataclasses.replace(config, loader=loader)
        return build_loader(config, self._source(config, config_digest, recorded))

    def _made(self, make: MakeStream, index: int, count: int) -> BatchStream:
        try:
            topology = arguments_for(make, {}, index, count)
        except ConfigError as error:
            shown = getattr(make, "__qualname__", repr(make))
            raise ConfigError(
                f"--loader names {shown}, which must be a function without arguments, or with process_index and process_count "
                f"only, that returns the run's loader"
            ) from error
        stream = make(**topology)
        if is_addressable(stream):
            stream.keep_byte_digests()
        elif self._keys_only:
            raise self._no_keys()
        return stream

    def _no_keys(self) -> InputError:
        return InputError(
            f"{self._directory} was delivered by a Grain pipeline, which has no keys to compare: what an element holds shows "
            f"only when it is read. Leave out --fast"
        )

    def _source(
        self, config: RunConfig, config_digest: str | None, recorded: Mapping[str, Any]
    ) -> DataSource:
        name, key = config.source.name, repr(config.source)  # a table holds mappings, which have no hash
        if self._without_code and "use" in config.source.settings:
            note = "nothing was imported that the run names, so its source was not compared"
            stand_in = self._stand_in(name, recorded, note)
            if stand_in is None:
                raise DataUnavailableError(f"how many records source {name!r} has is not recorded")
            return stand_in
        if key not in self._known_sources:
            try:
                source = self._opened.enter_context(open_source(config.source))
                self.sources.append(source)
                self._known_sources[key] = source
            except InputError as error:
                note = "the data are not here, so what they are was not compared"
                stand_in = self._stand_in(name, recorded, note) if self._keys_only else None
                if stand_in is not None:
                    return stand_in
                stored = None if config_digest is None else self._stored(config_digest)
                if not isinstance(stored, RunConfig) or stored.source != config.source:
                    raise
                self._known_sources[key] = DataUnavailableError(str(error))
        known = self._known_sources[key]
        if isinstance(known, DataUnavailableError):
            raise known
        return known

    def _stand_in(self, name: str, recorded: Mapping[str, Any], note: str) -> DataSource | None:
        """A range of as many numbers as the source had records, if that is known."""
        try:
            stop = recorded[LOADER_NAME]["sources"][name]["num_records"]
        except (KeyError, TypeError):
            return None
        self.left_out[f"{LOADER_NAME}.sources.{name}."] = note
        return RangeSource(RangeConfig(name=name, stop=stop))

    def _check_trust(self, config: AnyRunConfig, digest: str | None) -> None:
        """Refuses to import what a stored config names, if others could have written it and the caller has not agreed."""
        if self._config is not None or self._trust:
            return
        named = [f"{key} = {use!r}" for key, use in named_code(config) if key != "task.use"]
        doubt = _distrusted(self._directory, digest) if named and digest else None
        if doubt is not None:
            raise InputError(
                f"a replay would import and run what the config stored in {self._directory} names: {', '.join(named)}; but "
                f"{doubt}. Give --config FILE (a config of your own that describes the run), or --trust if you know who wrote "
                f"it, or put a directory above it into {TRUST_VARIABLE}; --fast imports nothing"
            )

    def _parsed(self, config_digest: str | None, overrides: tuple[str, ...] = ()) -> AnyRunConfig:
        if config_digest is None:
            raise InputError(
                f"the run {self._directory} was made from Python and keeps no config; write one that describes it "
                f"and name it with --config, or name a function that makes its loader with --loader"
            )
        text = read_config(self._directory, config_digest)
        return parse_any_stored_config(text, overrides, where=f"configs/{config_digest[:12]}….toml")


def _distrusted(directory: Path, digest: str) -> str | None:
    """Why somebody else could have written the config of this digest that a run keeps; None if only the caller and root could.

    Raises:
        ConfigError: if the environment variable holds a path that is not absolute.
    """
    prefixes = [each for each in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if each]
    for prefix in prefixes:
        if not os.path.isabs(prefix):
            raise ConfigError(
                f"{TRUST_VARIABLE} must hold absolute paths, separated by {os.pathsep!r}, got {prefix!r}"
            )
    real = Path(os.path.realpath(directory))
    if {real, *real.parents} & {Path(os.path.realpath(prefix)) for prefix in prefixes}:
        return None
    config = RunLayout(real).config(digest)
    for path in (real, config.parent, config):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # what is missing is reported as such
        if status.st_uid not in (os.geteuid(), 0):
            return f"{path} belongs to another user (uid {status.st_uid})"
        if status.st_mode & stat.S_IWOTH:
            return f"everybody may write {path}"
    return None


__all__ = ["TRUST_VARIABLE", "DataUnavailableError", "MakeStream", "Recipes"]
