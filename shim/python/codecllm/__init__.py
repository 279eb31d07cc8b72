"""CodecLLM: run unmodified PyTorch programs from compressed model files inside a memory budget.

    CODEC_VRAM_BUDGET=2G python infer.py        # nothing to import: codecllm.pth loads the library
    import codecllm; codecllm.stats()           # what paging did so far, in this process

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
    "shim_path",
    "stats",
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


def _json(name: str) -> Any:
    """What a function of the library that writes JSON says."""
    import ctypes
    import json

    try:
        function = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        raise Error(
            "libcodecshim.so is not loaded in this process; start it with CODEC_VRAM_BUDGET set, or by 'codecllm run'"
        ) from None
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
