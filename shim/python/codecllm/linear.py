"""CompressedLinear and CompressedEmbedding: layers whose weight is kept compressed and is decoded for each call."""

import threading
from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import nn
from torch.nn import functional as F

from codecllm._error import Error
from codecllm.tensor import CompressedTensor, is_recorded

_scratch = threading.local()


def _shared_memory(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Memory for one decoded weight at a time, used by all layers of a thread: fresh pages for each call would cost as
    much as decoding. Grows to the largest weight. Only where nobody keeps the weight: without autograd, on the CPU,
    where a call is over when it returns."""
    need = shape.numel() * dtype.itemsize
    have = getattr(_scratch, "bytes", None)
    if have is None or have.numel() < need:
        _scratch.bytes = None  # the old one is not needed beside the new one
        have = _scratch.bytes = torch.empty(need, dtype=torch.uint8)
    return have[:need].view(dtype).view(shape)


class _Times(torch.autograd.Function):
    """F.linear(x, w, bias) or x @ w, for torch.func, which knows no hooks for what it saves: keeps the compressed
    weight instead of the decoded one. A derivative is another product with w."""

    @staticmethod
    def forward(
        x: torch.Tensor, bias: Optional[torch.Tensor], packed: torch.Tensor, layer: "_Compressed", transposed: bool
    ) -> torch.Tensor:
        w = layer.decoded(packed)
        return F.linear(x, w, bias) if transposed else x.matmul(w.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        x, bias, packed, ctx.layer, ctx.transposed = inputs
        ctx.save_for_backward(packed)
        ctx.save_for_forward(packed)
        ctx.dtype, ctx.bias_dtype, ctx.shape = x.dtype, None if bias is None else bias.dtype, output.shape

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        (packed,) = ctx.saved_tensors
        of_x = (
            _Times.apply(g, None, packed, ctx.layer, not ctx.transposed).to(ctx.dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        of_bias = g.reshape(-1, g.shape[-1]).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Optional[torch.Tensor], bias: Optional[torch.Tensor], *_: Any) -> Any:
        (packed,) = ctx.saved_tensors
        if x is not None:
            return _Times.apply(x, bias, packed, ctx.layer, ctx.transposed)
        return None if bias is None else bias.expand(ctx.shape)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        x: torch.Tensor,
        bias: Optional[torch.Tensor],
        packed: torch.Tensor,
        layer: "_Compressed",
        transposed: bool,
    ) -> Any:
        """As torch batches nn.Linear, so that the bits are the same."""
        if in_dims[2] is not None:
            raise Error("one compressed weight cannot be a batch of weights")
        w = layer.decoded(packed)
        if not transposed:
            return torch.func.vmap(lambda g: g.matmul(w.to(g.dtype)), in_dims=in_dims[0])(x), 0
        if bias is None:
            return torch.func.vmap(lambda z: F.linear(z, w), in_dims=in_dims[0])(x), 0
        return torch.func.vmap(lambda z, b: F.linear(z, w, b), in_dims=in_dims[:2])(x, bias), 0


class _Compressed(nn.Module):
    """What the layers share: the weight as a buffer `weight_packed` of bytes, which state_dict, .to(device) and
    pickling treat as any buffer."""

    weight_packed: torch.Tensor

    def __init__(self, weight: CompressedTensor, mode: str):
        super().__init__()
        self.register_buffer("weight_packed", weight.packed)
        self._compressed: Optional[CompressedTensor] = weight
        self.compute_dtype: torch.dtype = (
            weight.dtype
        )  #: of the decoded weight; .half() and the like change it, never what is stored
        self.mode = mode  #: that plain weights are compressed with when they are loaded

    @property
    def compressed(self) -> CompressedTensor:
        """The weight."""
        if self._compressed is None or self._compressed.packed is not self.weight_packed:
            self._compressed = CompressedTensor(self.weight_packed)
        return self._compressed

    @property
    def weight(self) -> torch.Tensor:
        """The weight, decoded anew at each access: for programs that look at it. Changing it changes nothing."""
        return self.compressed.decompress(dtype=self.compute_dtype)

    def _is_recorded(self) -> bool:
        return is_recorded() or self.weight_packed.is_meta

    def _shape(self) -> list[int]:
        raise NotImplementedError

    def decoded(self, packed: torch.Tensor) -> torch.Tensor:
        """The weight from `packed`, which is weight_packed or what torch made of it (a fake tensor, say, whose bytes
        nobody may look at)."""
        if is_recorded() or packed.is_meta:
            return torch.ops.codecllm.decode(packed, self._shape(), self.compute_dtype)
        known = self._compressed
        return (known if known is not None and known.packed is packed else CompressedTensor(packed)).decompress(
            dtype=self.compute_dtype
        )

    def _weight_for_call(self) -> torch.Tensor:
        if self._is_recorded():
            return self.decoded(self.weight_packed)
        c = self.compressed
        if c.device.type == "cpu" and self.compute_dtype == c.dtype and not torch.is_grad_enabled():
            return c.decompress(out=_shared_memory(c.shape, c.dtype))
        return c.decompress(dtype=self.compute_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "nn.Module":
        # What fn does to devices it does to the buffer; what it does to dtypes (.half()) shows on a tensor of the
        # weight's dtype.
        super()._apply(fn, recurse)
        if self.compute_dtype.is_floating_point:
            self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=self.weight_packed.device)).dtype
        return self

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes `weight_packed`, of any length, or a plain `weight`, which is compressed with `mode`."""
        key, plain = prefix + "weight_packed", prefix + "weight"
        try:
            if key not in state_dict and plain in state_dict:
                state_dict[key] = CompressedTensor.compress(state_dict.pop(plain), self.mode).packed
            if key in state_dict:
                new = CompressedTensor(state_dict[key])
                if new.shape != self.compressed.shape:
                    raise Error(f"the weight has shape {tuple(new.shape)}, this layer {tuple(self.compressed.shape)}")
                self.weight_packed = torch.empty_like(new.packed, device=self.weight_packed.device)
        except Error as why:
            error_msgs.append(f"{key}: {why}")
            state_dict.pop(key, None)
            missing_keys.append(key)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._compressed = None
        if key in state_dict:
            self.compute_dtype = self.compressed.dtype if self.compute_dtype == new.dtype else self.compute_dtype

    def __getstate__(self) -> Any:
        return {**self.__dict__, "_compressed": None}

    def _sizes(self) -> str:
        c = self.compressed
        return f"mode={c.mode}, ratio={c.ratio:.3f}, bytes={c.nbytes} of {c.logical_nbytes}"


class CompressedLinear(_Compressed):
    """nn.Linear with a compressed weight of shape (out_features, in_features) and, if there is one, a plain bias
    (out_features).

    forward(x), x of shape (..., in_features), gives F.linear(x, w, bias) bit for bit, where w is the decoded weight,
    which lives as long as the call. Gradients flow to the input and the bias, not to the weight; backward decodes it
    once more instead of keeping it. Raises codecllm.Error when the compressed bytes are damaged."""

    def __init__(self, weight: CompressedTensor, bias: Optional[torch.Tensor] = None, mode: Optional[str] = None):
        if weight.dim() != 2 or not weight.dtype.is_floating_point:
            raise Error(
                f"the weight of a linear layer has 2 dimensions and a float dtype, not shape {tuple(weight.shape)} "
                f"and {weight.dtype}"
            )
        super().__init__(weight, mode or weight.mode)
        self.out_features, self.in_features = weight.shape
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)

    def _shape(self) -> list[int]:
        return [self.out_features, self.in_features]

    @classmethod
    def from_linear(cls, linear: nn.Linear, mode: str = "lossless") -> "CompressedLinear":
        """From an nn.Linear, which is not changed; the bias is shared with it. mode: see CompressedTensor.compress."""
        made = cls(CompressedTensor.compress(linear.weight, mode), linear.bias, mode)
        made.train(linear.training)
        return made

    def to_linear(self) -> nn.Linear:
        """An nn.Linear with the decoded weight and this bias."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(self.weight, requires_grad=False)
        made.bias = self.bias
        return made.train(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return _Times.apply(x, self.bias, self.weight_packed, self, True)
        w = self._weight_for_call()
        if not torch.is_grad_enabled() or self._is_recorded():
            return F.linear(x, w, self.bias)
        # Autograd would keep the decoded weight until backward. It keeps a note where it came from instead.
        compressed, dtype, storage = self.compressed, self.compute_dtype, w.untyped_storage().data_ptr()

        def forget(t: torch.Tensor) -> Any:
            if t.device == w.device and t.dtype == w.dtype and t.untyped_storage().data_ptr() == storage:
                return t.size(), t.stride(), t.storage_offset()
            return t

        def again(kept: Any) -> torch.Tensor:
            return kept if isinstance(kept, torch.Tensor) else compressed.decompress(dtype=dtype).as_strided(*kept)

        with torch.autograd.graph.saved_tensors_hooks(forget, again):
            return F.linear(x, w, self.bias)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, {self._sizes()}"


class CompressedEmbedding(_Compressed):
    """nn.Embedding with a compressed weight of shape (num_embeddings, embedding_dim). A call decodes the rows it needs,
    or all of them when it needs many. No gradients. Raises IndexError for an index outside, codecllm.Error when bytes
    are damaged."""

    def __init__(self, weight: CompressedTensor, padding_idx: Optional[int] = None, mode: Optional[str] = None):
        if weight.dim() != 2:
            raise Error(f"the weight of an embedding has 2 dimensions, not shape {tuple(weight.shape)}")
        super().__init__(weight, mode or weight.mode)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx

    def _shape(self) -> list[int]:
        return [self.num_embeddings, self.embedding_dim]

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, mode: str = "lossless") -> "CompressedEmbedding":
        """From an nn.Embedding without max_norm, which changes weights as it goes."""
        if embedding.max_norm is not None:
            raise Error("an embedding with max_norm changes its weight at each call and cannot be kept compressed")
        made = cls(CompressedTensor.compress(embedding.weight, mode), embedding.padding_idx, mode)
        return made.train(embedding.training)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        if self._is_recorded():
            return F.embedding(indices, self.decoded(self.weight_packed))
        wanted, places = torch.unique(indices, return_inverse=True)
        if self.weight_packed.is_cuda or wanted.numel() == 0 or wanted.numel() > max(8, self.num_embeddings // 64):
            return F.embedding(indices, self.compressed.decompress(dtype=self.compute_dtype))
        if wanted[0] < 0 or wanted[-1] >= self.num_embeddings:
            raise IndexError("index out of range in self")
        rows = torch.cat([self.compressed.rows(i, i + 1) for i in wanted.tolist()])
        return F.embedding(places, rows.to(self.compute_dtype))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._sizes()}"
