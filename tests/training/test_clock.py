"""A wall clock that jumps by hours or years changes nothing: it is written down for people, and waits go by the other one."""

import ast
import itertools
import time
from pathlib import Path

import datarax
from datarax.audit.diff import diff_runs
from datarax.checkpoint import SaveConfig, list_steps
from tests.training.test_session import Mixed, session

PACKAGE = Path(datarax.__file__).parent

# Who may ask for the time of day, and what for.
LABELS = {
    "audit/rehearse_place.py": "whether clocks agree, and how old a file is, which only its time of day tells",
    "audit/proofs.py": "when something was proved",
    "checkpoint/lock.py": "when a start began",
    "checkpoint/retention.py": "when snapshots were set aside",
    "checkpoint/saver.py": "when a snapshot was written",
    "sources/build.py": "a name that no other build has",
    "transforms/source.py": "when this process began, beside which the time of a file is held",
    "training/moved_files.py": "when a first start began, beside which the times of its files are held",
    "training/progress.py": "when a report was made",
}


def test_a_run_under_a_clock_that_jumps_is_the_same_run(tmp_path, monkeypatch):
    session(tmp_path / "whole", save=SaveConfig(every_seconds=3600)).run()
    real, ahead = time.time, 0.0
    jumps = itertools.cycle([-7 * 3600.0, 10 * 365 * 86400.0, -real(), 0.0])
    monkeypatch.setattr(time, "time", lambda: real() + ahead)

    class Jumping(Mixed):
        def step(self, state, batch):
            nonlocal ahead
            ahead = next(jumps)
            return super().step(state, batch)

    for steps in (4, 10):
        session(tmp_path / "run", task=Jumping(), save=SaveConfig(every_seconds=3600), steps=steps).run()
    assert list_steps(tmp_path / "run") == [4, 10], "no save became due by a jump"
    assert diff_runs(tmp_path / "whole", tmp_path / "run").lines == []


def test_nobody_else_asks_for_the_time_of_day():
    asking = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns"), ("datetime", "now")}
    }
    assert asking == set(LABELS)
