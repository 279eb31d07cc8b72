"""Transformers: CodecConfig as quantization_config. Importing this module registers it, through
transformers.quantizers' public registration.

    model = AutoModelForCausalLM.from_pretrained(directory, quantization_config=codecllm.CodecConfig(mode="q8"))
    model.save_pretrained(packed)  # a packed directory: CODEC_VRAM_BUDGET, codecllm.from_pretrained and the command
                                   # read it

Each weight is compressed as soon as it is read. Weights of packed files that are quantised already are taken over as
they are."""

import os
from collections.abc import Sequence
from typing import Any, Optional

try:
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as _why:
    from codecllm._error import Error as _Error

    raise _Error(
        f"CodecConfig needs transformers 5 or later, which cannot be imported ({_why}); install it: pip install "
        f"'transformers>=5'"
    ) from None

import torch
from torch import nn

from codecllm import _library
from codecllm._error import Error
from codecllm.files import PackedFile, save_file
from codecllm.linear import CompressedLinear, _Compressed
from codecllm.model import is_skipped, let_go_of_files, set_module
from codecllm.tensor import CompressedTensor

METHOD = "codecllm"


@register_quantization_config(METHOD)
class CodecConfig(QuantizationConfigMixin):
    """Compress every nn.Linear while a model is loaded.

    mode: "lossless" (bit-identical results), "q8" or "q6". skip: names of layers to leave as they are; see
    codecllm.compress_model. Weights that are tied to a weight that is not compressed are left, too."""

    def __init__(self, mode: str = "lossless", skip: Sequence[str] = ("lm_head",), **_: Any):
        if mode not in _library.MODES:
            raise Error(f"CodecConfig(mode={mode!r}): use one of {', '.join(_library.MODES)}")
        self.quant_method = METHOD
        self.mode = mode
        self.skip = [skip] if isinstance(skip, str) else list(skip)


class _Compress(ConversionOps):
    """Called with each weight as it is loaded: puts a CompressedLinear in the place of the nn.Linear that was to have
    it."""

    def __init__(self, quantizer: "CodecQuantizer"):
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Optional[list[str]] = None,
        target_patterns: Optional[list[str]] = None,
        full_layer_name: str = "",
        model: Any = None,
        missing_keys: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        ((name, weight),) = input_dict.items()
        weight = weight[0] if isinstance(weight, list) else weight
        packed = self.quantizer.packed_already(source_patterns, weight)
        if packed is None:
            packed = CompressedTensor.compress(weight, self.quantizer.quantization_config.mode)
        layer = name.rpartition(".")[0]
        linear = model.get_submodule(layer)
        compressed = CompressedLinear(packed.to(weight.device), linear.bias, self.quantizer.quantization_config.mode)
        compressed._is_hf_initialized = True
        compressed.weight_packed._is_hf_initialized = True
        set_module(model, layer, compressed.train(linear.training))
        if missing_keys is not None:
            missing_keys.discard(name)
        return {}


@register_quantizer(METHOD)
class CodecQuantizer(HfQuantizer):
    """What from_pretrained calls for CodecConfig. Not for use by itself."""

    requires_calibration = False

    def __init__(self, quantization_config: CodecConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        # What is loaded are always plain weights, also from a directory that says it is packed: its files show them so.
        self.pre_quantized = False
        self._files: list[PackedFile] = []
        self._tied: set = set()

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        self._files = [PackedFile(f) for f in checkpoint_files or () if os.path.isfile(f) and _library.is_store(f)]
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        self._tied = set(tied) | set(tied.values())
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        layer, _, last = param_name.rpartition(".")
        return (
            last == "weight"
            and type(model.get_submodule(layer)) is nn.Linear
            and param_name not in self._tied
            and not is_skipped(layer, self.quantization_config.skip)
        )

    def packed_already(self, sources: Optional[list[str]], weight: torch.Tensor) -> Optional[CompressedTensor]:
        """The weight as the checkpoint holds it, if it is quantised there, or if nothing is to be lost here: quantising
        twice would add errors."""
        if not sources or len(sources) != 1:
            return None
        for file in self._files:
            if sources[0] in file.offset_keys():
                packed = file.get_compressed(sources[0])
                same = packed.shape == weight.shape and packed.dtype == weight.dtype
                return (
                    packed
                    if same and (packed.mode != "lossless" or self.quantization_config.mode == "lossless")
                    else None
                )
        return None

    def get_quantize_ops(self) -> ConversionOps:
        return _Compress(self)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for file in self._files:
            file.close()
        self._files = []
        let_go_of_files(model)
        _library.give_back_freed_memory()
        model.save_pretrained = _Save(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        return {}, {}  # the weights are written by _Save

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, CompressedLinear):
                set_module(model, name, module.to_linear())
        if dtype is not None:  # config.json holds it as text
            model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        model.__dict__.pop("save_pretrained", None)
        return model

    def is_serializable(self, **_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def stored_tensors(model: nn.Module) -> dict[str, Any]:
    """What a packed file of this model holds: the names of the model as it was before it was compressed; compressed
    weights as they are."""
    tensors: dict[str, Any] = {}
    for name, t in model.state_dict().items():
        layer, _, last = name.rpartition(".")
        if last == "weight_packed" and isinstance(model.get_submodule(layer), _Compressed):
            tensors[layer + ".weight"] = model.get_submodule(layer).compressed
        else:
            tensors[name] = t
    for name in getattr(model, "all_tied_weights_keys", None) or {}:
        tensors.pop(name, None)
    return tensors


class _Save:
    """save_pretrained of a compressed model: what Transformers writes, and the weights as one packed file,
    model.safetensors."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, save_directory: "str | os.PathLike[str]", *args: Any, **kwargs: Any) -> None:
        model = self.model
        if kwargs.get("state_dict") is not None or kwargs.get("push_to_hub"):
            raise Error(
                "save_pretrained of a compressed model takes neither state_dict nor push_to_hub; save it, then upload "
                "the directory"
            )
        type(model).save_pretrained(model, save_directory, *args, **kwargs)
        save_file(stored_tensors(model), os.path.join(save_directory, "model.safetensors"), {"format": "pt"})

    def __deepcopy__(self, memo: Any) -> "_Save":
        return _Save(memo.get(id(self.model), self.model))


__all__ = ["CodecConfig", "CodecQuantizer"]
