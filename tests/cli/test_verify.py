"""`verify` as proof: what is as recorded passes, any changed byte and any other recipe does not, by name."""

import importlib
import json
import re
import shutil
import sys

import pytest

from datarax.cli.main import main
from datarax.loader.producer import Threads
from datarax.sources.manifest import RECORD_HASHES_NAME
from tests.support.runs import copy_run, finish_run, flipped, positions_in, replaced, write_config
from tests.support.tiers import is_whole

_MASKS = (0x01, 0x80)


def verify(run, capsys, *arguments):
    """(exit code, standard output) of `verify`."""
    capsys.readouterr()
    code = main(["verify", str(run), *map(str, arguments)])
    return code, capsys.readouterr().out


def test_a_finished_run_verifies(finished, capsys):
    code, output = verify(finished / "run", capsys)
    assert code == 0, output
    assert "snapshot 8: good, steps 4 to 8 replayed, keys and bytes compared" in output
    assert "snapshot 12: good, steps 8 to 12 replayed, keys and bytes compared" in output


def item_files(run):
    """Every file of every item of every snapshot, and every manifest."""
    items = [path for item in ("data", "model") for path in run.glob(f"*/{item}/**/*") if path.is_file()]
    return sorted(path for path in [*items, *run.glob("*/manifest.json")] if path.stat().st_size)


def test_any_changed_byte_of_an_item_is_found_and_its_file_named(finished, capsys):
    run = finished / "run"
    files = item_files(run)
    assert {path.relative_to(run).parts[0] for path in files} == {"8", "12", "ledger"} - {"ledger"}
    for path in files:
        step, name = path.relative_to(run).parts[0], "/".join(path.relative_to(run).parts[1:])
        for i, position in enumerate(positions_in(path, inner=2 if is_whole() else 0)):
            with flipped(path, position, _MASKS[i % 2]):
                code, output = verify(run, capsys, "--step", step)
            assert code == 1, f"{name} byte {position}:\n{output}"
            assert f"snapshot {step}: FAILED" in output
            assert name in output, f"{name} byte {position}:\n{output}"


def test_a_missing_or_added_item_file_is_named(finished, capsys):
    run = finished / "run"
    with replaced(run / "12" / "data" / "steps.bin", None):
        code, output = verify(run, capsys)
    assert (code, "data/steps.bin: is missing" in output) == (1, True), output
    extra = run / "12" / "model" / "extra"
    extra.write_bytes(b"x")
    try:
        code, output = verify(run, capsys)
    finally:
        extra.unlink()
    assert (code, "model/extra: is not in the manifest" in output) == (1, True), output


def changed_fields(path, values):
    """`record.json` with some values replaced, each given by its path in the tree."""
    record = json.loads(path.read_bytes())
    for keys, value in values.items():
        node = record
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


_TRAIN = ("loaders", "train")
_STATE = (*_TRAIN, "state")


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        ((*_STATE, "position"), 193, "position is recorded as 193, the replay gives 192"),
        ((*_STATE, "idx"), 11, "idx is recorded as 11, the replay gives 12"),
        ((*_STATE, "epoch"), 1, "epoch is recorded as 1, the replay gives 0"),
        (
            (*_STATE, "digest_keys"),
            "0" * 16,
            "digest_keys is recorded as '0000000000000000', the replay gives",
        ),
        ((*_STATE, "digest_bytes"), 1, "digest_bytes is recorded as 1, the replay gives"),
        ((*_STATE, "digest_rows"), 1, "digest_rows is recorded as 1, the replay gives 192"),
        ((*_STATE, "_is_stats_reset"), True, "_is_stats_reset is recorded as True, the replay gives False"),
        ((*_STATE, "surplus"), 1, "surplus is recorded as 1, the replay gives (absent)"),
        ((*_TRAIN, "digest", "rows"), 7, "digest.rows is recorded as 7, the replay gives 192"),
        (
            (*_TRAIN, "digest", "keys"),
            "0" * 16,
            "digest.keys is recorded as '0000000000000000', the replay gives",
        ),
        ((*_TRAIN, "scope"), "process", "loaders.train.scope is recorded as 'process'"),
        ((*_TRAIN, "steps", "first_step"), 9, "loaders.train.steps.first_step is recorded as 9"),
        ((*_TRAIN, "steps", "count"), 3, "loaders.train.steps.count is recorded as 3"),
        (("format",), 0, "format is recorded as 0, the rest of the run says 2"),
        ((*_STATE, "_applied_count"), 7, "_applied_count is recorded as 7, the replay gives 192"),
        ((*_STATE, "_computed_stats"), {"$float": "?"}, "state of 'train' cannot be decoded"),
        (("step",), 13, "step is recorded as 13, the rest of the run says 12"),
        (("previous",), 4, "previous is recorded as 4, the rest of the run says 8"),
        (("start",), 3, "start names starts/3.json, which is not there"),
        (("identity",), "0" * 64, "identity names identity/000000"),
        (("config",), "0" * 64, "config names configs/000000"),
        (("history",), [], "history[0] is recorded as (absent)"),
        (("history", 0, "from_step"), 2, "history[0].from_step is recorded as 2, snapshot 8 says 0"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_changed_field_of_a_record_that_still_parses_is_named(keys, value, named, finished, capsys):
    record = finished / "run" / "12" / "data" / "record.json"
    with replaced(record, changed_fields(record, {keys: value})):
        code, output = verify(finished / "run", capsys)
    assert code == 1
    assert "data/record.json" in output
    assert named in output, output
    assert "snapshot 8: good" in output


def test_a_changed_step_digest_names_the_step(finished, capsys):
    path = finished / "run" / "12" / "data" / "steps.bin"
    with flipped(path, 16 * 2):  # the keys of the third of steps 8 to 11
        _, output = verify(finished / "run", capsys)
    assert "step 10 is the first whose records differ" in output
    with flipped(path, 16 * 2 + 8):
        _, output = verify(finished / "run", capsys)
    assert "step 10 is the first whose bytes differ" in output


@pytest.mark.parametrize("name", ["record.json", "steps.bin", "manifest.json"])
def test_a_changed_byte_of_the_ledger_is_found_and_its_file_named(name, finished, capsys):
    path = finished / "run" / "ledger" / "4" / name
    for position in positions_in(path):
        with flipped(path, position):
            code, output = verify(finished / "run", capsys)
        assert code == 1
        assert f"ledger/4/{name}" in output, output


@pytest.mark.parametrize("kind", ["identity", "configs"])
def test_a_changed_byte_of_a_stored_identity_or_config_is_found_and_its_file_named(kind, finished, capsys):
    (path,) = (finished / "run" / kind).iterdir()
    for position in positions_in(path, inner=4):
        with flipped(path, position):
            code, output = verify(finished / "run", capsys)
        assert code == 1
        assert f"{kind}/{path.name}" in output, output


# The data.


def shards(directory):
    return sorted((directory / "data").glob("*.array_record"))


def test_any_changed_byte_of_the_data_is_found_and_its_file_named(finished, capsys):
    for path in shards(finished):
        # Everywhere, as records lie in the first part of a shard only: the rest of its block is padding.
        for position in positions_in(path, inner=6):
            with flipped(path, position):
                code, output = verify(finished / "run", capsys)
            assert code == 1, f"{path.name} byte {position}:\n{output}"
            assert path.name in output, f"{path.name} byte {position}:\n{output}"


def test_a_changed_record_is_named_with_its_file_and_the_step_that_delivered_it(finished, capsys):
    path = shards(finished)[1]
    at = path.read_bytes().index(b"  150 ")
    with flipped(path, at + 10):
        code, output = verify(finished / "run", capsys)
    assert code == 1
    # A shard's own checksum may refuse the record before ours does; both name it.
    assert re.search(rf"{path.name}.*record 50 (has changed|cannot be read)", output), output


@pytest.mark.parametrize("name", ["manifest.json", RECORD_HASHES_NAME])
def test_any_changed_byte_of_a_manifest_or_of_the_record_hashes_is_found_and_its_file_named(
    name, finished, capsys
):
    path = finished / "data" / name
    for position in positions_in(path, inner=12):
        with flipped(path, position):
            code, output = verify(finished / "run", capsys)
        assert code == 1, f"byte {position}:\n{output}"
        assert name in output, f"byte {position}:\n{output}"


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_truncated_shard_is_named(size, finished, capsys):
    path = shards(finished)[2]
    with replaced(path, path.read_bytes()[:size]):
        code, output = verify(finished / "run", capsys)
    assert (code, path.name in output) == (1, True), output


def test_a_missing_shard_is_named_once(finished, capsys):
    path = shards(finished)[0]
    with replaced(path, None):
        code, output = verify(finished / "run", capsys)
    assert (code, output.count(path.name)) == (1, 1), output


# Another recipe.

_OTHER_RECIPES = [
    (["loader.seed=6"], ["train.seed: was 5, is 6"]),
    (["loader.batch_size=8"], ["train.batch_size: was 16, is 8"]),
    (["loader.order=none"], ["train.order.policy: was 'global', is 'none'"]),
    (["transforms.1.use=tests.support.tiny:add_other_noise"], ["source_sha256: was "]),
    (["transforms.1.parameters.scale=2.0"], ["parameters.scale: was (absent), is 2.0"]),
    (["source.name=other"], ["train.sources.text", "train.sources.other"]),
]


@pytest.mark.parametrize(("overrides", "named"), _OTHER_RECIPES, ids=lambda value: value[0])
def test_another_recipe_is_refused_field_by_field_and_by_run_in_the_same_words(
    overrides, named, finished, tmp_path, capsys
):
    sets = [word for override in overrides for word in ("--set", override)]
    code, output = verify(finished / "run", capsys, *sets)
    assert code == 1
    for text in named:
        assert text in output, output
    fields = {line.strip() for line in output.splitlines() if ": was " in line}
    run = copy_run(finished / "run", tmp_path / "run")
    arguments = ["run", str(finished / "config.toml"), "--set", f"run.directory={run}", *sets]
    assert main(arguments) == 1
    refusal = capsys.readouterr().err
    assert {line.strip() for line in refusal.splitlines() if ": was " in line} == fields
    assert "resume.allow_changed" in refusal
    assert main(["plan", *arguments[1:]]) == 1
    planned = capsys.readouterr().out
    assert {line.strip() for line in planned.splitlines() if ": was " in line} == fields


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.steps=500"],
        ["loader.read_ahead=0", "loader.num_threads=3"],
        ["save.every_steps=1", "save.keep_latest=9", "save.every_seconds=7"],
        ["log.every_seconds=9"],
        ["loader.num_epochs=3"],
        ["run.directory=elsewhere"],
        ["source.max_open_files=1"],
    ],
    ids=lambda value: value[0],
)
def test_what_cannot_change_a_batch_is_not_refused(overrides, finished, tmp_path, capsys):
    sets = [word for override in overrides for word in ("--set", override)]
    code, output = verify(finished / "run", capsys, *sets)
    assert code == 0, output


def test_moved_data_is_the_same_data(finished, tmp_path, capsys):
    shutil.copytree(finished / "data", tmp_path / "moved")
    moved = f"source.files={tmp_path / 'moved'}"
    code, output = verify(finished / "run", capsys, "--set", moved)
    assert code == 0, output
    run = copy_run(finished / "run", tmp_path / "run")
    arguments = ["--set", moved, "--set", f"run.directory={run}", "--set", "run.steps=13"]
    assert main(["run", str(finished / "config.toml"), *arguments]) == 0
    assert verify(run, capsys)[0] == 0


def test_moved_data_that_is_not_there_is_wrong_input(finished, capsys):
    code, _ = verify(finished / "run", capsys, "--set", "source.files=/nowhere/data")
    assert code == 2


def test_a_reordered_config_is_the_same_config(finished, tmp_path, capsys):
    tables = (finished / "config.toml").read_text().split("\n\n")
    stages = [table for table in tables if "[[transforms]]" in table]
    others = [table for table in tables if "[[transforms]]" not in table]
    reordered = [
        "\n".join([table.strip().splitlines()[0], *table.strip().splitlines()[:0:-1]]) for table in others
    ]
    config = tmp_path / "reordered.toml"
    config.write_text("\n\n".join(reordered[::-1] + stages))
    code, output = verify(finished / "run", capsys, "--config", config)
    assert code == 0, output


def test_json_names_each_problem_and_each_field(finished, capsys):
    code, output = verify(finished / "run", capsys, "--json", "--set", "loader.seed=6")
    answer = json.loads(output.splitlines()[-1])
    assert (code, answer["ok"]) == (1, False)
    (first, second) = answer["snapshots"]
    assert {"field": "train.seed", "was": 5, "is": 6} in first["differences"]
    assert second["differences"] == first["differences"]


def test_an_unknown_step_or_an_empty_run_is_wrong_input(finished, tmp_path, capsys):
    assert main(["verify", str(finished / "run"), "--step", "5"]) == 2
    assert "has no committed snapshot 5; it has 8, 12" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no committed snapshot" in capsys.readouterr().err


def test_a_run_without_byte_digests_says_what_was_not_compared(tmp_path, capsys):
    finish_run(tmp_path, "loader.byte_digest=false", steps=2)
    code, output = verify(tmp_path / "run", capsys)
    assert code == 0
    assert "keys compared" in output
    assert "no snapshot has byte digests" in output


def test_a_run_of_a_task_has_byte_digests_without_being_asked(tmp_path, capsys):
    config = write_config(tmp_path, steps=2)
    config.write_text(config.read_text().replace("byte_digest = true\n", ""))
    assert main(["run", str(config)]) == 0
    (kept,) = (tmp_path / "run" / "configs").glob("*.toml")
    assert "byte_digest" not in kept.read_text()
    code, output = verify(tmp_path / "run", capsys)
    assert code == 0
    assert "keys and bytes compared" in output
    assert "no snapshot has byte digests" not in output


def test_steps_of_more_rows_than_were_delivered_are_not_made(finished, capsys):
    for fast in ([], ["--fast"]):
        code, output = verify(finished / "run", capsys, "--set", "loader.batch_size=32", *fast)
        assert (code, "its 12 steps have more rows by this recipe" in output) == (1, True), output
        assert "loader.batch_size = 16" in output


def test_a_replay_makes_few_batches_ahead(finished, capsys, monkeypatch):
    begun, submit = [], Threads.submit
    monkeypatch.setattr(Threads, "submit", lambda self, step: (begun.append(step), submit(self, step))[1])
    assert verify(finished / "run", capsys, "--set", "loader.read_ahead=3000")[0] == 0
    assert 0 < len(begun) < 50


def test_a_transform_that_depends_on_the_record_before_is_found_though_its_replay_is_as_recorded(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "stages_with_memory.py").write_text(
        "import numpy as np\n"
        "def differences(record, last=[0]):\n"
        "    before, last[0] = last[0], record[4]\n"
        "    return {'x': np.frombuffer(record[:8], np.uint8) - np.uint8(before)}\n"
        "def steady(record):\n"
        "    return {'x': np.frombuffer(record[:8], np.uint8)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for function, code in (("steady", 0), ("differences", 1)):
        config = write_config(tmp_path)
        text = re.sub(r"\[\[transforms\]\].*?(?=\n\[)", "", config.read_text(), flags=re.DOTALL)
        text = re.sub(r"\[task\].*?(?=\n\[)", "", text, flags=re.DOTALL)
        config.write_text(
            f'{text}\n[[transforms]]\nuse = "stages_with_memory:{function}"\nlevel = "record"\n'
        )
        run = tmp_path / function
        words = ["run", str(config), "--set", f"run.directory={run}", "--set", "save.every_steps=100"]
        assert main(words) == 0
        importlib.reload(sys.modules["stages_with_memory"])  # as a fresh process would
        found, output = verify(run, capsys)
        assert found == code, output
        assert (
            "step 0: transform 'differences', run on the same records in another order" in output
        ) == bool(code), output
