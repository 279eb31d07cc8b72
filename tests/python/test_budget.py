"""codecllm.set_budget, sleep and wake: in host memory, on the stand-in for a GPU, and where they cannot be."""

import json
import sys

import pytest
from conftest import ROOT, clean_environment, run, standin_environment

PACKAGE = ROOT / "shim" / "python"

HOST = """
import json, mmap, sys, codecllm
plain = open(sys.argv[2], "rb").read()
seen = []
codecllm.set_budget("6M")
with open(sys.argv[1], "rb") as f:
    view = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
def look():
    assert view[:] == plain
    stats = codecllm.stats()
    assert stats["resident_bytes"] <= stats["budget_bytes"]
    return stats["budget_bytes"]
seen.append(look())
for size in ("4M", 2 << 21, "3.5M", "0:12M"):
    codecllm.set_budget(size)
    seen.append(look())
for size in ("", "3 G", "0", -5, True, 2.5, None, "1M", "5\\0M", "\\udcff", "\\N{SNOWMAN}"):
    try:
        codecllm.set_budget(size)
        raise SystemExit(f"{size!r} was taken")
    except codecllm.Error as why:
        assert "\\n" not in str(why) and len(str(why)) > 20, why
    assert look() == 12 << 20
for i in range(1000):
    codecllm.sleep()
    if codecllm.stats()["resident_bytes"] == 0:
        break
seen.append(codecllm.stats()["resident_bytes"])
codecllm.wake()
look()
print(json.dumps(seen))
"""


def test_in_host_memory(shim, bard, packed_bard):
    env = clean_environment(PYTHONPATH=PACKAGE, CODEC_VRAM_BUDGET="10M", LD_PRELOAD=shim)
    paths = [directory / "model.safetensors" for directory in (packed_bard, bard)]
    done = run(sys.executable, "-c", HOST, *paths, env=env)
    mib = 1 << 20
    assert json.loads(done.stdout) == [6 * mib, 4 * mib, 4 * mib, 7 * mib // 2, 12 * mib, 0]


GPU = """
import ctypes, json, codecllm
cuda = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and cuda.cuCtxSetCurrent(context) == 0
codecllm.set_budget("60M")
assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(20 << 20)) == 0
seen = [codecllm.memory_stats(0)["budget"]]
codecllm.set_budget("50M")
seen.append(codecllm.memory_stats(0)["budget"])
try:
    codecllm.set_budget("16M")
except codecllm.Error as why:
    seen += [why.code, str(why)]
codecllm.sleep()
codecllm.wake()
seen.append(codecllm.memory_stats(0)["budget"])
print(json.dumps(seen))
"""


def test_on_a_gpu(shim, build_dir):
    env = standin_environment(shim, build_dir, PYTHONPATH=PACKAGE)
    first, second, code, line, last = json.loads(run(sys.executable, "-c", GPU, env=env).stdout)
    assert (first, second, last) == (60 << 20, 50 << 20, 50 << 20)
    assert code == -10070 and line.startswith("GPU 0: a budget of 16 MiB cannot be met now")
    assert "the driver 20 MiB" in line and "it stays at 50 MiB" in line


@pytest.mark.parametrize("call", ["set_budget('2G')", "sleep()", "wake()"])
def test_where_it_cannot_be(shim, call):
    code = f"import codecllm\ntry:\n    codecllm.{call}\nexcept codecllm.Error as why:\n    print(why)"
    env = clean_environment(PYTHONPATH=PACKAGE)
    assert "libcodecshim.so is not loaded" in run(sys.executable, "-c", code, env=env).stdout
    env = clean_environment(PYTHONPATH=PACKAGE, LD_PRELOAD=shim)
    assert (
        "paging is off in this process: CODEC_VRAM_BUDGET was not set"
        in run(sys.executable, "-c", code, env=env).stdout
    )
