"""One-line faults in `datarax/`, one at a time: each must make a test of the first tier fail. `make mutants`

python -m tests.mutants [WORD]...    all faults of `mutants.toml`, or those whose file, law or name contains a word
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_AT_ONCE = 2
_LIMIT_SECONDS = 900
# Of these a test cannot tell what was broken: the fault is no fault but a slip in `mutants.toml`.
_NO_FAULT = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError")


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    fault: str
    """What is wrong, in words."""
    file: str
    """Relative to the checkout."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: Sequence[str]
    """Files or node ids of the first tier, at least one of which fails."""
    law: int | None = None
    """The law of docs/design that it breaks, or None for a fault that was found otherwise."""

    def content(self) -> str:
        """The file with the fault."""
        before = (ROOT / self.file).read_text()
        assert before.count(self.old) == 1, f"{self.file}: {before.count(self.old)} times {self.old!r}"
        return before.replace(self.old, self.new)


def all_mutants() -> list[Mutant]:
    with open(ROOT / "tests" / "mutants.toml", "rb") as file:
        return [Mutant(**entry) for entry in tomllib.load(file)["mutant"]]


def run_tests(tests: Sequence[str], changed: Mutant | None = None, *more: str) -> tuple[bool, str]:
    """Runs tests of the first tier in a copy of the checkout.

    Args:
        tests: files or node ids.
        changed: the fault to make before.
        more: further words for pytest.

    Returns:
        Whether all passed, and the first test that failed, or what else became of them.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        copy, report = Path(place, "checkout"), Path(place, "report.xml")
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "runs", "__pycache__", "*.egg-info")
        )
        if changed is not None:
            (copy / changed.file).write_text(changed.content())
        words = [
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"--basetemp={place}/tests",
            f"--junitxml={report}",
            *more,
        ]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *words, *tests],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=_LIMIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True, f"no end after {_LIMIT_SECONDS} s"
        if done.returncode == 0:
            return True, "all passed"
        failed = _first_failure(report) if report.exists() else None
        if done.returncode != 1 or failed is None:
            return True, f"pytest exits {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return False, failed


def _first_failure(report: Path) -> str | None:
    """Which test failed first and with what; None if no test did, but an import or a fixture."""
    for case in ElementTree.parse(report).iter("testcase"):
        for failure in case.findall("failure"):
            message = (failure.get("message") or "").splitlines()[0]
            if not message.startswith(_NO_FAULT) and not message.startswith("Failed: Timeout"):
                return f"{case.get('name')}: {message}"
    return None


def main(words: Sequence[str]) -> int:
    mutants = [
        each
        for each in all_mutants()
        if not words or any(word in f"{each.file} law {each.law} {each.fault}" for word in words)
    ]
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    passed, said = run_tests(tests, None, "-n", str(_AT_ONCE), "--dist", "loadfile")
    if not passed or said != "all passed":
        print(f"the tests do not pass without a fault: {said}")
        return 1
    survived = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = pool.map(lambda mutant: run_tests(mutant.tests, mutant), mutants)
        for mutant, (passed, said) in zip(mutants, results, strict=True):
            survived += passed
            law = "-" if mutant.law is None else mutant.law
            print(
                f"{'SURVIVED' if passed else 'killed':8}  law {law:>2}  {mutant.file}: {mutant.fault}",
                flush=True,
            )
            print(f"          {said if passed else said[:140]}", flush=True)
    print(f"{len(mutants)} faults, {len(mutants) - survived} killed, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
