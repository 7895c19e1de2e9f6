"""The checks of a run over a source of records: its devices, its data, its loader."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from datarax.checkpoint import Change, Snapshot, list_steps
from datarax.checkpoint.protocols import BatchStream
from datarax.doctor import batches, data, devices, run
from datarax.doctor.checks import Checklist, Finding
from datarax.doctor.examination import Examination
from datarax.run_config import RunConfig, batch_sharding, build_loader
from datarax.training import LOADER_NAME

_MOST_BATCHES = 100


class SourceExamination(Examination):
    """See `Examination`."""

    _stream_check = "loader"
    _ends = "run.steps or loader.num_epochs"

    def __init__(
        self,
        config: RunConfig,
        checklist: Checklist,
        opened: ExitStack,
        steps: int,
        num_devices: int | None,
    ) -> None:
        super().__init__(config, checklist, opened, steps, num_devices)
        self._config = config

    def _devices(self) -> Any:
        mesh = self._check(
            "mesh",
            lambda: devices.mesh(self._config, self._num_devices, self._config.loader.batch_size),
            otherwise="correct [mesh], or the environment that JAX starts with",
        )
        self._check(
            "processes",
            lambda: devices.processes(self._config, self._num_devices),
            otherwise="correct the environment that JAX starts with",
        )
        return mesh

    def _stream(self, mesh: Any) -> Any:
        started = time.perf_counter()
        self._source = self._check(
            "source",
            lambda: data.opened_source(self._config, self._opened),
            otherwise="make the data readable at this place, or correct [source]",
        )
        self._before_seconds += time.perf_counter() - started
        self._check(
            "manifest",
            lambda: data.manifest(self._source, new=not list_steps(self._directory)),
            needs=["source", "directory"],
            otherwise="move these files elsewhere, record all files, or set source.unlisted",
        )
        return self._check(
            "loader",
            lambda: self._loader(mesh),
            needs=["imports", "source"],
            otherwise="correct [loader] or [[transforms]]",
        )

    def _loader(self, mesh: Any) -> Finding:
        sharding = None if mesh is None else batch_sharding(self._config, mesh)
        loader = self._opened.enter_context(build_loader(self._config, self._source, sharding=sharding))
        stages = len(self._config.transforms)
        shown = (
            f"batches of {loader.timeline.last.batch_size:,} rows, order {self._config.loader.order.value}, "
        )
        shown += f"{stages} transform{'' if stages == 1 else 's'}"
        return Finding(found=shown, value=loader, details=loader.order.warnings())

    def _identity(self, stream: Any, snapshot: Snapshot | None) -> None:
        otherwise = "make every record readable; what cannot be fingerprinted needs a version"
        if stream is None and snapshot is not None:
            look, needs = (lambda: run.identity_without_source(self._config, snapshot)), ["imports"]
        else:
            look, needs = (lambda: run.identity(self._config, stream, snapshot)), ["snapshot", "loader"]
        self._check("identity", look, needs=needs, otherwise=otherwise)

    def _restore(self, stream: Any, snapshot: Snapshot) -> None:
        def place() -> str:
            return f"the loader continues at step {snapshot.step:,}, row {stream.position.get_value():,}"

        self._check(
            "restore",
            lambda: run.restored(self._config, stream, snapshot, place=place),
            needs=["loader", "identity"],
            otherwise="make the loader what it was, or go back to another snapshot",
        )

    def _files(self, snapshot: Snapshot | None) -> None:
        def look() -> Finding:
            return data.files(
                self._config,
                self._source,
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

    def _first_batches(self, stream: BatchStream, left: int | None) -> Finding:
        return batches.first_batches(
            stream,
            left=left,
            before_seconds=self._before_seconds,
            most=_MOST_BATCHES,
            made_ahead=self._config.loader.read_ahead + 1,
            called="batches",
        )
