"""CodecLLM: run unmodified PyTorch programs from compressed model files inside a memory budget.

    CODEC_VRAM_BUDGET=2G python infer.py        # nothing to import: codecllm.pth loads the library
    import codecllm; codecllm.stats()           # what paging did so far, in this process
    codecllm.set_budget("3G"); codecllm.sleep() # another budget while it runs; nothing in memory for now

    import codecllm; codecllm.compress_model(model, mode="q8")    # weights compressed in memory, without the shim

The package has no logic of its own: the work is done by libcodecshim.so, libcws.so and the codecllm command. It depends
on nothing; what needs torch or transformers imports them when it is first used."""

from __future__ import annotations

import os
import sys

from codecllm._error import Error

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the import: codecllm.pth imports this package, too
if TYPE_CHECKING:
    from typing import Any, overload

    import torch

    from codecllm.counters import MemoryStats, Stats
    from codecllm.files import load_file, safe_open, save_file
    from codecllm.linear import CompressedEmbedding, CompressedLinear
    from codecllm.model import CompressionReport, compress_model
    from codecllm.pretrained import from_pretrained
    from codecllm.tensor import CompressedTensor
    from codecllm.transformers_integration import CodecConfig

# What needs torch, and the module it lives in.
_WITH_TORCH = {
    "CompressedTensor": "tensor",
    "CompressedLinear": "linear",
    "CompressedEmbedding": "linear",
    "CompressionReport": "model",
    "compress_model": "model",
    "safe_open": "files",
    "load_file": "files",
    "save_file": "files",
    "from_pretrained": "pretrained",
    "CodecConfig": "transformers_integration",
}

__all__ = [
    "CodecConfig",
    "CompressedEmbedding",
    "CompressedLinear",
    "CompressedTensor",
    "CompressionReport",
    "Error",
    "command_path",
    "compress_model",
    "from_pretrained",
    "load_file",
    "memory_stats",
    "safe_open",
    "save_file",
    "set_budget",
    "shim_path",
    "sleep",
    "stats",
    "wake",
]


def shim_path() -> str:
    """Path of libcodecshim.so, the library that LD_PRELOAD takes."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "libcodecshim.so")


def command_path() -> str:
    """Path of the codecllm command that was installed with this package."""
    import shutil
    import sysconfig

    for scripts in (sysconfig.get_path("scripts"), os.path.dirname(sys.executable)):
        path = os.path.join(scripts, "codecllm")
        if os.access(path, os.X_OK):
            return path
    path = shutil.which("codecllm")
    if path is None:
        raise Error("the codecllm command was not found beside this Python nor in PATH; install the package again")
    return path


def _function(name: str) -> Any:
    """A function of libcodecshim.so."""
    import ctypes

    try:
        return getattr(ctypes.CDLL(None), name)
    except AttributeError:
        raise Error(
            "libcodecshim.so is not loaded in this process; start it with CODEC_VRAM_BUDGET set, or by 'codecllm run'"
        ) from None


def _json(name: str) -> Any:
    """What a function of the library that writes JSON says."""
    import ctypes
    import json

    function = _function(name)
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    function.restype = ctypes.c_size_t
    size = 4096
    while True:
        buffer = ctypes.create_string_buffer(size)
        need = function(buffer, size)
        if need < size:
            return json.loads(buffer.value)
        size = need + 1


def stats() -> Stats:
    """The counters of paging in this process, as a dict: faults, decoded_bytes, evictions, resident_bytes,
    written_bytes, peak_bytes, reads, read_bytes and more. What no budget bounds: outside_bytes, the process's own
    memory beside the weights that are paged, and copied_bytes, about how much of the mapped_bytes of weights the
    program has copied there. Raises codecllm.Error when the library is not loaded."""
    return _json("codecllm_stats_json")


if TYPE_CHECKING:

    @overload
    def memory_stats(device: None = None) -> dict[int, MemoryStats]: ...
    @overload
    def memory_stats(device: int | str | torch.device) -> MemoryStats: ...


def memory_stats(device: int | str | torch.device | None = None) -> MemoryStats | dict[int, MemoryStats]:
    """Where the GPU's memory goes, in bytes: a dict with decoded (weights in device memory), compressed (in pinned host
    memory), staging, other (activations and all else), used, peak, budget, spilled (written weights and idle
    allocations that went to host memory for now) and more, for one device; without an argument a dict of these by
    device. A device appears with its first allocation. Raises codecllm.Error when the library is not loaded."""
    devices: dict[int, MemoryStats] = {entry.pop("device"): entry for entry in _json("codecllm_gpu_stats_json")}
    if device is None:
        return devices
    index = device.rpartition(":")[2] if isinstance(device, str) else getattr(device, "index", device)
    index = 0 if index in (None, "cuda") else int(index)
    if index not in devices:
        raise Error(f"GPU {index} is not paged in this process: nothing was allocated on it yet, or it has no budget")
    return devices[index]


def _call(name: str, *arguments: bytes) -> None:
    """Calls a function of the library that answers 0, or a code and a line. Others may run meanwhile."""
    import ctypes

    function = _function(name)
    function.argtypes = [*[ctypes.c_char_p] * len(arguments), ctypes.c_char_p, ctypes.c_size_t]
    function.restype = ctypes.c_int
    line = ctypes.create_string_buffer(512)
    code = function(*arguments, line, len(line))
    if code:
        error = Error(line.value.decode("utf-8", "replace"))
        error.code = code
        raise error


def set_budget(size: int | str) -> None:
    """Another budget for this process, on all its GPUs and in host memory, larger or smaller, while it runs.

    size: bytes, or a string in the forms of CODEC_VRAM_BUDGET: "3G", "512M", "50%" (K, M, G, T: powers of 1024), or a
    list per GPU "0:2G,1:3G", where a GPU that is not named keeps its budget. What is opened later gets it, too.

    When this returns no more than it is used. A smaller budget drops weights at once, and waits for what runs on the
    GPU: mostly milliseconds, about 2 seconds where nothing there moves, 10 seconds at most. Any thread may call it;
    others go on meanwhile, and calls from several threads take turns.

    Raises codecllm.Error, and all budgets are as before: the size is not understood, or cannot be met now (activations
    and other memory that cannot be dropped; the line says what takes how much, and the least that is sure to do), or
    the library is not loaded, or paging is off in this process. On a GPU, staging keeps the size that it had."""
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise Error(f"a budget is a number of bytes or a string such as '3G', not {type(size).__name__}")
    text = str(size)
    if "\0" in text:
        raise Error("a budget is a number of bytes or a string such as '3G'; this one has a NUL")
    _call("codecllm_set_budget", text.encode("utf-8", "replace"))


def sleep() -> None:
    """Drops all weights that can be dropped, on all GPUs and in host memory, and gives idle memory back to the driver.

    Activations, weights that were written to and staging stay, and so do the budgets. Nothing is loaded ahead until the
    program uses a weight, or wake() is called; then weights come back as they are needed. Waits for what runs on the
    GPU, a second at most where nothing there moves. Any thread. Raises codecllm.Error when the library is not loaded or
    paging is off."""
    _call("codecllm_sleep")


def wake() -> None:
    """Ends sleep(): what is expected next may be loaded ahead. Returns at once. The first use of a weight does the
    same. Any thread. Raises codecllm.Error as sleep() does."""
    _call("codecllm_wake")


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up when asked for, because importlib.metadata is slow to import
        from importlib.metadata import version

        return version("codecllm")
    if name in _WITH_TORCH:
        from importlib import import_module

        try:
            import torch  # noqa: F401
        except ImportError as why:
            raise Error(
                f"codecllm.{name} needs PyTorch, which cannot be imported ({why}); install it: pip install torch"
            ) from None
        return getattr(import_module("codecllm." + _WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WITH_TORCH])
