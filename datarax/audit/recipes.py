"""From what a run keeps of its recipe to an open stream of batches; each config is built once, each source opened once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datarax.audit.records import neighbour_record
from datarax.audit.trust import TRUST_VARIABLE, distrusted
from datarax.checkpoint import read_config
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.protocols import BatchStream, is_addressable
from datarax.checkpoint.record import Record
from datarax.core.errors import ConfigError, InputError
from datarax.grain_pipeline.config import arguments_for
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
        self._overrides = overrides
        self._make_stream = make_stream
        self._opened = opened
        self._keys_only = keys_only
        self._trust = trust
        self.left_out: list[str] = []
        """What was not compared because it is not here, or is code."""
        self._stand_ins: list[DataSource] = []
        self._streams: dict[tuple[str, int, int], tuple[BatchStream, dict[str, Any]]] = {}
        self._sources: dict[str, DataSource | DataUnavailableError] = {}

    @property
    def stored(self) -> bool:
        """Whether all that is opened is what the run itself keeps, nothing of it asked for by the user."""
        return self._config is None and self._make_stream is None and not self._overrides

    @property
    def sources(self) -> list[DataSource]:
        """Every source that was opened."""
        return [each for each in self._sources.values() if isinstance(each, DataSource)]

    @property
    def unavailable(self) -> list[str]:
        """Why other sources could not be."""
        return [str(each) for each in self._sources.values() if isinstance(each, DataUnavailableError)]

    def trains(self, record: Record) -> bool:
        """Whether the run of this record has a task, so that its snapshots hold a model."""
        if record.config is None or not RunLayout(self._directory).config(record.config).exists():
            return False
        return self._stored(record.config).task is not None

    @property
    def without_code(self) -> bool:
        """Whether nothing is imported that the run names, so that nothing is known of its stages."""
        return self._keys_only and self._config is None and self._make_stream is None

    def stands_in(self, stream: BatchStream) -> bool:
        """Whether a stream has no data of its own."""
        return is_addressable(stream) and any(stream.source is each for each in self._stand_ins)

    def streams(
        self, config_digest: str | None, process_count: int, recorded: Mapping[str, Any]
    ) -> list[BatchStream]:
        """The stream of the config with this digest, as it was when it was built, for each of the processes that saved it.

        With the overrides asked for. One alone stands for all processes where the state is global. `recorded` is the identity
        that was recorded, {} if it cannot be read.

        Raises:
            InputError: if the run keeps no such config, or the data that the user named here cannot be opened.
            ConfigError: if the stream cannot be made so often.
            DataUnavailableError: if the data of a stored config cannot be opened.
        """
        key = "" if self._config is not None or self._make_stream is not None else config_digest or ""
        return [
            self._stream(key, config_digest, index, process_count, recorded) for index in range(process_count)
        ]

    def _stream(
        self, key: str, config_digest: str | None, index: int, count: int, recorded: Mapping[str, Any]
    ) -> BatchStream:
        place = (key, index, count)
        if place not in self._streams:
            stream = self._built(config_digest, index, count, recorded)
            self._opened.callback(stream.close)
            self._streams[place] = (stream, stream.get_state())
        stream, initial = self._streams[place]
        stream.set_state(initial)
        return stream

    def _built(
        self, config_digest: str | None, index: int, count: int, recorded: Mapping[str, Any]
    ) -> BatchStream:
        if self._make_stream is not None:
            stream = self._make_stream(**self._place(self._make_stream, index, count))
            if is_addressable(stream):
                stream.keep_byte_digests()
            return stream
        config = self._config if self._config is not None else self._stored(config_digest, self._overrides)
        apply_environment(config)
        if isinstance(config, GrainRunConfig):
            if self._keys_only:
                raise no_keys(self._directory)
            self._check_trust(config, config_digest)
            return build_grain_pipeline(config, process_index=index, process_count=count)
        if self.without_code:
            config = self._with_data_only(config)
        self._check_trust(config, config_digest)
        # Digest all bytes again whatever the config says now: whether they were recorded is the snapshot's to say.
        # And make few batches ahead, however many the run had room for.
        loader = dataclasses.replace(
            config.loader, byte_digest=True, read_ahead=min(config.loader.read_ahead, _MOST_READ_AHEAD)
        )
        config = dataclasses.replace(config, loader=loader)
        return build_loader(config, self._source(config, config_digest, recorded))

    def _source(
        self, config: RunConfig, config_digest: str | None, recorded: Mapping[str, Any]
    ) -> DataSource:
        key = repr(config.source)  # a table holds mappings, which have no hash
        if key not in self._sources:
            if self.without_code and "use" in config.source.settings:
                return self._stand_in_for_code(config, recorded)
            try:
                self._sources[key] = self._opened.enter_context(open_source(config.source))
            except InputError as error:
                stand_in = self._stand_in(config, recorded)
                if stand_in is not None:
                    self._leave_out("the data are not here, so what they are was not compared")
                    return stand_in
                stored = None if config_digest is None else self._stored(config_digest)
                if not isinstance(stored, RunConfig) or stored.source != config.source:
                    raise
                self._sources[key] = DataUnavailableError(str(error))
        found = self._sources[key]
        if isinstance(found, DataUnavailableError):
            raise found
        return found

    def _check_trust(self, config: AnyRunConfig, digest: str | None) -> None:
        """Refuses to import what a stored config names, if others could have written it and the caller has not agreed."""
        if self._config is not None or self._trust:
            return
        named = [f"{key} = {use!r}" for key, use in named_code(config) if key != "task.use"]
        doubt = distrusted(self._directory, digest) if named and digest else None
        if doubt is not None:
            raise InputError(
                f"a replay would import and run what the config stored in {self._directory} names: {', '.join(named)}; but "
                f"{doubt}. Give --config FILE (a config of your own that describes the run), or --trust if you know who wrote "
                f"it, or put a directory above it into {TRUST_VARIABLE}; --fast imports nothing"
            )

    def _with_data_only(self, config: RunConfig) -> RunConfig:
        if config.transforms:
            self._leave_out("nothing was imported that the run names, so its transforms were not compared")
        return dataclasses.replace(config, transforms=(), batch_stats_fn=None)

    def _stand_in_for_code(self, config: RunConfig, recorded: Mapping[str, Any]) -> DataSource:
        stand_in = self._stand_in(config, recorded)
        if stand_in is None:
            raise DataUnavailableError(f"how many records source {config.source.name!r} has is not recorded")
        self._leave_out("nothing was imported that the run names, so its source was not compared")
        return stand_in

    def _leave_out(self, note: str) -> None:
        if note not in self.left_out:
            self.left_out.append(note)

    @staticmethod
    def _place(make: MakeStream, index: int, count: int) -> dict[str, Any]:
        try:
            return arguments_for(make, {}, index, count)
        except ConfigError as error:
            shown = getattr(make, "__qualname__", repr(make))
            raise ConfigError(
                f"--loader names {shown}, which must be a function without arguments, or with process_index and process_count "
                f"only, that returns the run's loader"
            ) from error

    def _stand_in(self, config: RunConfig, recorded: Mapping[str, Any]) -> DataSource | None:
        name = config.source.name
        if not self._keys_only:
            return None
        try:
            stop = recorded[LOADER_NAME]["sources"][name]["num_records"]
        except (KeyError, TypeError):
            return None
        source = RangeSource(RangeConfig(name=name, stop=stop))
        self._stand_ins.append(source)
        return source

    def _stored(self, config_digest: str | None, overrides: Sequence[str] = ()) -> AnyRunConfig:
        if config_digest is None:
            raise InputError(
                f"the run {self._directory} was made from Python and keeps no config; write one that describes it "
                f"and name it with --config, or name a function that makes its loader with --loader"
            )
        text = read_config(self._directory, config_digest)
        return parse_any_stored_config(text, overrides, where=f"configs/{config_digest[:12]}….toml")


def no_keys(directory: Path) -> InputError:
    """For a fast verification of what has no keys."""
    return InputError(
        f"{directory} was delivered by a Grain pipeline, which has no keys to compare: what an element holds shows only "
        f"when it is read. Leave out --fast"
    )


def usable_config(directory: Path, known: Sequence[int], step: int, record: Record) -> str | None:
    """The config that the record names; if the record is damaged and names none, that of its neighbour."""
    if record.config is None or RunLayout(directory).config(record.config).exists():
        return record.config
    other = neighbour_record(directory, known, step)
    return record.config if other is None else other.config


def recorded_identity(directory: Path, record: Record, present: Any) -> Any:
    """The identity that the record names. What is missing or damaged was reported already: then there is none to compare."""
    try:
        layout = RunLayout(directory)
        return parse_identity(layout.read(layout.identity(record.identity)))
    except (OSError, ValueError):
        return present


__all__ = ["DataUnavailableError", "MakeStream", "Recipes", "no_keys", "recorded_identity", "usable_config"]
