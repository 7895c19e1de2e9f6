"""A run of many snapshots, made without a save for each: what a long run looks like to whoever reads it."""

import dataclasses

from datarax.checkpoint import Snapshot
from datarax.checkpoint.layout import COMMIT_MARK_NAME, DATA_ITEM, STEPS_NAME, sha256_hex
from datarax.checkpoint.manifest import FileEntry
from datarax.checkpoint.record import StepRange, pack_steps
from datarax.cli.main import main
from datarax.run_config import load_config, open_loader

_CONFIG = """
[run]
directory = "{directory}/run"
steps = {steps}
[source]
kind = "range"
stop = 1000
[loader]
batch_size = 4
[save]
every_steps = {every}
"""


def run_of_snapshots(directory, snapshots, *, every=1):
    """The run directory. The run itself saved the first two snapshots; the others are written as they would have been."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(directory=directory, steps=snapshots * every, every=every))
    run = directory / "run"
    assert main(["run", str(config), "--set", f"run.steps={2 * every}"]) == 0
    made = Snapshot.open(run, 2 * every)
    with open_loader(load_config(str(config), [])) as loader:
        for step in range(1, snapshots * every + 1):
            next(loader)
            if step % every == 0:
                if step > 2 * every:
                    _write(run, made, step, loader)
                loader.committed(step)
    return run


def _write(run, made, step, loader):
    first, keys, row_bytes, has_bytes = loader.take_step_digests()
    part = dataclasses.replace(
        made.record.loaders["train"],
        state={key: value for key, value in loader.get_state().items() if key not in ("identity", "part")},
        digest=loader.digest.to_state(),
        steps=StepRange(first_step=first, count=len(keys), has_bytes=has_bytes, offset=0),
    )
    record = dataclasses.replace(made.record, step=step, previous=first, loaders={"train": part})
    files = {
        **record.to_files(),
        STEPS_NAME: pack_steps([(keys, row_bytes)]),
        COMMIT_MARK_NAME: b"",
    }
    data = run / str(step) / DATA_ITEM
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name).write_bytes(content)
    sums = {name: FileEntry(len(content), sha256_hex(content)) for name, content in files.items()}
    manifest = dataclasses.replace(made.manifest, step=step, items={DATA_ITEM: sums})
    (run / str(step) / "manifest.json").write_bytes(manifest.to_bytes())
