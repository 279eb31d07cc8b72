"""The Python in README.md runs as it is printed."""

import re
import sys

import pytest
from conftest import ROOT, clean_environment, run


def test_quickstart_runs_as_printed(build_dir):
    pytest.importorskip("transformers")
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(block.strip().splitlines()) <= 15
    env = clean_environment(PYTHONPATH=ROOT / "shim" / "python", CWS_LIBRARY=build_dir / "lib" / "libcws.so")
    lines = run(sys.executable, "-c", block, env=env, cwd=ROOT).stdout.splitlines()
    assert lines[0].startswith("whole model: 9.30 MiB -> ")
    assert lines[1] == "ROMEO:" and lines[-1] == "same text: True"
