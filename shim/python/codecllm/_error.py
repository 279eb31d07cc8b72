"""The one exception of the package, for all its modules: codecllm.Error."""


class Error(RuntimeError):
    """Something of CodecLLM cannot be used here; the text says what and what to do. `code`: the library's
    (store/base/error.h), or 0."""

    __module__ = "codecllm"
    code = 0
