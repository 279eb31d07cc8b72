"""tools/gpu/denoise.py, tried on the CPU with small sizes: it runs, and it finds a program that fails or computes
something else."""

import json
import sys

from conftest import ROOT, run

TOOL = ROOT / "tools" / "gpu" / "denoise.py"
sys.path.insert(0, str(TOOL.parent))
SMALL = "--device cpu --hidden 256 --blocks 1,2 --tokens 32,16 --steps 1 --budgets 6M".split()


def test_a_paged_step_is_the_plain_one(build, tmp_path):
    done = run(sys.executable, TOOL, tmp_path / "out", "--build", build, "--work", tmp_path / "work", *SMALL)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["a", "plain", "6M"]
    assert rows[1][4] == rows[2][4] == "same"
    paged = json.loads((tmp_path / "out" / "6M.json").read_text())
    assert len(paged["digests"]) == len(paged["ms"]) == len(paged["steps"]) == 3
    assert "evictions" in (tmp_path / "out" / "6M.log").read_text()  # it was under the shim


def test_other_bits_are_found(build, tmp_path):
    arguments = ["--build", build, "--work", tmp_path / "work", *SMALL]
    run(sys.executable, TOOL, tmp_path / "out", *arguments)
    (plain,) = [p for p in (tmp_path / "work").iterdir() if p.suffix != ".packed"]
    shard = next(plain.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-2:] = b"\x40\x41"  # 12.0, in a bias or a weight
    shard.write_bytes(content)
    done = run(sys.executable, TOOL, tmp_path / "again", *arguments, check=False)
    assert done.returncode == 1
    assert "3 OTHERS" in done.stdout


def test_a_program_that_fails_has_a_row(build_dir, tmp_path):
    """Here the one of a build that is not there: without a shim nothing reads a packed model."""
    arguments = ["--build", build_dir, "--work", tmp_path / "work", "--beside", tmp_path, *SMALL]
    done = run(sys.executable, TOOL, tmp_path / "out", *arguments, check=False)
    assert done.returncode == 1
    assert "6M beside      FAILED with 1" in done.stdout
    assert (tmp_path / "out" / "table.txt").read_text() == done.stdout


def test_counters_that_a_build_lacks_are_dashes():
    from denoise import RATES, row

    plain = {"ms": [9, 9, 2.0], "digests": ["a"] * 3, "a_step": {}, "peak_mib": 7}
    rates = {key: 3e6 for key in RATES if key != "stolen"}
    cells = row("8G", {**plain, "ms": [9, 9, 4.0], "a_step": rates}, plain).split()
    assert cells == "8G 4.0 2.00 7 same 3000000 0.00 75% 3.0 (3000000) 3.0 (3000000) 3000000.0 -".split()
