"""from_pretrained: a Transformers model from a packed directory, in a program that runs without the shim."""

import json
import os
from typing import Any

from codecllm import _library
from codecllm._error import Error
from codecllm.files import Path, safe_open


def from_pretrained(directory: Path, *args: Any, auto_class: Any = None, **kwargs: Any) -> Any:
    """A Transformers model from a packed (or plain) model directory, in a process without the shim.

    auto_class: the class whose from_pretrained is called with all other arguments; default: the class that config.json
    names (that of `subfolder`, for a model of a pipeline). While it runs, Transformers reads weight files through
    codecllm.safe_open. The weights are ordinary tensors then, and take their full size; with
    quantization_config=CodecConfig(...) they stay compressed. Raises codecllm.Error where Transformers is missing or
    knows no such model."""
    try:
        import transformers
        from transformers import modeling_utils
    except ImportError as why:
        raise Error(f"transformers cannot be imported ({why}); install it: pip install transformers") from None
    try:
        from codecllm import transformers_integration  # noqa: F401  registers CodecConfig: config.json may name it
    except Error:
        pass  # an older Transformers: only CodecConfig needs more

    original = modeling_utils.safe_open

    def open_weights(filename: Path, *a: Any, **k: Any) -> Any:
        if not _library.is_store(filename):
            return original(filename, *a, **k)
        return safe_open(filename, k.pop("framework", a[0] if a else "pt"), k.pop("device", "cpu"))

    loader = auto_class or _named_class(os.path.join(directory, kwargs.get("subfolder") or ""), transformers)
    modeling_utils.safe_open = open_weights
    try:
        return loader.from_pretrained(directory, *args, **kwargs)
    finally:
        modeling_utils.safe_open = original


def _named_class(directory: Path, transformers: Any) -> Any:
    path = os.path.join(directory, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            names = json.load(file).get("architectures") or []
    except (OSError, ValueError) as why:
        raise Error(f"{path}: {why}: {os.fspath(directory)} is not a model directory") from None
    for name in names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return transformers.AutoModelForCausalLM


__all__ = ["from_pretrained"]
