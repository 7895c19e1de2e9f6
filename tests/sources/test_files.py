"""Which files a name stands for: as a glob finds them, but nothing is left out in silence."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax.core.errors import InputError
from datarax.sources import BuildConfig, build_dataset
from datarax.sources.build_inputs import find_inputs
from datarax.sources.files import AbsentError


@contextlib.contextmanager
def unreadable(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """A directory that cannot be listed, also for the super-user."""
    real = os.scandir

    def scandir(path="."):
        if Path(path) == directory:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """a.txt, part/b.txt, and by a link more/c.txt, which lies elsewhere."""
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (corpus / "part").mkdir(parents=True)
    elsewhere.mkdir()
    (corpus / "a.txt").write_text("a")
    (corpus / "part" / "b.txt").write_text("b")
    (elsewhere / "c.txt").write_text("c")
    (corpus / "more").symlink_to(elsewhere)
    return corpus


WAYS = ["{}", "{}/**", "{}/**/*.txt", "{}/**/*"]


@pytest.mark.parametrize("pattern", WAYS)
def test_directories_behind_links_count(corpus: Path, pattern: str):
    assert list(find_inputs(pattern.format(corpus))) == ["a.txt", "more/c.txt", "part/b.txt"]


@pytest.mark.parametrize("pattern", WAYS)
def test_a_directory_that_cannot_be_read_is_named(corpus: Path, pattern: str, monkeypatch):
    with (
        unreadable(corpus / "part", monkeypatch),
        pytest.raises(InputError, match=r"input files: .*/corpus/part cannot be read: Permission denied"),
    ):
        find_inputs(pattern.format(corpus))


def test_a_directory_that_a_glob_does_not_ask_for_may_be_unreadable(corpus: Path, monkeypatch):
    with unreadable(corpus / "part", monkeypatch):
        assert list(find_inputs(f"{corpus}/*.txt")) == ["a.txt"]


@pytest.mark.parametrize("pattern", ["{}/*", "{}/[ap]*", "{}/m*"])
def test_a_directory_that_a_glob_matches_and_does_not_look_into_is_named(corpus: Path, pattern: str):
    with pytest.raises(InputError, match=r"matches the directory .*/(more|part) too.*name .*/corpus/\*\* "):
        find_inputs(pattern.format(corpus))
    assert list(find_inputs(f"{corpus}/**")) == ["a.txt", "more/c.txt", "part/b.txt"]
    assert list(find_inputs(f"{corpus}/*.txt")) == ["a.txt"]


def test_what_was_built_among_its_inputs_is_no_directory_that_is_left_out(corpus: Path):
    shutil.rmtree(corpus / "part")
    (corpus / "more").unlink()
    config = BuildConfig(kind="text", inputs=(f"{corpus}/*",), output=str(corpus / "out"), record_bytes=1)
    for again in (False, True, False, True):
        assert build_dataset(config, again=again).manifest.num_records == 1


@pytest.mark.parametrize("pattern", WAYS)
@pytest.mark.parametrize("target", [".", "..", "../part"])
def test_a_link_to_a_directory_that_is_read_already_is_named(corpus: Path, pattern: str, target: str):
    (corpus / "part" / "again").symlink_to(target)
    with pytest.raises(InputError, match=r"/again.* is the directory .* once more, by a link"):
        find_inputs(pattern.format(corpus))


def test_a_directory_that_a_glob_finds_twice_by_a_link_is_named(corpus: Path):
    (corpus / "again").symlink_to("part")
    assert list(find_inputs(f"{corpus}/part/*.txt"))
    with pytest.raises(InputError, match=r"/part is the directory .*/again once more, by a link"):
        find_inputs(f"{corpus}/*/*.txt")


@pytest.mark.parametrize("pattern", WAYS)
def test_a_link_to_itself_is_named(corpus: Path, pattern: str):
    (corpus / "part" / "self").symlink_to("self")
    with pytest.raises(InputError, match=r"/part/self cannot be read: Too many levels of symbolic links"):
        find_inputs(pattern.format(corpus))


def test_what_is_not_there_is_absent_and_no_other_error(corpus: Path):
    for pattern in ("{}/b.txt", "{}/*.csv", "{}/none/*.txt", "{}/a.txt/*.txt", "{}/*/none/*"):
        with pytest.raises(AbsentError):
            find_inputs(pattern.format(corpus))


NAMES = st.sampled_from(["a", "b", "c.txt", ".h", "x[1]", "*"])
PARTS = st.sampled_from(["*", "**", "?", "[ab]", "*.txt", ".*", "a", "b", "c.txt", ".h", "x[[]1]", "[!a]*"])


@settings(max_examples=60)
@given(
    files=st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=8),
    parts=st.lists(PARTS, min_size=1, max_size=4),
)
def test_a_glob_finds_what_python_finds(tmp_path_factory: pytest.TempPathFactory, files, parts):
    base = tmp_path_factory.mktemp("tree")
    for file in files:
        with contextlib.suppress(OSError):  # a file lies where a directory should be
            base.joinpath(*file[:-1]).mkdir(parents=True, exist_ok=True)
            base.joinpath(*file).touch()
    pattern = os.path.join(base, *parts)
    expected = sorted({each for each in glob.glob(pattern, recursive=True) if not os.path.isdir(each)})
    try:
        found = sorted(find_inputs(pattern, is_made=lambda directory: True).values())
    except AbsentError:
        found = []
    if os.path.lexists(pattern):  # a name that exists is no glob
        return
    assert found == expected
