"""The `[source]` table of a run config: a kind and its settings, and how it becomes an open source.

A kind is a line of `KINDS` and one file. Its config class says which settings there are and opens its source; its
module is imported when somebody asks for either, never when a stored config is read. Read next: `range.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from datarax.core.config import REST, DataraxModuleConfig, from_tree, to_tree
from datarax.core.errors import ConfigError
from datarax.sources.source import DataSource, SourceConfig
from datarax.trust import load_attribute

KINDS = {
    "array_record": "datarax.sources.array_record:ArrayRecordConfig",
    "tensorstore": "datarax.sources.tensorstore:TensorStoreConfig",
    "range": "datarax.sources.range:RangeConfig",
    "memory": "datarax.sources.objects:NamedMemoryConfig",
    "grain": "datarax.sources.objects:NamedGrainConfig",
}
"""kind -> `module:Class` of its config."""


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """The `[source]` table.

    Raises:
        ConfigError: if there is no such kind.
    """

    kind: str
    """Where records come from; decides which other keys there may be."""
    settings: Mapping[str, Any] = field(default_factory=dict, metadata=REST)
    """All other keys, which are the kind's."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"source.kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")
        # The digest of a kept config is in every record, so what stood in all of them stands there for ever.
        known = {"name": SourceConfig.name, **self.settings}
        object.__setattr__(self, "settings", {**known, "parameters": known.get("parameters", {})})

    @property
    def name(self) -> str:
        """The source's name."""
        return str(self.settings["name"])

    def config(self) -> SourceConfig:
        """The kind's own config.

        Raises:
            ConfigError: if a key belongs to another kind, one is missing, or a value is wrong.
        """
        config_class = load_attribute(KINDS[self.kind], "source.kind")
        keys = set(setting_names(config_class))
        for key, value in self.settings.items():
            # An empty table says nothing: configs were once kept with a `parameters` that belongs to some kinds only.
            if key not in keys and value != {}:
                raise ConfigError(
                    f"[source] {key} does not belong to kind = {self.kind!r}, which takes {', '.join(sorted({*keys, 'kind'}))}"
                )
        settings = {key: value for key, value in self.settings.items() if key in keys}
        return from_tree(config_class, settings, "source")

    def resolved(self) -> Self:
        """With the kind's settings checked and absolute paths.

        Raises:
            ConfigError: if a key or value is wrong.
            InputError: if a path is empty or not local.
        """
        config = self.config().resolved()
        keys = [key for key in setting_names(type(config)) if key in self.settings]
        settings = {key: to_tree(getattr(config, key)) for key in keys}
        return dataclasses.replace(self, settings={"name": config.name, **settings})


def setting_names(config_class: type[SourceConfig]) -> list[str]:
    """The keys of a kind in the `[source]` table, in the order of its fields: what is not set from Python only."""
    python_only = {each.name for each in dataclasses.fields(DataraxModuleConfig)}
    return [each.name for each in dataclasses.fields(config_class) if each.name not in python_only]


def open_source(
    table: SourceTable,
    *,
    build: bool = False,
    check: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> DataSource:
    """Opens the source that a config describes.

    Args:
        table: the `[source]` table.
        build: make the data first if they are missing and the table says how; if they are there, check that they are these.
        check: only check it.
        say: told about it, a line at a time.

    Raises:
        ConfigError: if the table does not describe a source.
        InputError: if data are missing, empty or malformed.
        BuildError: if building fails on the way.
    """
    config = table.config()
    if build:
        config.prepare(say)
    elif check:
        config.check_prepared(say)
    return config.open()
