"""tools/gpu/adapters.py, tried on the CPU with the small model: programs that adapt a packed model by LoRA compute what
the plain ones do, and the tool finds one that fails, differs, pages nothing or exceeds its budget."""

import argparse
import sys

import pytest
from conftest import ROOT, run

TOOL = ROOT / "tools" / "gpu" / "adapters.py"
sys.path.insert(0, str(TOOL.parent))
SMALL = "--device cpu --shape bard --share 30".split()
MIB = 1 << 20


@pytest.fixture
def adapters(build, tmp_path):
    """Runs programs; gives what was said and the row of each."""

    def call(*names):
        where = ["--build", build, "--work", tmp_path / "work"]
        done = run(sys.executable, TOOL, tmp_path / "out", *where, "--only", ",".join(names), *SMALL)
        return done, {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:]}

    return call


def test_plain_torch(adapters, tmp_path):
    """An adapter is trained, with layers computed twice, and one is merged; what was written is kept, with a line."""
    from adapters import COLUMNS

    name = "torch-train+torch-checkpoint+torch-merge"
    done, rows = adapters(name)
    row = dict(zip(COLUMNS, rows[name]))
    assert row["bits"] == "same"
    assert int(row["written"]) > int(row["budget"]) >= int(row["peak"])
    assert done.stdout.splitlines()[-1] == "1 right, 0 FAIL"
    assert "written blocks stay in memory" in (tmp_path / "out" / f"{name}-paged.log").read_text()


def test_peft(adapters):
    """Adapters are loaded, switched, merged, unmerged, unloaded; one is trained with gradient checkpointing."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    name = "peft-merge+peft-checkpoint"
    assert adapters(name)[1][name][-1] == "same"


def test_failures_are_rows(tmp_path, monkeypatch):
    import adapters

    arguments = argparse.Namespace(out=str(tmp_path), device="cpu", share=50)
    runs = iter([facts(), {"failed": "FAILED with 1"}, facts(), facts("abd"), facts("abe"), {"failed": "FAILED"}])
    monkeypatch.setattr(adapters, "prepare", lambda arguments, name: (str(tmp_path), "adapters"))
    monkeypatch.setattr(adapters, "run", lambda *unused: next(runs))
    assert adapters.row(arguments, "x")[0].endswith("FAIL: FAILED with 1")
    words, wrong = adapters.row(arguments, "x")
    assert wrong and "OTHER BITS: label 2, the plain program is not the same twice either" in words
    assert adapters.row(arguments, "x") == ("x                 FAIL: the plain program FAILED", True)


def facts(said="abc", **after):
    counters = {"decoded_bytes": 100, "written_bytes": 0, "peak_bytes": 3 * MIB, **after}
    return {"said": [[f"label {i}", bits] for i, bits in enumerate(said)], "finite": True, "s": 1.0, "after": counters}


@pytest.mark.parametrize(
    ("paged", "plain", "words"),
    [
        (facts(), facts(), None),
        (facts("abd"), facts(), "OTHER BITS: label 2"),
        (facts("ab"), facts(), "OTHER BITS: how much was said"),
        (facts(peak_bytes=5 * MIB), facts(), "OVER BUDGET by 1.0 MiB as counted"),
        (facts(decoded_bytes=0), facts(), "NOTHING WAS PAGED"),
        (facts("aaa"), facts("aaa"), "NOT FINITE, or all the same, so that equal bits tell nothing"),
    ],
)
def test_what_is_judged_on_a_cpu(paged, plain, words):
    from adapters import COLUMNS, judge

    cells, wrong = judge(argparse.Namespace(device="cpu"), plain, paged, 4 * MIB)
    assert wrong == ([words] if words else [])
    assert len(cells) == len(COLUMNS) - 2  # the weights and the budget are in front of it


@pytest.mark.parametrize(
    ("after", "peak_mib", "words"),
    [
        ({}, 530, None),
        ({"peak": 61 * MIB}, 530, "OVER BUDGET by 1.0 MiB as counted"),
        ({}, 631, "OVER BUDGET as seen from outside"),
        ({"loaded_bytes": 0}, 530, "NOTHING WAS PAGED"),
    ],
)
def test_what_is_judged_on_a_gpu(after, peak_mib, words):
    from adapters import COLUMNS, judge

    counters = {"bound": 90 * MIB, "anonymous": 30 * MIB, "peak": 60 * MIB, "loaded_bytes": 500 * MIB}
    plain = {**facts(), "outside": 600, "reserved": 120, "before_mib": 10}  # it takes 470 beside its tensors
    paged = {**facts(), "after": {**counters, **after}, "peak_mib": peak_mib}
    cells, wrong = judge(argparse.Namespace(device="cuda"), plain, paged, 60 * MIB)
    assert wrong == ([words] if words else [])
    assert len(cells) == len(COLUMNS) - 2


def test_what_is_not_installed_is_named(monkeypatch):
    import importlib.util

    from adapters import missing

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("peft", "diffusers") else object())
    assert missing("torch-merge") is None
    assert missing("peft-load+torch-merge") == "peft is not installed"
    assert missing("diffusers-lora") == "peft and diffusers are not installed"
