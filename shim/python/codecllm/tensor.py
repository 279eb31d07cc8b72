"""CompressedTensor: one tensor, compressed in memory."""

import math
import warnings
from typing import Any, Optional, Union

import torch

from codecllm import _library
from codecllm._error import Error

# Names of safetensors files, and what they are in torch. Not every torch has all of them.
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
for _name, _attribute in (
    ("U16", "uint16"),
    ("U32", "uint32"),
    ("U64", "uint64"),
    ("F8_E4M3", "float8_e4m3fn"),
    ("F8_E5M2", "float8_e5m2"),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
    ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ("F8_E8M0", "float8_e8m0fnu"),
    ("F4", "float4_e2m1fn_x2"),
):
    if hasattr(torch, _attribute):
        DTYPES[_name] = getattr(torch, _attribute)
NAMES = {dtype: name for name, dtype in DTYPES.items()}

TENSOR_NAME = "tensor"  # of the one tensor in the store that a CompressedTensor is: docs/format.md


def dtype_name(dtype: torch.dtype) -> str:
    """ "BF16" for torch.bfloat16. Raises codecllm.Error for a dtype that safetensors files cannot hold here."""
    try:
        return NAMES[dtype]
    except KeyError:
        raise Error(f"{dtype} cannot be compressed; possible are {', '.join(str(d) for d in NAMES)}") from None


def torch_dtype(name: str) -> torch.dtype:
    try:
        return DTYPES[name]
    except KeyError:
        raise Error(f"this torch ({torch.__version__}) has no dtype for {name}") from None


def torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in torch of a tensor that has `shape` in the file. An F4 of the file is half an element of torch, in
    the last dimension. Raises codecllm.Error where that is no whole number."""
    if name != "F4":
        return shape
    if not shape or shape[-1] % 2:
        raise Error(
            f"a tensor of F4 with shape {list(shape)} is none in torch, where two share a byte: the last dimension "
            f"must be even"
        )
    return (*shape[:-1], shape[-1] // 2)


def file_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The way back. Raises codecllm.Error for a scalar of F4."""
    if name != "F4":
        return shape
    if not shape:
        raise Error("a scalar of float4_e2m1fn_x2 cannot be compressed: it needs a dimension")
    return (*shape[:-1], shape[-1] * 2)


def host_source(name: str, t: torch.Tensor) -> tuple[_library.Source, torch.Tensor]:
    """What the library packs, and the tensor that owns its memory (keep it until the call is over)."""
    if t.layout != torch.strided or t.device.type == "meta":
        raise Error(f"tensor {name!r}: only dense tensors with data can be compressed, not {t.layout} on {t.device}")
    host = t.detach().resolve_neg().resolve_conj().to("cpu").contiguous()
    dtype = dtype_name(host.dtype)
    shape = file_shape(dtype, tuple(host.shape))
    return _library.Source(name, dtype, shape, host.data_ptr(), host.numel() * host.element_size()), host


def takes_bytes(out: torch.Tensor) -> bool:
    """Do the bytes in its memory, in order, make the tensor, and may they be written past autograd?"""
    return out.is_contiguous() and not out.is_neg() and not out.is_conj() and not (out.requires_grad and out.is_leaf)


def block_tensor(block: _library.Block) -> torch.Tensor:
    packed = torch.empty(block.nbytes, dtype=torch.uint8)
    block.copy_to(packed.data_ptr())
    return packed


def is_recorded() -> bool:
    """Does something look at each operation of torch, to differentiate, batch or record it (torch.func,
    torch.jit.trace, make_fx, export, fake tensors)? Bytes that are decoded into a tensor's memory are no operation:
    decoding must then be one, `codecllm::decode`."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def _decode_operator(packed: torch.Tensor, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    compressed = CompressedTensor(packed)
    if list(compressed.shape) != list(shape):
        raise Error(f"the compressed tensor has shape {tuple(compressed.shape)}, not {tuple(shape)}")
    return compressed._decoded(None, 0).to(device=packed.device, dtype=dtype)


_operators = torch.library.Library("codecllm", "DEF")
_operators.define("decode(Tensor packed, int[] shape, ScalarType dtype) -> Tensor")
_operators.impl("decode", _decode_operator, "CompositeExplicitAutograd")
_operators.impl("decode", lambda packed, shape, dtype: packed.new_empty(shape, dtype=dtype), "Meta")


class CompressedTensor:
    """A tensor, kept compressed. Immutable.

    `packed` is all there is to it: a uint8 vector that holds a complete store of one tensor (docs/format.md), with its
    dtype and shape, and a checksum over every byte. It is an ordinary tensor: move it, save it, share it.

    Pickling, torch.save and copy.deepcopy keep it compressed. Decoding checks what it reads: a damaged byte raises
    codecllm.Error and never becomes a wrong weight. Any number of threads may decode one object."""

    __slots__ = ("packed", "shape", "dtype", "mode", "stored_codec", "_gpu")

    packed: torch.Tensor  #: uint8, one dimension, on any device
    shape: torch.Size  #: of the tensor
    dtype: torch.dtype  #: of the tensor
    mode: str  #: "lossless", "q8" or "q6": what was really used. Small, 1-dimensional or unusual tensors stay lossless
    stored_codec: str  #: "split", "quant", "zstd" or "raw"

    def __init__(self, packed: torch.Tensor):
        """From the bytes (`packed` of another object). Raises codecllm.Error when they are not a compressed tensor."""
        if packed.dtype != torch.uint8 or packed.dim() != 1:
            raise Error(f"a compressed tensor is a uint8 vector, not {packed.dtype} of shape {tuple(packed.shape)}")
        self.packed = packed.contiguous()  # the same object where it can be: layers know theirs by it
        host = self.packed.to("cpu")
        info = _only_tensor(_library.Store(address=host.data_ptr(), nbytes=host.numel()))
        self.dtype = torch_dtype(info.dtype)
        self.shape = torch.Size(torch_shape(info.dtype, info.shape))
        self.mode = info.mode
        self.stored_codec = info.codec
        self._gpu: Any = None  # what a decode on the GPU needs; False: it must be the host

    @classmethod
    def compress(cls, t: torch.Tensor, mode: str = "lossless", *, jobs: int = 0) -> "CompressedTensor":
        """Compresses a tensor of any shape (also empty, also not contiguous) and any dtype that safetensors files hold,
        on any device; the result is on the same device. The tensor is not changed and not kept.

        mode: "lossless" (exact), or "q8" or "q6": about 7.2 and 6 bits per weight, with a scale for each row. They
        quantise F16, BF16 and F32 tensors of at least 2 dimensions and 4096 elements, and leave all others lossless:
        see `.mode`. jobs: threads, 0 all cores. Raises codecllm.Error for another dtype, a sparse or meta tensor, or no
        memory."""
        source, keep = host_source(TENSOR_NAME, t)
        compressed = cls(block_tensor(_library.pack_memory([source], mode, jobs)))
        del keep
        return compressed.to(t.device)

    def decompress(
        self,
        device: Union[torch.device, str, None] = None,
        dtype: Optional[torch.dtype] = None,
        out: Optional[torch.Tensor] = None,
        *,
        jobs: int = 0,
    ) -> torch.Tensor:
        """Decodes, on the GPU where the packed bytes are on one. The tensor of `.shape`, contiguous, on `device`
        (default: where `packed` is) and of `dtype` (default: its own; a cast rounds to nearest). out: is filled and
        returned instead; it must have the shape, and its device and dtype decide. jobs: threads, 0 all cores. Raises
        codecllm.Error when a byte is damaged; `out` is then undefined."""
        if is_recorded():
            w = torch.ops.codecllm.decode(self.packed, self.shape, self.dtype if dtype is None else dtype)
            return w.to(self.packed.device if device is None else device) if out is None else out.copy_(w)
        if out is not None:
            if out.shape != self.shape:
                raise Error(f"out has shape {tuple(out.shape)}, the tensor {tuple(self.shape)}")
            if device is not None and torch.device(device).type != out.device.type or dtype not in (None, out.dtype):
                raise Error("give either out, or device and dtype")
            if out.dtype == self.dtype and out.device.type == "cpu" and takes_bytes(out):
                self._decode(out.detach(), jobs)
                return out
        decoded = self._decoded(out, jobs)
        if out is not None:
            with torch.no_grad():
                return out if decoded is out else out.copy_(decoded)
        return decoded.to(
            device=self.packed.device if device is None else device, dtype=self.dtype if dtype is None else dtype
        )

    def _decoded(self, out: Optional[torch.Tensor], jobs: int) -> torch.Tensor:
        decoded = self._decode_on_gpu(out) if self.packed.is_cuda else None
        if decoded is None:
            decoded = torch.empty(self.shape, dtype=self.dtype)
            self._decode(decoded, jobs)
        return decoded

    def _decode(self, host: torch.Tensor, jobs: int) -> None:
        packed = self.packed.to("cpu")
        _library.unpack(packed.data_ptr(), packed.numel(), host.data_ptr(), host.numel() * host.element_size(), jobs)

    def _decode_on_gpu(self, out: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        """The decoded tensor where the packed bytes are, without a way through host memory; None where only the host
        can decode it. Into `out` itself where that is possible."""
        if self.packed.data_ptr() % 16:  # a slice of something
            self.packed = self.packed.clone()
        try:
            if self._gpu is None:
                host = self.packed.to("cpu")
                self._gpu = _library.GpuTensor(host.data_ptr(), host.numel())
            if self._gpu is False:
                return None
            with torch.cuda.device(self.packed.device):
                fits = (
                    out is not None and (out.device, out.dtype) == (self.packed.device, self.dtype) and takes_bytes(out)
                )
                if fits and out.data_ptr() % 16 == 0:
                    decoded = out
                else:
                    decoded = torch.empty(self.shape, dtype=self.dtype, device=self.packed.device)
                scratch = torch.empty(self._gpu.scratch_nbytes, dtype=torch.uint8, device=self.packed.device)
                stream = torch.cuda.current_stream().cuda_stream
                self._gpu.decode(self.packed.data_ptr(), scratch.data_ptr(), decoded.data_ptr(), stream)
            return decoded
        except Error as why:
            if why.code != _library.UNSUPPORTED:
                raise
            self._gpu = False
            _warn_once(f"decoding on the host, not on the GPU: {why}")
            return None

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) of the first dimension, on the device of `packed`, without decoding the others (but for the
        tiles at the ends)."""
        if not self.shape or not 0 <= begin <= end <= self.shape[0]:
            raise Error(f"rows [{begin}, {end}) of a tensor of shape {tuple(self.shape)}")
        if self.packed.is_cuda:  # copying the packed bytes to the host would take longer than decoding them all
            return self.decompress()[begin:end]
        host = torch.empty((end - begin, *self.shape[1:]), dtype=self.dtype)
        packed = self.packed.to("cpu")
        store = _library.Store(address=packed.data_ptr(), nbytes=packed.numel())
        first, row = store.info(0).begin, math.prod(self.shape[1:]) * self.dtype.itemsize
        store.read(first + begin * row, first + end * row, host.data_ptr())
        store.close()
        return host.to(self.packed.device)

    def verify(self) -> None:
        """Decodes everything and compares it with its content hash. Raises codecllm.Error with the first fault."""
        packed = self.packed.to("cpu")
        _library.Store(address=packed.data_ptr(), nbytes=packed.numel()).verify()

    def entropy_bound(self) -> float:
        """Bits per weight that no code for single symbols can go below: the order-0 entropy of the symbols (exponents,
        or quantised values) and what is stored beside them uncoded. Raises codecllm.Error when the tensor is stored in
        another way."""
        packed = self.packed.to("cpu")
        store = _library.Store(address=packed.data_ptr(), nbytes=packed.numel())
        return (
            sum(store.entropy(0)) * store.info(0).elems / max(self.numel(), 1)
        )  # two elements of the file make one float4_e2m1fn_x2

    def to(self, device: Union[torch.device, str]) -> "CompressedTensor":
        """The same on another device: only the compressed bytes move."""
        if torch.device(device) == self.packed.device:
            return self
        other = object.__new__(CompressedTensor)
        other.packed = self.packed.to(device)
        other.shape, other.dtype, other.mode, other.stored_codec = self.shape, self.dtype, self.mode, self.stored_codec
        other._gpu = None
        return other

    @property
    def device(self) -> torch.device:
        """Where the compressed bytes are."""
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes it takes, with everything counted."""
        return self.packed.numel()

    @property
    def logical_nbytes(self) -> int:
        """Bytes of the tensor it stands for."""
        return self.numel() * self.dtype.itemsize

    @property
    def ratio(self) -> float:
        """logical_nbytes / nbytes."""
        return self.logical_nbytes / self.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of nbytes for each element; 0.0 for a tensor without elements."""
        return 8 * self.nbytes / self.numel() if self.numel() else 0.0

    def numel(self) -> int:
        """Elements of the tensor."""
        return self.shape.numel()

    def dim(self) -> int:
        return len(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return (CompressedTensor, (self.packed,))

    def __deepcopy__(self, memo: Any) -> "CompressedTensor":
        return CompressedTensor(self.packed.clone())

    def __repr__(self) -> str:
        where = "" if self.device.type == "cpu" else f", device='{self.device}'"
        return (
            f"CompressedTensor(shape={tuple(self.shape)}, dtype={self.dtype}, mode={self.mode!r}, "
            f"nbytes={self.nbytes}, "
            f"ratio={self.ratio:.3f}{where})"
        )


def _warn_once(text: str) -> None:
    warnings.warn(f"codecllm: {text}", stacklevel=4)  # once for each place and text, as the warnings module has it


def _only_tensor(store: _library.Store) -> _library.Info:
    tensors = list(store.tensors().values())
    store.close()
    if len(tensors) != 1:
        raise Error(f"a compressed tensor holds one tensor, these bytes {len(tensors)}")
    return tensors[0]


if hasattr(torch.serialization, "add_safe_globals"):  # so that torch.load(weights_only=True) takes it
    torch.serialization.add_safe_globals([CompressedTensor])
