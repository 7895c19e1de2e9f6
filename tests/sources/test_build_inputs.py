"""Inputs of a build: what is no file is named, what has no end is not read, and any bytes are records or an error."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import InputError
from datarax.sources import BuildConfig, build_dataset, build_inputs
from datarax.sources.build_inputs import find_inputs, jsonl_records, text_records

ODD = {
    "fifo": os.mkfifo,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "tty": lambda path: path.symlink_to("/dev/tty"),
    "socket": lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("named", ["{}/in/odd.txt", "{}/in", "{}/in/*", "{}/**/*.txt"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_what_is_no_file_is_named_and_waits_for_nobody(tmp_path: Path, kind: str, odd: str, named: str):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("1")
    ODD[odd](tmp_path / "in" / "odd.txt")
    with pytest.raises(InputError, match=f"{tmp_path}/in/odd.txt"):
        build_dataset(BuildConfig(kind=kind, inputs=named.format(tmp_path), output=str(tmp_path / "out")))
    assert os.listdir(tmp_path) == ["in"]


def test_links_to_files_are_files(tmp_path: Path):
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.txt").symlink_to("../a.txt")
    result = build_dataset(BuildConfig(inputs=str(tmp_path / "in"), output=str(tmp_path / "out")))
    assert (result.num_inputs, result.input_bytes) == (1, 1)


def records(kind: str, *paths: Path, record_bytes: int | None = None, skip: bool = False) -> list[bytes]:
    files = find_inputs([str(path) for path in paths])
    left = Counter[str]()
    if kind == "jsonl":
        return list(jsonl_records(files, left))
    return list(text_records(files, record_bytes, left, skip_undecodable=skip))


@pytest.mark.parametrize("open_and_closed", [("[", "]"), ('{"a":', "}"), ("[", "")])
def test_json_that_is_nested_200_000_deep_is_refused_by_line(tmp_path: Path, open_and_closed):
    opened, closed = open_and_closed
    (tmp_path / "a").write_text("1\n" + opened * 200_000 + "1" + closed * 200_000 + "\n")
    with pytest.raises(InputError, match=f"{tmp_path}/a:2 is not valid JSON"):
        records("jsonl", tmp_path / "a")


def test_what_is_larger_than_a_record_can_be_is_named_and_not_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build_inputs, "MOST_RECORD_BYTES", 1 << 20)
    with open(tmp_path / "a", "wb") as file:
        file.write(b"1\n")
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=f"{tmp_path}/a:2 is longer than a record can be"):
        records("jsonl", tmp_path / "a")
    with pytest.raises(
        InputError, match=f"{tmp_path}/a is larger than one record can be .* set record_bytes"
    ):
        records("text", tmp_path / "a")
    line = b'"' + b"x" * ((1 << 20) - 3) + b'"\n'
    (tmp_path / "b").write_bytes(line)
    assert records("jsonl", tmp_path / "b") == [line[:-1]]
    assert records("text", tmp_path / "b") == [line]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
def test_a_byte_that_is_no_text_is_named_wherever_blocks_end(
    tmp_path: Path, block: int, at: int, monkeypatch
):
    monkeypatch.setattr(build_inputs, "_BLOCK_BYTES", block)
    text = "aé€😀zz".encode()
    bad = text[:at] + b"\xff" + text[at:]
    try:
        bad.decode()
    except UnicodeDecodeError as error:
        start, reason = error.start, error.reason
    (tmp_path / "a").write_bytes(bad)
    with pytest.raises(InputError, match=f"a is not UTF-8 text: {reason} at byte {start}; convert"):
        records("text", tmp_path / "a", record_bytes=1)


TEXTS = st.lists(
    st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=30)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@given(texts=TEXTS, size=st.none() | st.integers(1, 40), block=st.integers(1, 12), skip=st.booleans())
def test_any_bytes_are_text_cut_as_it_is_or_are_refused(place: Path, texts, size, block: int, skip: bool):
    paths = [place / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)

    def is_text(data: bytes) -> bool:
        try:
            return bool(data.decode()) or True
        except UnicodeDecodeError:
            return False

    kept = [text for text in texts if is_text(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_inputs, "_BLOCK_BYTES", block)
        try:
            found = records("text", *paths, record_bytes=size, skip=skip)
        except InputError:
            assert not skip
            assert len(kept) < len(texts)
            return
    assert skip or len(kept) == len(texts)
    if size is None:
        assert found == [text for text in kept if text]
    else:
        whole = b"".join(kept)
        assert found == [whole[i : i + size] for i in range(0, len(whole) - size + 1, size)]


LINES = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda each: st.lists(each, max_size=3)
    ).map(lambda tree: json.dumps(tree).encode()),
    st.sampled_from(
        [b"NaN", b"1e999", b'{"a":1,"a":2}', b"\xef\xbb\xbf1", b"\x00", b'"\\ud800"', b"1\r", b"-0"]
    ),
)


@given(lines=st.lists(LINES, max_size=5), end=st.sampled_from([b"", b"\n", b"\r\n", b"\n\n"]))
def test_any_bytes_are_lines_of_json_or_are_refused_by_line(place: Path, lines: list[bytes], end: bytes):
    data = b"\n".join(lines) + end
    (place / "a.jsonl").write_bytes(data)
    refused = ""
    try:
        found = records("jsonl", place / "a.jsonl")
    except InputError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(f"{place}/a.jsonl:")
        return
    assert found == [line.removesuffix(b"\r") for line in data.split(b"\n")][: len(found)]
    assert sum(map(len, found)) >= len(data.replace(b"\n", b"").replace(b"\r", b""))
    for record in found:
        json.loads(record)
