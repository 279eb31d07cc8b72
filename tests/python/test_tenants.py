"""tools/gpu/tenants.py and disk.py, tried on the CPU with the small model: processes beside each other, one of them
killed, and a run whose file leaves the page cache; and what they find wrong, with made-up runs."""

import os
import subprocess
import sys
import types

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools" / "gpu"))


def run(tool, build, tmp_path, *options):
    command = [sys.executable, ROOT / "tools" / "gpu" / tool, tmp_path / "out", "--build", build]
    command += ["--work", tmp_path / "work", "--shape", "bard", "--device", "cpu", *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert not done.stderr.strip(), done.stderr
    return done.returncode, (tmp_path / "out" / "table.txt").read_text().splitlines()


def test_one_of_two_is_killed(build, tmp_path):
    code, table = run(
        "tenants.py", build, tmp_path, "--processes", "2", "--models", "same", "--budget", "4M", "--tokens", "6"
    )
    rows = {line[:22].strip(): line[22:].split() for line in table if line.startswith("2 same ")}
    assert code == 0 and table[-1] == "all right", table
    assert list(rows) == ["2 same 1", "2 same 2", "2 same new"]
    for cells in rows.values():
        assert cells[:2] == ["A", "same"] and int(cells[2]) >= 2
    assert int(rows["2 same 2"][2]) >= 4  # beside the first one, and when that was gone
    assert any("of the packed files in the page cache, once" in line for line in table)
    assert "FAILED" not in "".join(table)


@pytest.mark.parametrize(("digest", "wrong"), [("a", False), ("b", True)])
def test_other_bits_are_wrong(digest, wrong):
    import tenants

    facts = {"digest": digest, "tokens_per_s": 1.0}
    tenant = types.SimpleNamespace(name="x", which=0, rounds=[("beside", facts)], speed=lambda phase: "-")
    said = []
    assert tenants.judge(tenant, ["a"], said.append, ["-", "-"]) is wrong
    assert said[0].split()[2] == ("OTHER" if wrong else "same")
    tenant.rounds = []
    assert tenants.judge(tenant, ["a"], said.append, ["-", "-"])


def test_from_the_disk(build, tmp_path):
    options = ["--readers", "preadv", "--budget", "4M", "--host-budget", "4M", "--tokens", "4"]
    code, table = run("disk.py", build, tmp_path, *options)
    assert code == 0, table
    assert table[0].endswith("GB/s") and "direct" in table[0]
    assert table[-1].split()[:2] == ["preadv", "same"] and table[-2].startswith("plain")


def marks(read, pinned=0):
    """A run of three tokens, of which two are counted, in a second each."""
    times = [(0, 0, 0), (1, 10, 0), (2, 10 + read, 5), (3, 10 + 2 * read, 10)]
    return {"marks": times, "tokens": [1], "logits": b"x", "load_s": 1, "pinned": pinned, "resident": 1}


@pytest.mark.parametrize(
    ("result", "least", "wrong"),
    [
        (marks(900_000_000), 0.85, []),
        (marks(800_000_000), 0.85, ["LESS THAN 0.85 OF THE DISK"]),
        (marks(800_000_000), 0, []),
        (marks(900_000_000, (4 << 20) + 1), 0.85, ["MORE PINNED THAN 4M"]),
        ({**marks(900_000_000), "tokens": [2]}, 0.85, ["OTHER BITS"]),
    ],
)
def test_what_is_wrong_with_a_run(result, least, wrong):
    import disk

    arguments = types.SimpleNamespace(host_budget="4M", least_share=least)
    cells, found = disk.judge(arguments, result, marks(0), 1.0)
    assert found == wrong
    assert cells[1] == "1.000" and cells[3] == f"{result['marks'][2][1] / 1e9 - 1e-8:.2f}"


def test_speed_is_measured_on_files_of_any_size(tmp_path):
    import disk

    path = tmp_path / "small"
    path.write_bytes(os.urandom(5 << 20))
    assert disk.disk_speed([str(path)], False) > 0
