"""Says that a file is packed, after a program ended because safetensors refused it.

codecllm.pth puts one function around sys.excepthook, which imports this module when the exception that ends a program is a
SafetensorError. The usual report is printed first and is not changed. Nothing here may raise: the program has a report to give.
"""

import os
import sys

# The first bytes of a store's JSON (docs/format.md, Front), which no other writer produces.
_FRONT = b'{"__metadata__":{"format":"codecllm"'


def _is_packed(path):
    try:
        with open(path, "rb") as file:
            return file.read(8 + len(_FRONT))[8:] == _FRONT
    except (OSError, ValueError):
        return False


def _paths(value):
    if isinstance(value, (str, os.PathLike)):
        yield value
    elif isinstance(value, (list, tuple, set, dict)) and len(value) < 10000:
        for entry in value.values() if isinstance(value, dict) else value:
            if isinstance(entry, (str, os.PathLike)):
                yield entry


def packed_file(trace):
    """The first packed file that a variable of the innermost function names, or one further out; None: none does."""
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        for value in list(frame.f_locals.values()):
            for path in _paths(value):
                if os.fspath(path)[-12:] in (".safetensors", b".safetensors") and _is_packed(path):
                    return os.fsdecode(path)
    return None


_said = False


def say(trace):
    global _said
    try:
        path = packed_file(trace)
        if path and not _said:  # site reads .pth files twice in an environment with --system-site-packages
            _said = True
            directory = os.path.dirname(path) or "."
            print(
                f"codecllm: {path} is packed, not damaged: set CODEC_VRAM_BUDGET (for example to 2G) for an unchanged program, "
                f"or load it with codecllm.from_pretrained({directory!r}) or codecllm.load_file",
                file=sys.stderr,
            )
    except Exception:  # whatever objects the program had there
        pass
