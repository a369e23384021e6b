"""The README's programs run, and print what it says they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\s+```console\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=["embedding", "sans-IO", "sleeping"])
def test_a_program_of_the_readme_prints_what_the_readme_says(program, output):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_the_readme_has_a_program_for_embedders_and_two_for_the_core_alone():
    assert len(PROGRAMS) == 3
