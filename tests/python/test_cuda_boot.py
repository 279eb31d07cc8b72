"""The package on a machine with a GPU: PyTorch's allocator is chosen, and memory_stats() tells where device memory
goes. The GPU here is the stand-in driver of the C tests."""

import importlib.util
import json
import os
import sys

import pytest
from conftest import ROOT, clean_environment, run, standin_environment

PACKAGE = ROOT / "shim" / "python"


@pytest.fixture(scope="module")
def boot():
    code = (
        "import json, sys; from codecllm import _boot; "
        "print(json.dumps([_boot.allocator_settings(c) for c in json.loads(input())]))"
    )

    def ask(*confs):
        done = run(sys.executable, "-c", code, env=clean_environment(PYTHONPATH=PACKAGE), input=json.dumps(confs))
        return json.loads(done.stdout)

    return ask


def test_only_conflicting_keys_are_rewritten(boot):
    backend = "backend:cudaMallocAsync"
    cases = {
        "": (backend, []),
        "backend:cudaMallocAsync": (backend, []),
        "backend:native": (backend, ["backend:native"]),
        "expandable_segments:True": (backend, ["expandable_segments:True"]),
        "expandable_segments:False": ("expandable_segments:False," + backend, []),
        "max_split_size_mb:64, expandable_segments:True": (
            "max_split_size_mb:64," + backend,
            ["expandable_segments:True"],
        ),
        "roundup_power2_divisions:[256:1,512:2],backend:native,garbage_collection_threshold:0.6": (
            "roundup_power2_divisions:[256:1,512:2],garbage_collection_threshold:0.6," + backend,
            ["backend:native"],
        ),
    }
    assert [tuple(answer) for answer in boot(*cases)] == [tuple(want) for want in cases.values()]


PROGRAM = """
import os
from codecllm import _boot
_boot._has_gpu = lambda: {gpu}
_boot.choose_allocator()
print(os.environ.get("PYTORCH_ALLOC_CONF"), os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
"""


@pytest.mark.parametrize("gpu", [True, False])
def test_the_allocator_is_set_where_there_is_a_gpu(gpu):
    env = clean_environment(PYTHONPATH=PACKAGE, PYTORCH_CUDA_ALLOC_CONF="backend:native,max_split_size_mb:64")
    env.pop("PYTORCH_ALLOC_CONF", None)
    done = run(sys.executable, "-c", PROGRAM.format(gpu=gpu), env=env)
    if gpu:
        assert done.stdout.split() == ["backend:cudaMallocAsync", "max_split_size_mb:64,backend:cudaMallocAsync"]
        assert (
            done.stderr.count("\n") == 1
            and "PYTORCH_CUDA_ALLOC_CONF=backend:native,max_split_size_mb:64 is now" in done.stderr
        )
    else:
        assert done.stdout.split() == ["None", "backend:native,max_split_size_mb:64"]
        assert done.stderr == ""


MEMORY = """
import ctypes, json, codecllm
try:
    codecllm.memory_stats(0)
except codecllm.Error as e:
    print(e)
cuda = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and cuda.cuCtxSetCurrent(context) == 0
result = cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(4 << 20))
assert result == 0, result
print(json.dumps([codecllm.memory_stats(), codecllm.memory_stats("cuda:0")]))
"""


def test_memory_stats_tell_where_memory_goes(shim, build_dir):
    env = standin_environment(shim, build_dir, PYTHONPATH=PACKAGE)
    done = run(sys.executable, "-c", MEMORY, env=env, check=False)
    assert done.returncode == 0, done.stderr
    nothing, numbers = done.stdout.splitlines()
    assert "nothing was allocated on it yet" in nothing
    devices, first = json.loads(numbers)
    assert devices == {"0": first}
    assert first["budget"] == 40 << 20 and first["other"] >= 4 << 20 and first["decoded"] == 0
    assert {"decoded", "compressed", "staging", "other", "peak", "used"} <= set(first)
    keys = "from codecllm import counters; print(*counters.MemoryStats.__annotations__)"
    assert set(run(sys.executable, "-c", keys, env=env).stdout.split()) == set(first)
    assert first["peak"] >= first["used"] >= first["staging"] + first["other"]


def test_memory_stats_without_the_library():
    code = "import codecllm\ntry:\n    codecllm.memory_stats()\nexcept codecllm.Error as e:\n    print(e)"
    done = run(sys.executable, "-c", code, env=clean_environment(PYTHONPATH=PACKAGE))
    assert "libcodecshim.so is not loaded" in done.stdout


def test_the_kernels_compile_with_nvrtc(build_dir):
    """For sm_75 and sm_90, with the NVRTC of the oldest driver that is supported, where it is installed. No GPU is
    needed."""
    found = importlib.util.find_spec("nvidia")
    places = [os.path.join(p, "cuda_nvrtc", "lib") for p in (found.submodule_search_locations if found else [])]
    places = [p for p in places if os.path.isdir(p)]
    if not places:
        pytest.skip("no nvidia-cuda-nvrtc-cu12")
    done = run(build_dir / "bin" / "test_gpu_compile", "real", env=clean_environment(LD_LIBRARY_PATH=places[0]))
    assert "sm_75: " in done.stdout and "sm_90: " in done.stdout
