"""What a start costs by the number of data files: a dataset with a manifest, opened, identified, and looked through.

python -m benchmarks.start_up [DIRECTORY] [NUM_FILES]…      by default 100 and 100,000 files in a temporary directory

The files are made once and linked. Each start is a process of its own, and its first batch is part of it; what is printed is
the least of three.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datarax.sources import FileEntry, Manifest
from datarax.sources.array_record_files import open_writer
from datarax.sources.manifest import file_sha256, record_hash, write_inventory

_RECORDS_PER_FILE = 4
_LINKS_PER_FILE = 10_000  # file systems limit them

_CONFIG = """
run = {{ directory = "{directory}/run", steps = 1 }}
source = {{ kind = "array_record", files = "{directory}/data" }}
loader = {{ batch_size = 8, seed = 1, num_epochs = 1 }}
save = {{ every_steps = 1000000 }}
"""


def make(directory: Path, num_files: int) -> None:
    """A dataset of links to a few files, and a run config for it."""
    import hashlib

    data = directory / "data"
    data.mkdir(parents=True)
    entries, hashes = [], b""
    for number in range(num_files):
        path = data / f"records-{number:06d}.array_record"
        if number % _LINKS_PER_FILE == 0:
            original, records = path, [b"record %d of %d" % (k, number) for k in range(_RECORDS_PER_FILE)]
            writer = open_writer(str(path), group_size=1, compression="uncompressed")
            for record in records:
                writer.write(record)
            writer.close()
            size, sha256 = path.stat().st_size, file_sha256(str(path))
            of_file = b"".join(map(record_hash, records))
        else:
            os.link(original, path)
        entries.append(FileEntry(path.name, size, _RECORDS_PER_FILE, sha256))
        hashes += of_file
    manifest = Manifest(tuple(entries), hashlib.sha256(hashes).hexdigest())
    write_inventory(str(data), manifest, hashes)
    (directory / "config.toml").write_text(_CONFIG.format(directory=directory))


def start_seconds(directory: Path) -> float:
    """Seconds from the command to the end of its first step, by `run`."""
    subprocess.run(["rm", "-rf", directory / "run"], check=True)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "datarax", "run", str(directory / "config.toml")]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main(arguments: list[str]) -> None:
    """Prints seconds per start for each number of files."""
    counts = [int(each) for each in arguments if each.isdigit()] or [100, 100_000]
    places = [Path(each) for each in arguments if not each.isdigit()]
    with tempfile.TemporaryDirectory() as temporary:
        base = places[0] if places else Path(temporary)
        for count in counts:
            if not (base / str(count)).exists():
                make(base / str(count), count)
            seconds = min(start_seconds(base / str(count)) for _ in range(3))
            print(f"{count:9,} files  {seconds:6.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
