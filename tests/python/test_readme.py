"""The documents: what README prints runs, links lead somewhere, every variable is told of."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, clean_environment, run

README = (ROOT / "README.md").read_text()


def files():
    """Every file of the repository, without what was built or installed in it."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def documents():
    return [path for path in files() if path.suffix == ".md"]


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    headings = re.findall(r"^#+ (.*)", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_quickstart_runs_as_printed(build_dir):
    pytest.importorskip("transformers")
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(block.strip().splitlines()) <= 15
    env = clean_environment(PYTHONPATH=ROOT / "shim" / "python", CWS_LIBRARY=build_dir / "lib" / "libcws.so")
    lines = run(sys.executable, "-c", block, env=env, cwd=ROOT).stdout.splitlines()
    assert lines[0].startswith("whole model: 9.30 MiB -> ")
    assert lines[1] == "ROMEO:" and lines[-1] == "same text: True"


def test_five_lines_run_as_printed(command, shim, tmp_path):
    """The first two install what tools/setup.sh does (test_package.py installs the package). The others run, with the
    library preloaded in place of the .pth file."""
    pytest.importorskip("transformers")
    (block,) = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = block.strip().splitlines()
    assert len(lines) == 5 and lines[0].startswith("apt-get install ") and "pip install ." in lines[1]
    assert set(lines[0].split()[2:]) <= set((ROOT / "tools" / "setup.sh").read_text().replace('"', " ").split())
    for folder in ("tests", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = os.pathsep.join([str(command.parent), os.path.dirname(sys.executable), os.environ["PATH"]])
    env = clean_environment(PATH=path, LD_PRELOAD=shim)
    done = [run("sh", "-c", line, env=env, cwd=tmp_path) for line in lines[2:]]
    assert "packed" in done[0].stderr and "fine: 56 tensors" in done[1].stdout
    assert done[2].stdout.startswith("ROMEO:")
    assert re.search(r"^codecllm: +evictions +[1-9]", done[2].stderr, re.MULTILINE)


@pytest.mark.parametrize("script", ["tools/examples/demo.sh", "tests/run.sh"])
def test_scripts_stand_by_themselves(script):
    assert re.search(rf"^    {script}$", README, re.MULTILINE) and os.access(ROOT / script, os.X_OK)
    run("sh", "-n", ROOT / script)


def test_readme_stays_short():
    assert len(README.splitlines()) <= 170


def test_links_lead_somewhere():
    wrong = []
    for document in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = document.parent / name if name else document
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
                wrong.append(f"{document.relative_to(ROOT)}: {target}")
    assert not wrong


def test_files_that_are_named_are_there():
    """`host/view.h` or `rung_*.c`, from the document's folder or the root; a bare name anywhere. What tells of the past
    may name what is gone."""
    everything, wrong = files(), []
    names = {path.name for path in everything}
    for document in documents():
        if document.name == "CHANGELOG.md" or document.parent.name == "benchmarks":
            continue
        for name in re.findall(r"`([\w*][\w./*-]*\.(?:c|h|cu|cuh|def|py|sh|pth))`", without_code(document.read_text())):
            found = name in names or any(next(base.glob(name), None) for base in (document.parent, ROOT))
            if not found and not re.search("[A-Z]{2}|_X", name):
                wrong.append(f"{document.relative_to(ROOT)}: {name}")
    assert not wrong


def test_every_variable_is_told_of():
    names = set(re.findall(r'"(CODEC_[A-Z_]+)"', (ROOT / "store" / "base" / "options.c").read_text()))
    table = set(re.findall(r"^\| `(CODEC_[A-Z_]+)` ", (ROOT / "docs" / "environment.md").read_text(), re.MULTILINE))
    assert names and names == table
