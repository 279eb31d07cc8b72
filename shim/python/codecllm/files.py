"""Packed files in the safetensors API, for programs that run without the shim: safe_open, load_file, save_file."""

import functools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Optional, Union

import torch

from codecllm import _library
from codecllm._error import Error
from codecllm.tensor import (
    TENSOR_NAME,
    CompressedTensor,
    block_tensor,
    dtype_name,
    file_shape,
    host_source,
    torch_dtype,
    torch_shape,
)

Path = Union[str, "os.PathLike[str]"]
Device = Union[str, int, torch.device, None]

_FRAMEWORKS = {"pt": "pt", "torch": "pt", "pytorch": "pt", "np": "np", "numpy": "np"}

# Names of safetensors files, and what numpy calls them. Types that numpy does not have itself come with ml_dtypes, once
# that is imported.
_NUMPY = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


@functools.cache
def _error_class(also: type = Exception) -> type:
    """codecllm.Error, and what safetensors raises for the same reason, so that programs that catch one or the other go
    on."""
    try:
        from safetensors import SafetensorError
    except ImportError:
        SafetensorError = Error
    bases = [Error] + [c for c in (SafetensorError, also) if not issubclass(Error, c)]
    return type(
        "PackedFileError",
        tuple(bases),
        {"__module__": __name__, "__doc__": "A packed file cannot be used as it was asked for."},
    )


def _numpy_type(info: _library.Info) -> Any:
    import numpy

    try:
        return numpy.dtype(_NUMPY[info.dtype])
    except (KeyError, TypeError):  # what safetensors raises
        raise _error_class(TypeError)(
            f"tensor {info.name!r}: numpy has no type for {info.dtype}; import ml_dtypes, if that has one, or open "
            f"the file with framework='pt'"
        ) from None


class PackedSlice:
    """A tensor of a packed file that is decoded when it is indexed, as safetensors' get_slice gives it. Indexing with
    an int or a slice of step 1 in the first dimension decodes only these rows. Takes every index that a tensor, or an
    array, takes."""

    def __init__(self, file: "PackedFile", info: _library.Info):
        self._file, self._info = file, info

    def get_shape(self) -> list[int]:
        return list(self._info.shape)

    def get_dtype(self) -> str:
        return self._info.dtype

    def __getitem__(self, index: Any) -> Any:
        if self._file.framework == "pt":
            return self._at(index)
        import numpy

        try:
            return numpy.asarray(self._at(index))  # an element is an array, too, as safetensors has it
        except IndexError as why:
            raise _error_class(IndexError)(f"slicing {self._info.name!r} of shape {self.get_shape()}: {why}") from None

    def _at(self, index: Any) -> Any:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        shape = self._file._shape(self._info)
        if not shape or first is Ellipsis or isinstance(index, tuple) and not index:
            return self._file.get_tensor(self._info.name)[index]
        if isinstance(first, int):
            if not -shape[0] <= first < shape[0]:
                raise IndexError(f"index {first} is out of bounds for dimension 0 with size {shape[0]}")
            row = first % shape[0]
            return self._file._rows(self._info, row, row + 1)[(0, *rest)]
        if isinstance(first, slice) and first.step in (None, 1):
            begin, end, _ = first.indices(shape[0])
            return self._file._rows(self._info, begin, max(begin, end))[(slice(None), *rest)]
        return self._file.get_tensor(self._info.name)[index]


class PackedFile:
    """What safe_open gives for a packed file. A context manager; close() or leaving it ends it.

    framework: "pt" (tensors of torch) or "np" (arrays of numpy, on the CPU). What is asked for wrongly raises
    codecllm.Error that is a safetensors.SafetensorError, too; damaged bytes raise codecllm.Error."""

    def __init__(self, path: Path, framework: str = "pt", device: Device = "cpu"):
        self._path = os.fspath(path)
        if framework not in _FRAMEWORKS:
            raise _error_class()(
                f"{self._path}: framework {framework!r} is not supported for packed files; use 'pt' or 'np'"
            )
        self.framework = _FRAMEWORKS[framework]
        try:
            self._device = torch.device(
                "cpu" if device is None else f"cuda:{device}" if type(device) is int else device
            )
        except (RuntimeError, TypeError):
            raise _error_class()(f"{self._path}: device {device!r} is invalid") from None
        if self.framework == "np" and self._device.type != "cpu":
            raise _error_class()(
                f"{self._path}: device {device!r} is not supported for framework {framework!r}, whose arrays are on "
                f"the CPU"
            )
        self._store: Optional[_library.Store] = _library.Store(path)

    def __enter__(self) -> "PackedFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> _library.Store:
        if self._store is None:
            raise _error_class()(f"{self._path}: the file is closed")
        return self._store

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._open().tensors())

    def offset_keys(self) -> list[str]:
        """Names in the order of the file."""
        return list(self._open().tensors())

    def metadata(self) -> Optional[dict[str, str]]:
        """`__metadata__` of the file that was packed."""
        return self._open().metadata()

    def get_tensors(self) -> dict[str, Any]:
        """All of them, by name, in the order of the file."""
        return {name: self.get_tensor(name) for name in self.offset_keys()}

    def get_tensor(self, name: str) -> Any:
        """The decoded tensor. Raises codecllm.Error for an unknown name, or when a byte is damaged."""
        info = self._find(name)
        return self._read(info, self._shape(info), info.begin, info.end)

    def get_slice(self, name: str) -> PackedSlice:
        return PackedSlice(self, self._find(name))

    def get_compressed(self, name: str) -> CompressedTensor:
        """The tensor as it is packed, without decoding."""
        return CompressedTensor(block_tensor(self._open().extract(self._find(name).index))).to(self._device)

    def _find(self, name: str) -> _library.Info:
        try:
            return self._open().tensors()[name]
        except KeyError:
            raise _error_class()(f"{self._path}: no tensor {name!r}") from None

    def _dtype(self, info: _library.Info) -> Any:
        return torch_dtype(info.dtype) if self.framework == "pt" else _numpy_type(info)

    def _shape(self, info: _library.Info) -> tuple[int, ...]:
        return torch_shape(info.dtype, info.shape) if self.framework == "pt" else info.shape

    def _rows(self, info: _library.Info, begin: int, end: int) -> Any:
        shape = self._shape(info)
        row = math.prod(shape[1:]) * self._dtype(info).itemsize
        return self._read(info, (end - begin, *shape[1:]), info.begin + begin * row, info.begin + end * row)

    def _read(self, info: _library.Info, shape: tuple[int, ...], begin: int, end: int) -> Any:
        dtype = self._dtype(info)
        if self.framework == "np":
            import numpy

            array = numpy.empty(shape, dtype=dtype)
            self._open().read(begin, end, array.ctypes.data)
            return array
        host = torch.empty(shape, dtype=dtype)
        self._open().read(begin, end, host.data_ptr())
        return host.to(self._device)


def safe_open(filename: Path, framework: str = "pt", device: Device = "cpu", **options: Any) -> Any:
    """safetensors.safe_open for packed files, framework "pt" or "np"; a plain file goes to safetensors itself, with its
    own options."""
    if _library.is_store(filename):
        return PackedFile(filename, framework, device)
    import safetensors

    return safetensors.safe_open(filename, framework=framework, device=device, **options)


def load_file(filename: Path, device: Device = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of a packed (or plain) safetensors file, by name."""
    with safe_open(filename, framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def save_file(
    tensors: Mapping[str, Union[torch.Tensor, CompressedTensor]],
    filename: Path,
    metadata: Optional[Mapping[str, str]] = None,
    *,
    mode: str = "lossless",
    jobs: int = 0,
) -> None:
    """Writes tensors as a packed file. CompressedTensors go in as they are, whatever `mode`; for the others see
    CompressedTensor.compress. The file appears whole or not at all. Raises codecllm.Error, with nothing written, for a
    dtype or name that safetensors files cannot hold."""
    sources, keep = [], []
    for name, t in tensors.items():
        if isinstance(t, CompressedTensor):
            packed = t.packed.to("cpu")
            keep.append(packed)
            dtype = dtype_name(t.dtype)
            shape = file_shape(dtype, tuple(t.shape))
            sources.append(_library.Source(name, dtype, shape, packed.data_ptr(), packed.numel(), packed=True))
        else:
            source, owner = host_source(name, t)
            keep.append(owner)
            sources.append(source)
    _library.pack_file(filename, sources, metadata, mode, jobs)


def packed_files(directory: Path) -> Iterator[str]:
    """Paths of the packed weight files of a model directory."""
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if name.endswith(".safetensors") and _library.is_store(path):
            yield path


__all__ = [
    "CompressedTensor",
    "PackedFile",
    "PackedSlice",
    "TENSOR_NAME",
    "load_file",
    "safe_open",
    "save_file",
]
