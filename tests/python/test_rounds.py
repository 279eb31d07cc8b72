"""tools/gpu/rounds.py, tried on the CPU with small sizes: it runs, and it finds a program that fails, computes
something else, exceeds its budget or loads too much."""

import json
import sys

import pytest
from conftest import ROOT, run

TOOL = ROOT / "tools" / "gpu" / "rounds.py"
sys.path.insert(0, str(TOOL.parent))
SMALL = "--device cpu --scale small".split()
MIB = 1 << 20


def test_paged_rounds_are_the_plain_ones(build, tmp_path):
    """All programs, one after the other in one process: the strict case is that."""
    out, work = tmp_path / "out", tmp_path / "work"
    done = run(sys.executable, TOOL, out, "--build", build, "--work", work, "--only", "strict", *SMALL)
    row = done.stdout.splitlines()[1].split()
    assert (row[0], row[-1]) == ("strict", "same")
    paged = json.loads((out / "strict-50.json").read_text())
    assert len(paged["digests"]) == len(paged["ms"]) == 5 * 6
    assert len(set(paged["digests"])) == 5 * 6
    assert "evictions" in (out / "strict-50.log").read_text()  # it was under the shim


def test_other_bits_and_failures_are_found(build, tmp_path):
    arguments = ["--work", tmp_path / "work", "--only", "cache", *SMALL]
    run(sys.executable, TOOL, tmp_path / "out", "--build", build, *arguments)
    shard = tmp_path / "work" / "rounds-small" / "first.safetensors"
    content = bytearray(shard.read_bytes())
    content[-2:] = b"\x40\x41"  # 12.0, in a weight
    shard.write_bytes(content)
    done = run(sys.executable, TOOL, tmp_path / "again", "--build", build, *arguments, check=False)
    assert done.returncode == 1
    assert "6 ROUNDS OF OTHER BITS" in done.stdout
    # A build that is not there: without a shim nothing reads a packed model.
    done = run(sys.executable, TOOL, tmp_path / "third", "--build", tmp_path, *arguments, check=False)
    assert done.returncode == 1
    assert "FAILED with 1" in done.stdout


def test_what_does_not_fit():
    from rounds import does_not_fit

    parts = {"first": 100, "decoder": 10}
    assert does_not_fit(parts, {"first": 4, "decoder": 1}, 120) == 0
    assert does_not_fit(parts, {"first": 4, "decoder": 1}, 105) == 5  # of what is used once
    assert does_not_fit(parts, {"first": 4, "decoder": 1}, 40) == 10 + 4 * 60
    assert does_not_fit(parts, {"first": 2}, 40) == 2 * 60


def facts(loads, **more):
    """Of a program of 100 MiB that is used once in each round, beside 20 MiB."""
    told = [{"loaded_bytes": load * MIB, "frames_created": 0, "stolen": 0} for load in loads]
    after = [{"staging": 5 * MIB, "peak": 70 * MIB} for _ in loads]
    count = len(loads)
    result = {"told": told, "after": after, "ms": [1.0] * count, "digests": ["a"] * count, "finite": True, "kept": 0}
    result.update(parts={"first": 100 * MIB}, uses=[{"first": 1}] * count, activations=[20 * MIB] * count)
    result.update(span=[30 * MIB] * count, outside=600, reserved=120, before_mib=10, peak_mib=545)
    return {**result, **more}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"loads": [100, 90, 80, 70, 55, 60]}, None),
        ({"loads": [100, 90, 80, 70, 55, 61]}, "A ROUND LOADS 1.11 OF WHAT DOES NOT FIT"),
        ({"peak_mib": 470 + 70 + 101}, "OVER BUDGET"),
        ({"after": [{"staging": 5 * MIB, "peak": 70 * MIB + 1}] * 6}, "OVER BUDGET"),
        ({"kept": 7 * MIB}, "empty_cache() KEPT 7 MiB"),
        ({"span": [MIB, MIB, MIB, MIB, MIB, 3 << 30]}, "ADDRESSES OF 3.0 GiB LOST"),
        ({"digests": list("aabaaa")}, "1 ROUNDS OF OTHER BITS"),
    ],
)
def test_what_is_judged(more, words):
    from rounds import judge

    more = {"loads": [55] * 6, **more}
    _, wrong = judge("images", facts(**more), facts([0] * 6), 70 * MIB)
    assert wrong == ([words] if words else [])
