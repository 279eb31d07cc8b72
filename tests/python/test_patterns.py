"""tools/gpu/patterns.py, tried on the CPU with small sizes: patterns run, and it finds one that fails, computes
something else, exceeds its budget or is not paged."""

import argparse
import sys

import pytest
from conftest import ROOT, run

TOOL = ROOT / "tools" / "gpu" / "patterns.py"
sys.path.insert(0, str(TOOL.parent))
SMALL = "--device cpu --scale small".split()
MIB = 1 << 20


@pytest.fixture(scope="module")
def work(build, tmp_path_factory):
    """Where the models are, which the first run makes."""
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("mode", ["lossless", "q8"])
def test_paged_is_plain(build, work, tmp_path, mode):
    arguments = [tmp_path, "--build", build, "--work", work, "--only", "fused_in_file_order", "--mode", mode, *SMALL]
    head, row, last = run(sys.executable, TOOL, *arguments).stdout.splitlines()
    assert row.split()[0] == "fused_in_file_order" and row.split()[-1] == "same"
    assert last == "1 right, 0 FAIL"
    assert "evictions" in (tmp_path / "fused_in_file_order-paged.log").read_text()  # it was under the shim
    values = work / "patterns-llama-small.q8.unpacked" / "model.safetensors"
    if mode != "lossless":  # of which both know only what the store holds
        assert values.read_bytes() != (work / "patterns-llama-small" / "model.safetensors").read_bytes()


def test_failures_are_rows(build, work, tmp_path):
    """Without a shim nothing reads a packed model."""
    arguments = [tmp_path, "--build", tmp_path, "--work", work, "--only", "whole", *SMALL]
    done = run(sys.executable, TOOL, *arguments, check=False)
    assert done.returncode == 1
    assert "FAIL: FAILED with 1" in done.stdout and "0 right, 1 FAIL" in done.stdout


def test_all_patterns_of_one_model(build, work):
    """In this process: they bring what they say, so that those of the same weights compute the same."""
    import torch
    from loads import PATTERNS, SIZES, Source
    from patterns import bin_of, digest, inputs, load, model_of, prepare

    out = str(work)
    arguments = argparse.Namespace(out=out, work=out, build=str(build), scale="small", device="cpu", mode="lossless")
    model, _ = prepare(arguments, "llama")
    digests = {}
    with torch.no_grad():
        for name in PATTERNS:
            if model_of(name) == "llama":
                source = Source(model, "cpu", SIZES["small"], bin_of(arguments))
                weights, play = load(name, source, {})
                results = list(play(inputs(source, 0)))
                assert all(bool(result.isfinite().all()) for result in results), name
                assert weights or name == "two_buffers"
                digests[name] = digest(results)
    same = ["load_file", "on_device", "to_empty", "pinned", "staging", "own_mapping", "device_to_device", "memory_pool"]
    assert {digests[name] for name in same} == {digests["whole"]}
    for name, other in [("fused_in_file_order", "fused"), ("fused_on_device", "fused"), ("asks", "fused")]:
        assert digests[name] == digests[other], name
    assert digests["experts"] == digests["experts_on_device"]
    assert digests["adapter_merged"] != digests["whole"]
    assert digests["columns"] == digests["columns_copied"]


def facts(**more):
    """Of a program of 100 MiB, paged in a budget of 60 MiB; the plain one's activations take 20."""
    after = {"bound": 90 * MIB, "anonymous": 30 * MIB, "compressed": 70 * MIB, "peak": 60 * MIB, "driver": 4 * MIB}
    after.update(more.pop("after", {}))
    result = {"digests": list("abcd"), "finite": True, "ms": [1.0] * 4, "load_s": 1.0, "weights": 100 * MIB}
    result.update(told=[{"loads": 5}] * 4, activations=20 * MIB, outside=600, reserved=120, before_mib=10)
    return {**result, "peak_mib": 470 + 60, "after": after, **more}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, None),
        ({"after": {"anonymous": 85 * MIB}}, "NOT PAGED: 85 MiB are anonymous, 84 may be"),
        ({"after": {"peak": 61 * MIB}}, "OVER BUDGET by 1.0 MiB as counted; the driver has 4.0"),
        ({"peak_mib": 470 + 60 + 101}, "OVER BUDGET as seen from outside"),
        ({"digests": list("abce")}, "1 ROUNDS OF OTHER BITS"),
    ],
)
def test_what_is_judged(more, words):
    from patterns import COLUMNS, judge

    cells, wrong = judge(facts(**more), facts(), 60 * MIB)
    assert wrong == ([words] if words else [])
    assert len(cells) == len(COLUMNS)
    assert cells[7] == "-"  # a build that counts no adopted bytes


@pytest.mark.parametrize(
    ("names", "tried", "words"),
    [
        ([], [10], []),  # a tenth will do
        ([30], [10, 30], []),
        ([30, 40], [10, 30, 40], ["NAMED TOO LITTLE: 30 MiB"]),
        ([5], [10], ["NO LEAST BUDGET IS NAMED, or one that was too little"]),
        ([None], [10], ["NO LEAST BUDGET IS NAMED, or one that was too little"]),
    ],
)
def test_the_least_budget_is_tried(names, tried, words, tmp_path, monkeypatch):
    import patterns

    left, budgets = list(names), []

    def fake(arguments, name, model, budget):
        budgets.append(budget // MIB)
        line = ""
        if left:
            least = left.pop(0)
            line = f"codecllm: ...; the least budget that would have done is {least} MiB\n" if least else "no\n"
        (tmp_path / f"{name}-paged.log").write_text(line)
        return {"failed": "x"} if line else {}

    monkeypatch.setattr(patterns, "run", fake)
    monkeypatch.setattr(patterns, "budget_of", lambda arguments, plain: 10 * MIB)
    arguments = argparse.Namespace(out=str(tmp_path), share="least")
    _, budget, wrong = patterns.run_paged(arguments, "whole", "model", {})
    assert (budgets, wrong) == (tried, words)
    assert budget == tried[-1] * MIB
