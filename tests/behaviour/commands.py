"""Exit codes of the command line over a small finished run, and which keys `--json` prints."""

import contextlib
import io
import json
import shutil

from datarax.cli.main import main
from tests.support.runs import finish_run

CONFIG, RUN, DATA, PLACE = "{place}/config.toml", "{place}/run", "{place}/data", "{place}"
GRAIN_CONFIG, GRAIN_RUN = "{place}/grain.toml", "{place}/grain"
_SET = "--set"
_GRAIN = """
[run]
directory = "{place}/grain"
steps = 4
cpu_threads = 2
[task]
use = "tests.support.grain_task:task"
[grain_pipeline]
use = "tests.support.grain_task:finite"
[save]
every_steps = 2
"""

COMMANDS = {
    # Answers.
    "run again": ["run", CONFIG],
    "run on": ["run", CONFIG, _SET, "run.steps=13", _SET, f"run.directory={PLACE}/copy"],
    "run on, json": ["run", CONFIG, "--json", _SET, "run.steps=14", _SET, f"run.directory={PLACE}/copy"],
    "run of a changed seed": ["run", CONFIG, _SET, "run.steps=15", _SET, "loader.seed=6"],
    "run of fewer steps": ["run", CONFIG, _SET, "run.steps=3"],
    "run from a step": ["run", CONFIG, "--step", "13", _SET, f"run.directory={PLACE}/copy"],
    "run from a step that is gone": ["run", CONFIG, "--step", "4", _SET, f"run.directory={PLACE}/copy"],
    "run whose task fails": [
        *(
            "run",
            CONFIG,
            _SET,
            'task.use="tests.support.tiny:FailingTask"',
            _SET,
            f"run.directory={PLACE}/other",
        ),
    ],
    "run whose task cannot begin": [
        *(
            "run",
            CONFIG,
            _SET,
            'task.use="tests.support.tiny:FailingToBegin"',
            _SET,
            f"run.directory={PLACE}/none",
        ),
    ],
    "plan": ["plan", CONFIG],
    "plan, json": ["plan", CONFIG, "--json"],
    "plan of a changed batch size, json": ["plan", CONFIG, "--json", _SET, "loader.batch_size=4"],
    "plan of a new run, json": ["plan", CONFIG, "--json", _SET, f"run.directory={PLACE}/new"],
    "order of steps": ["order", CONFIG, "--steps", "0:3"],
    "order of steps, json": ["order", CONFIG, "--steps", "0:3", "--json"],
    "order of steps, csv": ["order", CONFIG, "--steps", "0:3", "--csv"],
    "order of the run, json": ["order", RUN, "--steps", "4:6", "--json"],
    "order finds a record, json": ["order", RUN, "--find", "text:17", "--json"],
    "order finds no record": ["order", RUN, "--find", "text:300"],
    "order finds no source": ["order", RUN, "--find", "words:17"],
    "order of no step": ["order", RUN, "--steps", "5:3"],
    "inspect": ["inspect", RUN],
    "inspect, json": ["inspect", RUN, "--json"],
    "inspect of a step, json": ["inspect", RUN, "--step", "8", "--json"],
    "inspect of no step": ["inspect", RUN, "--step", "9"],
    "inspect of a damaged step": ["inspect", f"{PLACE}/damaged"],
    "inspect of a damaged step, json": ["inspect", f"{PLACE}/damaged", "--json"],
    "diff of the same": ["diff", RUN, RUN],
    "diff of the same, json": ["diff", RUN, RUN, "--json"],
    "diff of two steps, json": ["diff", f"{RUN}/8", f"{RUN}/12", "--json"],
    "diff of a damaged step": ["diff", RUN, f"{PLACE}/damaged"],
    "verify": ["verify", RUN],
    "verify, json": ["verify", RUN, "--json"],
    "verify fast": ["verify", RUN, "--fast"],
    "verify of a damaged step, json": ["verify", f"{PLACE}/damaged", "--json"],
    "verify of another seed": ["verify", RUN, "--config", CONFIG, _SET, "loader.seed=6"],
    "doctor, json": ["doctor", CONFIG, "--json"],
    "doctor of a changed seed": ["doctor", CONFIG, _SET, "loader.seed=6"],
    "build": [
        *("build", "text", f"{PLACE}/text.txt", "--output", f"{PLACE}/built", "--record-bytes", "32"),
    ],
    "build again, json": [
        *(
            "build",
            "text",
            f"{PLACE}/text.txt",
            "--output",
            f"{PLACE}/built",
            "--record-bytes",
            "32",
            "--json",
        ),
    ],
    "build of other settings": [
        *("build", "text", f"{PLACE}/text.txt", "--output", f"{PLACE}/built", "--record-bytes", "64"),
    ],
    "build of a manifest, json": ["build", "manifest", f"{PLACE}/built/*.array_record", "--json"],
    "build of nothing": ["build", "text", f"{PLACE}/nothing.txt", "--output", f"{PLACE}/nothing"],
    # Of a Grain pipeline.
    "run of a Grain pipeline, json": ["run", GRAIN_CONFIG, "--json"],
    "plan of a Grain pipeline, json": ["plan", GRAIN_CONFIG, "--json"],
    "inspect of a Grain pipeline, json": ["inspect", GRAIN_RUN, "--json"],
    "verify of a Grain pipeline, json": ["verify", GRAIN_RUN, "--json"],
    "order of a Grain pipeline": ["order", GRAIN_RUN, "--steps", "0:3"],
    "run of another Grain pipeline": ["run", GRAIN_CONFIG, _SET, "grain_pipeline.name=other"],
    "run beyond the end of a Grain pipeline": ["run", GRAIN_CONFIG, _SET, "run.steps=6"],
    "run of a Grain pipeline that fails": [
        *("run", GRAIN_CONFIG, _SET, "grain_pipeline.use=tests.support.grain_task:failing"),
        *(_SET, f"run.directory={PLACE}/failing"),
    ],
    "run of a Grain pipeline that cannot resume": [
        *("run", GRAIN_CONFIG, _SET, "grain_pipeline.use=tests.support.grain_task:repeated_files"),
        *(_SET, f"run.directory={PLACE}/repeated"),
    ],
    # Wrong usage and input.
    "no command": [],
    "no such command": ["fly"],
    "run of nothing": ["run"],
    "no such option": ["run", CONFIG, "--sett", "a=b"],
    "help": ["--help"],
    "version": ["--version"],
    "no such config": ["run", f"{PLACE}/nothing.toml"],
    "no such key": ["run", CONFIG, _SET, "loader.nothing=1"],
    "no such table": ["plan", CONFIG, _SET, "nothing.batch_size=1"],
    "value of another kind": ["plan", CONFIG, _SET, 'loader.batch_size="many"'],
    "value out of range": ["plan", CONFIG, _SET, "loader.batch_size=0"],
    "batch larger than the source": ["plan", CONFIG, _SET, "loader.batch_size=301"],
    "no TOML": ["plan", f"{PLACE}/text.txt"],
    "no run": ["inspect", f"{PLACE}/nothing"],
    "verify of no run": ["verify", f"{PLACE}/nothing"],
    "diff of no run": ["diff", RUN, f"{PLACE}/nothing"],
    "no data": ["plan", CONFIG, _SET, f"source.files={PLACE}/nowhere"],
    "no such transform": ["plan", CONFIG, _SET, 'transforms=[{use="tests.nothing:transform"}]'],
    "remote directory": ["run", CONFIG, _SET, 'run.directory="gs://bucket/run"'],
    "chaos of no kills": ["chaos", CONFIG, "--kills", "0"],
}


def facts(place):
    """Command -> exit code and keys of its JSON; command -> first line of what it says on stderr."""
    with contextlib.redirect_stderr(io.StringIO()):
        finish_run(place)
    (place / "grain.toml").write_text(_GRAIN.replace("{place}", str(place)))
    shutil.copytree(place / "run", place / "copy")
    shutil.copytree(place / "run", place / "damaged")
    steps = place / "damaged" / "12" / "data" / "steps.bin"
    steps.write_bytes(bytes([steps.read_bytes()[0] ^ 1]) + steps.read_bytes()[1:])
    codes, messages = {}, {}
    for name, words in COMMANDS.items():
        code, out, err = _run([word.replace("{place}", str(place)) for word in words])
        codes[name] = {"code": code}
        if "--json" in words:
            codes[name]["keys"] = _keys(out)
        said = [line for line in err.splitlines() if line.startswith("datarax:")]
        if said and not str(code).startswith("usage"):  # the wording of usages is argparse's
            messages[name] = said[0]
    return codes, messages


def _run(words):
    """Exit code (`usage 2` if the parser itself exits), and what is printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stop:
            code = f"usage {stop.code}"
    return code, out.getvalue(), err.getvalue()


def _keys(out):
    """Keys of the JSON that is printed: of the one document, or of the last line of many."""
    try:
        tree = json.loads(out)
    except json.JSONDecodeError:
        tree = json.loads(out.splitlines()[-1]) if out else {}
    return sorted(tree)
