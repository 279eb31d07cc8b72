"""tools/bench/peers, tried on the CPU with tiny models: contenders that run there compute the same, and one that cannot
be had is a row that says why."""

import json
import sys

import pytest
from conftest import ROOT, run

TOOL = ROOT / "tools" / "bench" / "peers" / "run.py"
sys.path.insert(0, str(TOOL.parent))
TINY = "--device cpu --tiny --steps 1".split()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the models are: made once."""
    return tmp_path_factory.mktemp("work")


def compare(build, work, out, *more):
    """Rows of the last table, by name."""
    done = run(sys.executable, TOOL, out, "--build", build, "--work", work, *TINY, *more)
    table = (out / "table.txt").read_text()
    assert done.stdout.endswith(table)
    return {line[:22].strip(): line[22:].split() for line in table.splitlines()[3:]}


def test_a_llama_computes_the_same_in_all_ways(build, work, tmp_path):
    out = tmp_path / "out"
    rows = compare(build, work, out, "--no-install", "--models", "tinyllama", "--peers", "accelerate,aimdo,dfloat11")
    assert [rows[name][4] for name in ("plain", "CodecLLM 80M", "accelerate, offload")] == ["same"] * 3
    assert rows["comfy-aimdo 80M"] == rows["DFloat11, offload"] == ["needs", "a", "GPU"]
    assert "evictions" in (out / "tinyllama-codecllm-80M.log").read_text()  # it was under the shim, and paged
    facts = json.loads((out / "tinyllama-accelerate.json").read_text())
    assert (facts["name"], facts["model"], len(facts["ms"])) == ("accelerate, offload", "tinyllama", 1)


def test_a_transformer_of_diffusers_computes_the_same_in_all_ways(build, work, tmp_path):
    pytest.importorskip("diffusers")
    rows = compare(build, work, tmp_path / "out", "--no-install", "--models", "flux", "--peers", "leaves,blocks")
    names = ["plain", "CodecLLM 1M", "diffusers, leaves", "diffusers, blocks"]
    assert [rows[name][4] for name in names] == ["same"] * 4


def test_a_peer_that_cannot_be_installed_has_a_row(build, work, tmp_path):
    """Here from a folder without wheels."""
    import install

    install.PACKAGES["none"] = ["codecllm-peer-that-is-not-there"]

    class Arguments:
        install, work, out, wheels = True, str(tmp_path), str(tmp_path), str(tmp_path)

    python, missing = install.prepare(Arguments, ["none", "accelerate"], needs_diffusers=False)
    assert list(missing) == ["none"]  # accelerate of this interpreter is seen
    assert "codecllm-peer-that-is-not-there" in missing["none"]
    run(python, "-c", "import torch, accelerate")
    from run import attempt

    class Model:
        name = "tinyllama"

    Arguments.device = "cpu"
    assert attempt(Arguments, python, missing, Model, ("none", "none", None, False))["failed"].startswith(
        "not installed: ERROR"
    )


def test_rows():
    from run import row

    plain = {"ms": [2.0], "digest": "a", "load_s": 1, "peak_mib": 7}
    assert row("plain", plain, plain).split() == "plain 2.0 500 1.00 7 same 1.0 1".split()
    assert row("x", dict(plain, ms=[4.0], digest="b"), plain).split() == "x 4.0 250 2.00 7 OTHERS 1.0 1".split()
    assert row("x", {"failed": "needs a GPU"}, plain).split() == "x needs a GPU".split()
    assert row("x", plain, {"failed": "it was too large"}).split() == "x 2.0 500 - 7 - 1.0 1".split()


def test_a_codec_beside_ours(build, tmp_path):
    """With zipnn where it is installed, else with a row that says why not; our own rows are there all the same."""
    tool, out = TOOL.parent / "codecs.py", tmp_path / "out"
    options = ["--build", build, "--work", tmp_path, "--weights", "0.25", "--repeat", "1", "--no-install"]
    said = run(sys.executable, tool, out, *options).stdout
    assert said == (out / "codecs.txt").read_text()
    rows = {line[:26].strip(): line[26:].split() for line in said.splitlines()}
    assert 10.5 < float(rows["CodecLLM, portable"][0]) < 11
    assert float(rows["CodecLLM, portable"][2]) > 0
    assert "zipnn" in rows or 10.5 < float(rows["zipnn, all"][0]) < 11
