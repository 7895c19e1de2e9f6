"""Paths that are no UTF-8 text: refused by name before anything is written, for no record could name them again."""

import os

import pytest

from datarax.cli.main import main

ODD = os.fsdecode(b"odd\xff")

CONFIG = """
[run]
directory = "run"
steps = 2
[source]
kind = "range"
stop = 40
[loader]
batch_size = 4
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run, and a config, an input and a directory whose names are no text."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.toml", f"{ODD}.toml"):
        (tmp_path / name).write_text(CONFIG)
    (tmp_path / "null.toml").write_text(CONFIG.replace('"run"', '"a\\u0000b"'))
    (tmp_path / "in").mkdir()
    for name in ("ok.txt", f"{ODD}.txt"):
        (tmp_path / "in" / name).write_text("abcd")
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "config.toml").write_text(CONFIG)
    assert main(["run", "config.toml"]) == 0
    return tmp_path


REFUSED = [
    ["run", f"{ODD}.toml"],
    ["run", "null.toml"],
    ["run", "config.toml", "--set", f"run.directory={ODD}"],
    ["run", "config.toml", "--set", f"source.name={ODD}"],
    ["run", "config.toml", "--set", "source={kind='array_record', files='in/*'}"],
    ["plan", f"{ODD}.toml"],
    ["doctor", f"{ODD}.toml"],
    ["chaos", f"{ODD}.toml"],
    ["chaos", "config.toml", "--directory", f"{ODD}/new"],
    ["inspect", ODD],
    ["inspect", "a\0b"],
    ["order", ODD, "--steps", "0:1"],
    ["order", "run", "--steps", "0:1", "--csv", "--output", f"{ODD}.csv"],
    ["diff", ODD, "run"],
    ["diff", "run", f"{ODD}/2"],
    ["verify", ODD],
    ["verify", "run", "--config", f"{ODD}.toml"],
    ["build", "text", "in", "--output", "out"],
    ["build", "text", f"in/{ODD}.txt", "--output", "out"],
    ["build", "text", "in/*.txt", "--output", "out"],
    ["build", "text", "in/ok.txt", "--output", f"{ODD}/out"],
    ["build", "manifest", "in/*.txt"],
]


def shown(words):
    return " ".join(words).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


@pytest.mark.parametrize("words", REFUSED, ids=shown)
def test_a_name_that_is_no_text_is_refused_by_name_and_nothing_is_written(words, place, capsys):
    before = sorted(map(str, place.rglob("*")))
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "\\xff" in error or "\\x00" in error
    assert "is not UTF-8 text; rename it" in error
    assert sorted(map(str, place.rglob("*"))) == before


@pytest.mark.parametrize(
    "words", [["run", "config.toml"], ["plan", "config.toml"], ["inspect", "."]], ids=shown
)
def test_nor_may_the_working_directory_have_such_a_name(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place / ODD)
    assert main(words) == 2
    assert "\\xff" in capsys.readouterr().err
    assert os.listdir(".") == ["config.toml"]


def test_other_letters_are_text(place):
    assert main(["run", "config.toml", "--set", "run.directory=größe/naïve 走"]) == 0
    assert main(["inspect", "größe/naïve 走"]) == 0
