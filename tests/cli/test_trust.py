"""What a run keeps names code: only a replay imports it, and without asking only if nobody else could have written it."""

import hashlib
import os
import sys

import pytest

from datarax.cli.main import main
from datarax.sources.open import SourceTable
from tests.support.runs import copy_run

MARK = "the trap was imported"

TRAP = f"""
from datarax.transforms import map_batch
import os, pathlib
pathlib.Path(os.environ["TRAP"]).write_text({MARK!r})
def decode(records): raise AssertionError
to_rows = map_batch(decode, name="decode")
def data(**parameters): raise AssertionError
pipeline = data
task = None
"""


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module whose import leaves a file behind."""
    place = tmp_path / "modules"
    place.mkdir()
    (place / "its_trap.py").write_text(TRAP)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("TRAP", str(tmp_path / "trapped"))
    yield tmp_path / "trapped"
    sys.modules.pop("its_trap", None)


@pytest.fixture
def run(finished, tmp_path):
    return copy_run(finished / "run", tmp_path / "run")


def forge(run, *changes):
    """Rewrites what the stored config says, with every digest on the way to it, as whoever may write the run can."""
    (config,) = (run / "configs").iterdir()
    text = config.read_text()
    for old, new in changes:
        text = text.replace(old, new)
    digest = hashlib.sha256(text.encode()).hexdigest()
    config.unlink()
    (run / "configs" / f"{digest}.toml").write_text(text)
    for record in [*run.glob("*/data/record.json"), *run.glob("ledger/*/data/record.json")]:
        before = record.read_bytes()
        after = before.replace(config.stem.encode(), digest.encode())
        record.write_bytes(after)
        manifest = record.parents[1] / "manifest.json"
        hashes = [hashlib.sha256(each).hexdigest() for each in (before, after)]
        assert hashes[0] in manifest.read_text()
        manifest.write_text(manifest.read_text().replace(*hashes))


TRAPS = ("tests.support.tiny:", "its_trap:")


READERS = [
    ["inspect", "{run}"],
    ["order", "{run}", "--steps", "0:12"],
    ["order", "{run}", "--find", "part-00000-of-00003.array_record"],
    ["diff", "{run}", "{run}/8"],
    ["verify", "{run}", "--fast"],
    ["verify", "{run}", "--fast", "--all"],
    ["verify", "{run}", "--fast", "--set", "source.name=text"],
]


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_what_only_reads_a_run_imports_nothing_that_it_names(words, run, trap, capsys):
    forge(run, TRAPS, ('kind = "array_record"', 'kind = "memory"\nuse = "its_trap:data"'))
    assert main([word.format(run=run) for word in words]) in (0, 1, 2)
    assert not trap.exists(), capsys.readouterr()


def test_the_files_of_data_that_code_makes_are_known_without_the_code(trap):
    """A run of many files keeps only the digest of their list, and `order --find FILE` asks its stored config for it."""
    for kind in ("memory", "grain"):
        table = SourceTable(kind=kind, settings={"use": "its_trap:data"})
        assert table.config().list_files() == ()
    assert not trap.exists()


def test_a_fast_verification_compares_all_but_code_and_says_so(run, capsys):
    assert main(["verify", str(run), "--fast"]) == 0
    said = capsys.readouterr().out
    assert "note: nothing was imported that the run names, so its transforms were not compared" in said
    assert main(["verify", str(run), "--fast", "--set", "loader.seed=6"]) == 1
    assert "train.seed: was 5, is 6" in capsys.readouterr().out


def test_a_fast_verification_of_ones_own_config_compares_the_code_too(finished, run, capsys):
    config = str(finished / "config.toml")
    other = ["--set", "transforms.1.use=tests.support.tiny:add_other_noise"]
    assert main(["verify", str(run), "--fast", "--config", config]) == 0
    assert "transforms were not compared" not in capsys.readouterr().out
    assert main(["verify", str(run), "--fast", "--config", config, *other]) == 1
    assert "train.pipeline.transforms[1]" in capsys.readouterr().out


MEMORY = """
[run]
directory = "{run}"
steps = 6
[source]
kind = "memory"
use = "tests.cli.test_trust:numbers"
[loader]
batch_size = 4
[save]
every_steps = 3
"""


def numbers():
    import numpy as np

    if os.environ.get("TRAP"):
        raise AssertionError("the data were made")
    return np.arange(40)


def test_the_keys_of_a_run_whose_data_are_made_by_code_need_none_of_it(tmp_path, capsys, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text(MEMORY.format(run=tmp_path / "run"))
    assert main(["run", str(config)]) == 0
    monkeypatch.setenv("TRAP", "yes")
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run"), "--fast"]) == 0
    assert "so its source was not compared" in capsys.readouterr().out
    assert main(["order", str(tmp_path / "run"), "--steps", "0:6"]) == 0


def by_another_user(path):
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 54321, 54321)


def writable_by_everybody(path):
    os.chmod(path, os.stat(path).st_mode | 0o002)


def a_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


DOUBTS = [
    (by_another_user, ".", "belongs to another user (uid 54321)"),
    (by_another_user, "configs", "belongs to another user (uid 54321)"),
    (by_another_user, "configs/*", "belongs to another user (uid 54321)"),
    (writable_by_everybody, ".", "everybody may write"),
    (writable_by_everybody, "configs", "everybody may write"),
    (writable_by_everybody, "configs/*", "everybody may write"),
]


def test_the_trap_would_be_imported(run, trap):
    forge(run, TRAPS)
    main(["verify", str(run)])
    assert trap.read_text() == MARK


@pytest.mark.parametrize(("make", "what", "why"), DOUBTS)
def test_a_replay_asks_before_it_imports_what_another_could_have_named(make, what, why, run, trap, capsys):
    forge(run, TRAPS)
    (path,) = [run] if what == "." else run.glob(what)
    make(path)
    capsys.readouterr()
    assert main(["verify", str(run)]) == 2
    error = capsys.readouterr().err
    assert not trap.exists()
    for part in (
        why,
        "transforms.0.use = 'its_trap:to_rows', transforms.1.use = 'its_trap:add_noise'",
        "--config",
        "--trust",
        "DATARAX_TRUST",
    ):
        assert part in error
    assert "task.use" not in error, "a replay trains nothing"


@pytest.mark.parametrize("what", ["configs", "configs/*"])
def test_a_config_behind_a_link_is_not_read_at_all(what, run, trap, capsys):
    forge(run, TRAPS)
    (path,) = run.glob(what)
    a_link(path)
    capsys.readouterr()
    assert main(["verify", str(run)]) == 1
    assert "is a link or no file" in capsys.readouterr().out
    assert not trap.exists()


def test_what_the_caller_agrees_to_is_replayed(finished, run, tmp_path, capsys, monkeypatch):
    writable_by_everybody(run)
    assert main(["verify", str(run)]) == 2
    assert main(["verify", str(run), "--trust"]) == 0
    assert main(["verify", str(run), "--config", str(finished / "config.toml")]) == 0
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    monkeypatch.setenv("DATARAX_TRUST", f"/nowhere{os.pathsep}{link}")
    assert main(["verify", str(run)]) == 0
    monkeypatch.setenv("DATARAX_TRUST", str(tmp_path / "ru"))
    assert main(["verify", str(run)]) == 2
    monkeypatch.setenv("DATARAX_TRUST", "relative")
    capsys.readouterr()
    assert main(["verify", str(run)]) == 2
    assert "DATARAX_TRUST must hold absolute paths" in capsys.readouterr().err


def test_a_replay_of_a_run_that_names_no_code_asks_nothing(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(
        f'[run]\ndirectory = "{tmp_path}/run"\nsteps = 3\n[source]\nkind = "range"\nstop = 40\n[loader]\nbatch_size = 4\n'
    )
    assert main(["run", str(config)]) == 0
    writable_by_everybody(tmp_path / "run")
    assert main(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        (
            "source={kind='memory', use='os:system', parameters={command='exit 3'}}",
            "source.use = 'os:system'",
        ),
        (
            "source={kind='grain', use='subprocess:run', parameters={args='x'}}",
            "source.use = 'subprocess:run'",
        ),
        ("transforms.0.use=builtins:eval", "use = 'builtins:eval'"),
        ("batch_stats_fn=os:abort", "batch_stats_fn = 'os:abort'"),
        ("task.use=subprocess:Popen", "task.use = 'subprocess:Popen'"),
        ("source={kind='grain', use='tests.support.tiny:Path'}", "of the standard library"),
    ],
)
def test_the_standard_library_is_refused_before_it_is_called(override, key, finished, tmp_path, capsys):
    words = ["--set", override, "--set", f"run.directory={tmp_path}/run"]
    if override.startswith("source"):
        words += ["--set", "transforms=[]"]
    capsys.readouterr()
    assert main(["run", str(finished / "config.toml"), *words]) == 2
    assert key in capsys.readouterr().err


class NoTask:
    def __init__(self):
        raise AssertionError("it was called")


def a_number():
    return 7


A_NUMBER = 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.use=tests.cli.test_trust:NoTask", "is the class NoTask without init(config, mesh)"),
        ("batch_stats_fn=tests.cli.test_trust:A_NUMBER", "is a int, not a function"),
        ("transforms.0.use=tests.cli.test_trust:A_NUMBER", "is 7, neither a Transform nor a function"),
        ("source={kind='grain', use='tests.cli.test_trust:a_number'}", "is a int, which has no len()"),
        ("source={kind='memory', use='tests.cli.test_trust:a_number'}", "is a int, not an array"),
    ],
)
def test_what_is_of_another_kind_than_its_key_expects_is_refused_with_its_kind(
    override, message, finished, tmp_path, capsys
):
    words = ["--set", override, "--set", f"run.directory={tmp_path}/run"]
    capsys.readouterr()
    assert main(["run", str(finished / "config.toml"), *words]) == 2
    assert message in capsys.readouterr().err
