"""libcws.so through ctypes: store/abi.h, function by function. The rest of the package calls this module and nothing
else of the library.

Imports nothing but the standard library. Calls release the GIL while they work.
"""

import ctypes
import os
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from codecllm._error import Error

_ABI = 1
MODES = ("lossless", "q8", "q6")
UNSUPPORTED = -10060  # CWS_E_UNSUPPORTED


class _CError(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 480)]


class _CTensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p), ("codec", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_uint64)), ("ndim", ctypes.c_uint64), ("elems", ctypes.c_uint64),
        ("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("stored_bytes", ctypes.c_uint64),
        ("quant_bits", ctypes.c_uint32), ("reserved", ctypes.c_uint32),
    ]  # fmt: skip


class _CInput(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p), ("shape", ctypes.POINTER(ctypes.c_uint64)),
        ("ndim", ctypes.c_uint64), ("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64),
        ("packed", ctypes.c_void_p), ("packed_bytes", ctypes.c_uint64),
    ]  # fmt: skip


class _CJob(ctypes.Structure):
    _fields_ = [
        ("tensors", ctypes.POINTER(_CInput)), ("tensor_count", ctypes.c_uint64),
        ("metadata", ctypes.POINTER(ctypes.c_char_p)), ("metadata_count", ctypes.c_uint64),
        ("mode", ctypes.c_char_p), ("jobs", ctypes.c_uint32), ("reserved", ctypes.c_uint32),
    ]  # fmt: skip


class Source(NamedTuple):
    """A tensor to pack. `address` is that of its elements (C order), or with packed=True of a packed tensor's bytes."""

    name: str
    dtype: str  # of safetensors: "BF16"
    shape: tuple[int, ...]
    address: int
    nbytes: int
    packed: bool = False


class Info(NamedTuple):
    """A tensor of a store."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    elems: int
    begin: int  # logical offsets, bytes
    end: int
    stored_bytes: int
    codec: str  # "raw", "zstd", "split", "quant"
    quant_bits: int  # 8, 6, or 0: lossless

    @property
    def mode(self) -> str:
        return {8: "q8", 6: "q6"}.get(self.quant_bits, "lossless")


def library_path() -> str:
    """Path of libcws.so: in this package, or what CWS_LIBRARY names (a build that is not installed)."""
    return os.environ.get("CWS_LIBRARY") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "libcws.so")


_lock = threading.Lock()
_loaded: Optional[ctypes.CDLL] = None


def library() -> ctypes.CDLL:
    """The loaded library. Raises codecllm.Error when it is missing or of another build than this package."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load(library_path())
        return _loaded


def _load(path: str) -> ctypes.CDLL:
    if not os.path.exists(path):
        raise Error(f"{path} is missing: the library was not built; install the package again (pip install .)")
    try:
        lib = ctypes.CDLL(path)
        abi = lib.codecllm_abi()
    except (OSError, AttributeError) as why:
        raise Error(f"{path} cannot be loaded: {why}; install the package again (pip install .)") from None
    if abi != _ABI:
        raise Error(f"{path} is of another build (interface {abi}, this package has {_ABI}); install the package again")
    u64, pointer, text, err = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(_CError)
    out = ctypes.POINTER(ctypes.c_void_p)
    for name, restype, *arguments in (
        ("open", ctypes.c_int, text, out, err),
        ("open_memory", ctypes.c_int, pointer, u64, text, out, err),
        ("close", None, pointer),
        ("is_store", ctypes.c_int, text),
        ("header", pointer, pointer, ctypes.POINTER(u64)),
        ("tensor_count", u64, pointer),
        ("tensor", ctypes.c_int, pointer, u64, ctypes.POINTER(_CTensor), err),
        ("read", ctypes.c_int, pointer, ctypes.c_uint, u64, u64, pointer, err),
        ("unpack", ctypes.c_int, pointer, u64, ctypes.c_uint, pointer, u64, err),
        ("verify", ctypes.c_int, pointer, ctypes.c_uint, err),
        ("entropy", ctypes.c_int, pointer, u64, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double), err),
        ("pack_file", ctypes.c_int, ctypes.POINTER(_CJob), text, err),
        ("pack_memory", ctypes.c_int, ctypes.POINTER(_CJob), out, ctypes.POINTER(u64), err),
        ("extract", ctypes.c_int, pointer, u64, out, ctypes.POINTER(u64), err),
        ("free", None, pointer),
        ("gpu_create", ctypes.c_int, pointer, u64, out, err),
        ("gpu_destroy", None, pointer),
        ("gpu_scratch", u64, pointer),
        ("gpu_decode", ctypes.c_int, pointer, u64, u64, u64, pointer, err),
    ):
        function = getattr(lib, "codecllm_" + name)
        function.restype, function.argtypes = restype, arguments
    return lib


def _check(code: int, err: _CError) -> None:
    if code:
        error = Error(err.message.decode("utf-8", "replace") or f"codecllm: error {code}")
        error.code = code
        raise error


def is_store(path: "os.PathLike[str] | str") -> bool:
    """Is this file a packed one? False also where it cannot be read."""
    return bool(library().codecllm_is_store(os.fsencode(path)))


class Store:
    """An open store: a packed file, or (`address`, `nbytes`) one in memory that the caller keeps as it is while this
    lives.

    Raises codecllm.Error with one line that says what is wrong with the file."""

    def __init__(self, path: "os.PathLike[str] | str | None" = None, address: int = 0, nbytes: int = 0):
        self._lib = library()
        self._handle: Optional[int] = None
        handle, err = ctypes.c_void_p(), _CError()
        if path is not None:
            code = self._lib.codecllm_open(os.fsencode(path), ctypes.byref(handle), ctypes.byref(err))
        else:
            code = self._lib.codecllm_open_memory(
                address, nbytes, b"compressed tensor", ctypes.byref(handle), ctypes.byref(err)
            )
        _check(code, err)
        self._handle = handle.value
        self._by_name: Optional[dict[str, Info]] = None

    def close(self) -> None:
        if self._handle is not None:
            self._lib.codecllm_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    @property
    def handle(self) -> int:
        if self._handle is None:
            raise Error("the store is closed")
        return self._handle

    def metadata(self) -> Optional[dict[str, str]]:
        """`__metadata__` of the file that was packed; None where it has none."""
        import json

        size = ctypes.c_uint64()
        header = ctypes.string_at(self._lib.codecllm_header(self.handle, ctypes.byref(size)), size.value)
        (length,) = struct.unpack("<Q", header[:8])
        return json.loads(header[8 : 8 + length]).get("__metadata__")

    def tensors(self) -> dict[str, Info]:
        """By name, in the order of the file."""
        if self._by_name is None:
            found = (self.info(i) for i in range(self._lib.codecllm_tensor_count(self.handle)))
            self._by_name = {info.name: info for info in found}
        return self._by_name

    def info(self, index: int) -> Info:
        t, err = _CTensor(), _CError()
        _check(self._lib.codecllm_tensor(self.handle, index, ctypes.byref(t), ctypes.byref(err)), err)
        return Info(
            index,
            t.name.decode(),
            t.dtype.decode(),
            tuple(t.shape[d] for d in range(t.ndim)),
            t.elems,
            t.begin,
            t.end,
            t.stored_bytes,
            t.codec.decode(),
            t.quant_bits,
        )

    def read(self, begin: int, end: int, address: int, jobs: int = 0) -> None:
        """Logical bytes [begin, end) to `address`. jobs: threads, 0 all cores."""
        err = _CError()
        _check(self._lib.codecllm_read(self.handle, jobs, begin, end, address, ctypes.byref(err)), err)

    def verify(self, jobs: int = 0) -> None:
        """Decodes everything and compares it with its content hashes; raises codecllm.Error with the first fault."""
        err = _CError()
        _check(self._lib.codecllm_verify(self.handle, jobs, ctypes.byref(err)), err)

    def entropy(self, index: int) -> tuple[float, float]:
        """(bits per symbol of order-0 entropy, bits per weight stored beside it uncoded) of a coded tensor."""
        bits, plain, err = ctypes.c_double(), ctypes.c_double(), _CError()
        _check(
            self._lib.codecllm_entropy(self.handle, index, ctypes.byref(bits), ctypes.byref(plain), ctypes.byref(err)),
            err,
        )
        return bits.value, plain.value

    def extract(self, index: int) -> "Block":
        """A tensor alone, as it is packed."""
        block, err = Block(), _CError()
        _check(self._lib.codecllm_extract(self.handle, index, *block.out(), ctypes.byref(err)), err)
        return block


class Block:
    """Memory that the library allocated; freed with this object."""

    def __init__(self) -> None:
        self._address, self._nbytes = ctypes.c_void_p(), ctypes.c_uint64()

    def out(self) -> tuple[Any, Any]:
        return ctypes.byref(self._address), ctypes.byref(self._nbytes)

    @property
    def nbytes(self) -> int:
        return self._nbytes.value

    def copy_to(self, address: int) -> None:
        ctypes.memmove(address, self._address, self.nbytes)

    def __del__(self) -> None:
        if self._address.value:
            library().codecllm_free(self._address)


class GpuTensor:
    """What decoding a packed tensor on a GPU needs beside its bytes in device memory. Made from a copy in host memory,
    which is not kept. Raises codecllm.Error with the code UNSUPPORTED where only the host can decode it."""

    def __init__(self, address: int, nbytes: int):
        self._lib, self._handle = library(), ctypes.c_void_p()
        err = _CError()
        _check(self._lib.codecllm_gpu_create(address, nbytes, ctypes.byref(self._handle), ctypes.byref(err)), err)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._lib.codecllm_gpu_destroy(self._handle)

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of device memory that decode() needs while it runs."""
        return self._lib.codecllm_gpu_scratch(self._handle)

    def decode(self, packed: int, scratch: int, to: int, stream: int) -> None:
        """Device addresses, multiples of 16, in the current context; waits. Raises codecllm.Error: UNSUPPORTED without
        kernels for this GPU, or a damaged byte."""
        err = _CError()
        _check(self._lib.codecllm_gpu_decode(self._handle, packed, scratch, to, stream, ctypes.byref(err)), err)


def give_back_freed_memory() -> None:
    """Asks the C library to return what is free to the system: it keeps freed weights otherwise. Does nothing where it
    cannot be asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def unpack(address: int, nbytes: int, to: int, to_nbytes: int, jobs: int = 0) -> None:
    """Decodes a packed tensor in memory to `to`. Raises codecllm.Error when a byte of it is damaged."""
    err = _CError()
    _check(library().codecllm_unpack(address, nbytes, jobs, to, to_nbytes, ctypes.byref(err)), err)


def _job(
    sources: Sequence[Source], metadata: Optional[Mapping[str, str]], mode: str, jobs: int, keep: list[Any]
) -> _CJob:
    """keep: holds what the job points to."""
    inputs = (_CInput * max(len(sources), 1))()
    for slot, s in zip(inputs, sources):
        shape = (ctypes.c_uint64 * max(len(s.shape), 1))(*s.shape)
        keep.append(shape)
        slot.name, slot.dtype, slot.shape, slot.ndim = s.name.encode(), s.dtype.encode(), shape, len(s.shape)
        if s.packed:
            slot.packed, slot.packed_bytes = s.address, s.nbytes
        else:
            slot.data, slot.bytes = s.address, s.nbytes
    pairs = [text.encode() for pair in (metadata or {}).items() for text in pair]
    texts = (ctypes.c_char_p * max(len(pairs), 1))(*pairs)
    keep += [inputs, texts, pairs]
    return _CJob(inputs, len(sources), texts, len(pairs) // 2, mode.encode(), jobs, 0)


def pack_memory(sources: Iterable[Source], mode: str, jobs: int = 0) -> Block:
    """The tensors as one store in memory."""
    keep: list[Any] = []
    job, block, err = _job(list(sources), None, mode, jobs, keep), Block(), _CError()
    _check(library().codecllm_pack_memory(ctypes.byref(job), *block.out(), ctypes.byref(err)), err)
    return block


def pack_file(
    path: "os.PathLike[str] | str",
    sources: Iterable[Source],
    metadata: Optional[Mapping[str, str]],
    mode: str,
    jobs: int = 0,
) -> None:
    """The tensors as a packed file, which appears whole or not at all."""
    keep: list[Any] = []
    job, err = _job(list(sources), metadata, mode, jobs, keep), _CError()
    _check(library().codecllm_pack_file(ctypes.byref(job), os.fsencode(path), ctypes.byref(err)), err)
