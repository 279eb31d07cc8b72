"""tools/gpu/kvcache.py, tried on the CPU with the small model: a paged program with a long context computes what the
plain one does; and the tool tells a refusal that is as promised from one that is not."""

import argparse
import sys

import pytest
from conftest import ROOT, run

TOOL = ROOT / "tools" / "gpu" / "kvcache.py"
sys.path.insert(0, str(TOOL.parent))
MIB = 1 << 20
LINE = "codecllm: an allocation of 9.0 MiB does not fit ...; the least budget that would have done is {} MiB\n"
TORCH = "torch.OutOfMemoryError: CUDA out of memory.\n"


def test_a_long_context_on_a_cpu(build, tmp_path):
    """The cache is larger than the budget, which bounds weights alone."""
    pytest.importorskip("transformers")
    work = tmp_path / "work"
    small = "--device cpu --shape bard --batch 16 --length 120 --tokens 8 --chunk 40".split()
    arguments = [tmp_path / "out", "--build", build, "--work", work, "--only", "static,refused", *small]
    _, row, left_out, last = run(sys.executable, TOOL, *arguments).stdout.splitlines()
    name, weights, cache, budget, *_, outcome = row.split()
    assert (name, outcome) == ("static", "same")
    assert int(weights) > int(budget) and int(cache) >= int(budget)
    assert left_out == "left out, because the budget bounds weights alone on a CPU: refused"
    assert last == "1 right, 0 FAIL"
    assert "evictions" in (tmp_path / "out" / "static-paged.log").read_text()  # it was under the shim


@pytest.mark.parametrize(
    ("result", "said", "goes_on", "words"),
    [
        ({"failed": "FAILED with 1; ..."}, TORCH + LINE.format(60), False, None),
        ({"refused": "CUDA out of memory."}, LINE.format(60), True, None),
        ({"refused": None}, "", True, "NOT REFUSED: it ended well"),
        ({"refused": None}, "", False, "NOT REFUSED: it ended well"),
        ({"failed": "FAILED: not done in 300 s; "}, TORCH + LINE.format(60), False, "NOT REFUSED: FAILED: not done"),
        ({"failed": "FAILED with -11; "}, TORCH + LINE.format(60), False, "NOT REFUSED: FAILED with -11"),
        ({"failed": "FAILED with 1; "}, "KeyError: 3\n" + LINE.format(60), False, "FAILED, but not for memory"),
        ({"failed": "FAILED with 1; "}, TORCH, False, "NO LEAST BUDGET IS NAMED above 40 MiB"),
        ({"failed": "FAILED with 1; "}, TORCH + LINE.format(40), False, "NO LEAST BUDGET IS NAMED above 40 MiB"),
    ],
)
def test_what_a_refusal_is(result, said, goes_on, words, tmp_path):
    from kvcache import not_refused

    (tmp_path / "log").write_text(said)
    told = not_refused(result, tmp_path / "log", 40 * MIB, goes_on)
    assert told is None if words is None else told.startswith(words)


def facts(*said, **more):
    after = {"loaded_bytes": 500 * MIB, "peak": 40 * MIB, **more.pop("after", {})}
    plain = {"outside": 600, "reserved": 120, "before_mib": 10}  # it takes 470 beside its tensors
    return {
        "said": list(said),
        "refused": None,
        "finite": True,
        "s": 1.0,
        "after": after,
        "peak_mib": 510,
        **plain,
        **more,
    }


LONG, SHORT = ["long", "a"], ["short", "b"]


@pytest.mark.parametrize(
    ("name", "paged", "outcome", "words"),
    [
        ("offloaded", facts(LONG, SHORT), "same", None),
        ("offloaded", facts(["long", "c"], SHORT), "other", "OTHER BITS: long"),
        ("offloaded", facts(LONG, SHORT, after={"peak": 41 * MIB}), "same", "OVER BUDGET by 1.0 MiB as counted"),
        ("offloaded", facts(LONG, SHORT, peak_mib=620), "same", "OVER BUDGET as seen from outside"),
        ("offloaded", facts(LONG, SHORT, after={"loaded_bytes": 0}), "-", "NOTHING WAS PAGED"),
        ("offloaded", {"failed": "FAILED with 1; x"}, "-", "FAILED with 1; x"),
        ("outgrown", facts(LONG, SHORT), "same", None),
        ("outgrown", {"failed": "FAILED with 1; x"}, "refused", None),
        ("refused", {"failed": "FAILED with 1; x"}, "refused", None),
        ("refused", facts(LONG, SHORT), "-", "NOT REFUSED: it ended well"),
        ("freed", facts(SHORT, refused="CUDA out of memory."), "refused", None),
        ("freed", facts(["short", "c"], refused="CUDA out of memory."), "other", "OTHER BITS: short"),
        ("freed", {"failed": "FAILED with 1; x"}, "-", "NOT REFUSED: FAILED with 1; x"),
    ],
)
def test_what_is_judged(name, paged, outcome, words, tmp_path):
    from kvcache import COLUMNS, judge

    (tmp_path / "log").write_text(TORCH + LINE.format(60))
    arguments = argparse.Namespace(device="cuda")
    cells, wrong = judge(arguments, name, facts(LONG, SHORT), paged, 40 * MIB, tmp_path / "log")
    assert wrong == ([words] if words else [])
    assert (cells[-1], len(cells)) == (outcome, len(COLUMNS) - 3)


def test_a_cache_that_fits_cannot_be_refused(tmp_path):
    """Before any program runs."""
    pytest.importorskip("transformers")
    (tmp_path / "bard.packed").mkdir()
    done = run(sys.executable, TOOL, tmp_path, "--work", tmp_path, "--shape", "bard", check=False)
    assert done.returncode == 2
    assert "the cache has 144 MiB, which the budget holds: lower it" in done.stderr
