"""What datarax does today, as files: `make golden` writes those that are missing.

A file that is there is never overwritten, unless a change of behaviour is wanted and it is named:
`python -m tests.make_golden --replace deliveries.json`.
Only public names are used here, so that everything behind them may be moved and rewritten.
"""

import functools
import json
import tempfile
from pathlib import Path

from tests.behaviour import commands, deliveries, draws, modules, runs

GOLDEN = Path(__file__).parents[2] / "checkpoints" / "golden" / "behaviour"


def _deliveries(place, every):
    found, states = deliveries.facts(place, every)
    files = place / "files"
    kinds, messages = modules.refusals(files)
    return {
        "deliveries": found,
        "states": {
            "loaders": states,
            "combined": modules.combined_states(files),
            "modules": modules.states(files),
            "refused": kinds,
        },
        "identities": modules.identities(files),
        "messages": {"refused states": messages},
    }


def _runs(place, every):
    differences, messages = runs.differences(place / "changes")
    return {
        "records": {**runs.records(place / "records"), "resolved configs": runs.resolved_configs()},
        "differences": differences,
        "messages": {"refused changes": messages},
    }


def _commands(place, every):
    codes, messages = commands.facts(place)
    return {"exit_codes": codes, "messages": {"commands": messages}}


def _draws(place, every):
    return {f"draws-{draws.line()}": draws.facts()}


@functools.cache
def trees(every=1):
    """File name -> case -> what it gives, as JSON would give it back; of the deliveries each `every`-th case."""
    found = {}
    for group in (_deliveries, _runs, _commands, _draws):
        with tempfile.TemporaryDirectory() as place:
            place = Path(place).resolve()
            for name, tree in group(place, every).items():
                text = json.dumps(tree)
                if name == "messages":
                    text = text.replace(str(place), "{place}")
                found[f"{name}.json"] = {**found.get(f"{name}.json", {}), **json.loads(text)}
    return found


def spelled(tree):
    """JSON with sorted keys and a line for each value."""
    return json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write(directory, replace=(), every=1):
    """Writes the files that are missing and those that are to be replaced.

    Returns:
        Their names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = [name for name in trees(every) if name in replace or not (directory / name).exists()]
    for name in names:
        (directory / name).write_text(spelled(trees(every)[name]), encoding="utf-8")
    return names
