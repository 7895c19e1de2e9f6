"""The documentation is true: its blocks run, its pages are what the code says."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.support.processes import run_command, run_python

ROOT = Path(__file__).parent.parent


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.full
def test_the_python_block_of_the_readme_runs_and_resumes(tmp_path):
    (code,) = blocks("README.md", "python")
    outputs = [run_python("-c", code, directory=tmp_path) for _ in range(2)]
    assert all("Outcome(step=468, complete=True" in output for output in outputs)


@pytest.mark.full
def test_the_commands_of_the_readme_do_what_it_says(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    code, output = run_command("run", "configs/quickstart.toml", "--set", "run.steps=8", directory=tmp_path)
    assert code == 0, output
    lines = [
        line
        for block in blocks("README.md", "sh")
        for line in block.splitlines()
        if line.startswith("datarax")
    ]
    expected = {"verify": 0, "inspect": 0, "order": 0, "plan": 1, "doctor": 0}
    assert {line.split()[1] for line in lines} == set(expected)
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        code, output = run_command(*words, directory=tmp_path)
        assert code == expected[words[0]], f"{line}\n{output}"


@pytest.mark.full
def test_the_python_blocks_of_the_testing_guide_are_a_test_file_that_passes(tmp_path):
    guide = tmp_path / "test_guide.py"
    guide.write_text("\n\n".join(blocks("docs/testing.md", "python")))
    assert " passed" in run_python("-m", "pytest", "-q", "-W", "error", guide, directory=tmp_path)


def test_no_page_holds_what_a_merge_left():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("checkpoints/*.md")]:
        left = re.findall(r"^(?:<{7} .*|={7}|>{7} .*)$", page.read_text(), re.MULTILINE)
        assert left == [], page


def test_the_make_targets_of_the_readme_exist():
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("README.md", "sh")), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["run", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_configuration_page_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location(
        "make_configuration", ROOT / "docs" / "make_configuration.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.render(), "run: python docs/make_configuration.py"


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("**/*.md") if ".venv" not in str(path))
)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
