"""Puts libcodecshim.so under this interpreter, by starting it once more with LD_PRELOAD.

codecllm.pth imports this module while the interpreter starts, and only when CODEC_VRAM_BUDGET is set. Nothing of the
program has run yet and nothing was read from stdin, so a second start with the same arguments is the same program.
Whatever prevents it is said in one line, because a program that silently runs without its budget is worse than one that
stops; the program itself then runs as if this package were not there.

(Python versions that read NAME.start files beside or instead of the import lines of .pth files, PEP 829, call the same
module; the .pth line stays for the versions before.)
"""

from __future__ import annotations

import os
import sys

# Process id of the start that asked for the library: the same process without it means that it did not load. Not called
# CODEC_..., since those names are the user's.
GUARD = "_CODECLLM_STARTED"

_BACKEND = "cudaMallocAsync"
_HERE = os.path.dirname(os.path.abspath(__file__))


def _refusal(budget: str) -> str:
    """What libcws.so says against this budget; "" when nothing. Also "" where it cannot be asked (a Python without
    ctypes, a part of the package is missing): libcodecshim.so has the same parser, and opens no store under such a
    budget."""
    try:
        import ctypes

        class Error(ctypes.Structure):  # struct cws_error of store/base/error.h
            _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 480)]

        check = ctypes.CDLL(os.path.join(_HERE, "libcws.so")).codecllm_budget_check
    except (ImportError, OSError, AttributeError):
        return ""
    error = Error()
    return os.fsdecode(error.message) if check(os.fsencode(budget), ctypes.byref(error)) else ""


def _say(text: str) -> None:
    try:
        os.write(2, f"codecllm: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass


def _off(why: str) -> None:
    _say(f"paging is OFF, CODEC_VRAM_BUDGET has no effect: {why}")


def _loaded() -> bool:
    try:
        with open("/proc/self/maps", "rb") as maps:
            return b"/libcodecshim.so" in maps.read()
    except OSError:
        return "libcodecshim.so" in os.environ.get("LD_PRELOAD", "")


def _arguments() -> list[str] | list[bytes]:
    """The arguments this interpreter was started with, as they were."""
    if hasattr(sys, "orig_argv"):  # Python 3.10
        return sys.orig_argv
    with open("/proc/self/cmdline", "rb") as cmdline:
        return cmdline.read().split(b"\0")[:-1]


def _is_interpreter() -> bool:
    """False when Python is embedded in another program, which must not be started a second time."""
    try:
        return bool(sys.executable) and os.path.samefile(sys.executable, "/proc/self/exe")
    except OSError:
        return False


def _split(conf: str) -> list[str]:
    """The entries of a PyTorch allocator configuration: key:value, where a value may be a list in brackets."""
    entries, depth, start = [], 0, 0
    for i, c in enumerate(conf + ","):
        depth += (c == "[") - (c == "]")
        if c == "," and depth <= 0:
            entries.append(conf[start:i].strip())
            start = i + 1
    return [entry for entry in entries if entry]


def allocator_settings(conf: str) -> tuple[str, list[str]]:
    """(conf with the allocator that pages, [what was changed for it]). Other keys stay as they are."""
    kept, changed = [], []
    for entry in _split(conf):
        key, _, value = entry.partition(":")
        key, value = key.strip(), value.strip()
        if key == "backend":
            if value != _BACKEND:
                changed.append(entry)
        elif key == "expandable_segments" and value.lower() == "true":
            changed.append(entry)
        else:
            kept.append(entry)
    return ",".join(kept + ["backend:" + _BACKEND]), changed


def _has_gpu() -> bool:
    """Could PyTorch see an NVIDIA GPU here? Answered from files, because nothing may be initialised yet."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def choose_allocator() -> None:
    """Weights are paged only where each tensor is an allocation of its own, so PyTorch's other allocators are switched
    off."""
    if not _has_gpu():
        return
    said = []
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        before = os.environ.get(name, "")
        after, changed = allocator_settings(before)
        if changed:
            said.append(f"{name}={before} is now {after}")
        os.environ[name] = after
    if said:
        _say("; ".join(said) + " (paging on the GPU needs this allocator)")


def _put_in_front(name: str, entry: str) -> None:
    before = os.environ.get(name)
    os.environ[name] = f"{entry}:{before}" if before else entry


def boot() -> None:
    budget = os.environ.get("CODEC_VRAM_BUDGET", "")
    started = os.environ.pop(GUARD, None)
    if not budget:
        return
    refused = started != str(os.getpid()) and _refusal(budget)  # the start before this one has asked
    if refused:
        _say(refused)
        os._exit(2)  # an exception here would be a page of traceback from site.py
    if _loaded():
        return choose_allocator()
    shim = os.path.join(_HERE, "libcodecshim.so")
    if started == str(os.getpid()):
        return _off(f"{shim} was in LD_PRELOAD but was not loaded")
    if not os.path.exists(shim):
        return _off(f"{shim} is missing; install the package again")
    preload, directory = shim, None
    if ":" in shim or (" " in shim and ";" in shim):
        return _off(
            f"neither LD_PRELOAD nor LD_LIBRARY_PATH can hold the path {shim}; install into one without colon and "
            f"semicolon"
        )
    if " " in shim:  # LD_PRELOAD cannot hold it: the library is named alone, and found through LD_LIBRARY_PATH
        directory, preload = os.path.split(shim)
    if not _is_interpreter():
        return _off(f"this Python is embedded in another program; start that with LD_PRELOAD={shim}")
    before = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", GUARD)}
    _put_in_front("LD_PRELOAD", preload)
    if directory:
        _put_in_front("LD_LIBRARY_PATH", directory)
    os.environ[GUARD] = str(os.getpid())
    try:
        os.execv(sys.executable, _arguments())
    except OSError as why:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _off(f"{sys.executable} could not be started again: {why}")


boot()
