"""compress_model: every Linear of a model compressed in place, and a report of what that did."""

import fnmatch
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from codecllm import _library
from codecllm._error import Error
from codecllm.linear import CompressedEmbedding, CompressedLinear
from codecllm.tensor import CompressedTensor


@dataclass
class Layer:
    """One layer that was compressed. Sizes in bytes."""

    name: str
    mode: str  #: what was really used: "lossless" where the weight could not be quantised
    shape: tuple[int, ...]
    logical_bytes: int
    stored_bytes: int
    ratio: float
    bits_per_weight: float


@dataclass
class CompressionReport:
    """What compress_model did. str() gives a table, to_json() the same for programs. Sizes in bytes."""

    mode: str
    layers: list[Layer] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  #: name of a layer that was left alone: why
    model_bytes_before: int = 0  #: all parameters and buffers, shared ones once
    model_bytes_after: int = 0
    seconds: float = 0.0

    @property
    def logical_bytes(self) -> int:
        """Of the weights that were compressed."""
        return sum(layer.logical_bytes for layer in self.layers)

    @property
    def stored_bytes(self) -> int:
        return sum(layer.stored_bytes for layer in self.layers)

    @property
    def ratio(self) -> float:
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 1.0

    def to_json(self) -> str:
        """One JSON object: the fields, the layers, and logical_bytes, stored_bytes, ratio."""
        return json.dumps(
            {
                **asdict(self),
                "logical_bytes": self.logical_bytes,
                "stored_bytes": self.stored_bytes,
                "ratio": self.ratio,
            }
        )

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [9])
        lines = [
            f"{'layer':<{width}}  {'mode':<8}  {'shape':>14}  {'bytes':>12}  {'packed':>12}  {'ratio':>6}  "
            f"{'bits/w':>6}"
        ]
        for x in self.layers:
            lines.append(
                f"{x.name:<{width}}  {x.mode:<8}  {'x'.join(map(str, x.shape)):>14}  {x.logical_bytes:>12,}  "
                f"{x.stored_bytes:>12,}  "
                f"{x.ratio:>6.3f}  {x.bits_per_weight:>6.2f}"
            )
        lines += [f"kept: {name}: {why}" for name, why in self.kept.items()]
        lines.append(
            f"{len(self.layers)} layers: {_mib(self.logical_bytes)} -> {_mib(self.stored_bytes)}, ratio "
            f"{self.ratio:.3f}"
        )
        lines.append(
            f"whole model: {_mib(self.model_bytes_before)} -> {_mib(self.model_bytes_after)}, ratio "
            f"{self.model_bytes_before / max(self.model_bytes_after, 1):.3f}, {self.seconds:.1f} s"
        )
        return "\n".join(lines)


def _mib(n: int) -> str:
    return f"{n / 2**20:.2f} MiB"


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; what is shared counts once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def is_skipped(name: str, skip: Sequence[str]) -> bool:
    """Does a layer's full name match an entry of skip: its name, its last part, or a pattern with * and ? for the whole
    name?"""
    return any(name == s or name.endswith("." + s) or fnmatch.fnmatchcase(name, s) for s in skip)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def let_go_of_files(model: nn.Module) -> None:
    """Copies the weights that lie in mapped files, such as those that safetensors loads, so that the mappings can go:
    one small weight that was not compressed keeps the whole file of the model in memory. Views of packed files, which
    the shim pages, are no such mappings."""
    files = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5].startswith("/") and parts[4] != "0" and not parts[5].startswith("/dev/"):
                begin, _, end = parts[0].partition("-")
                files.append((int(begin, 16), int(end, 16)))
    copies: dict[Any, torch.Tensor] = {}
    for t in (*model.parameters(), *model.buffers()):
        at = t.data_ptr() if t.device.type == "cpu" and t.layout == torch.strided else 0
        if any(begin <= at < end for begin, end in files):
            key = at, t.dtype, t.shape, t.stride()
            if key not in copies:
                copies[key] = t.detach().clone()
            t.data = copies[key]


class _Progress:
    """tqdm where it is installed, else a line for every tenth of the bytes; on stderr."""

    def __init__(self, total: int, on: bool):
        self.bar = None
        self.on, self.total, self.done, self.said = on and total > 0, total, 0, 0
        if self.on:
            try:
                from tqdm import tqdm

                self.bar = tqdm(
                    total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="Compressing", file=sys.stderr
                )
            except ImportError:
                pass

    def add(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif self.on and self.done * 10 // self.total > self.said:
            self.said = self.done * 10 // self.total
            print(f"codecllm: compressing: {100 * self.done // self.total} %", file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _candidates(
    model: nn.Module, skip: Sequence[str], embeddings: bool, kept: dict[str, str]
) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        linear, embedding = isinstance(module, nn.Linear), isinstance(module, nn.Embedding) and embeddings
        if not linear and not embedding:
            continue
        if not name:
            raise Error("the model is itself a single layer; use codecllm.CompressedLinear.from_linear")
        if is_skipped(name, skip):
            kept[name] = "in skip"
        elif type(module) not in (nn.Linear, nn.Embedding):
            kept[name] = f"a {type(module).__name__}, which may use its weight in ways of its own"
        elif embedding and module.max_norm is not None:
            kept[name] = "max_norm changes its weight"
        elif module.weight.device.type == "meta":
            raise Error(f"{name}: its weight is on the meta device; load the model before it is compressed")
        elif not module.weight.is_floating_point():
            kept[name] = f"its weight is {module.weight.dtype}"
        else:
            yield name, module


def compress_model(
    model: nn.Module,
    mode: str = "lossless",
    skip: Sequence[str] = ("lm_head",),
    progress: bool = True,
    *,
    embeddings: bool = False,
    jobs: int = 0,
) -> CompressionReport:
    """Replaces every nn.Linear of a model (with embeddings=True also every nn.Embedding), in place, by a layer whose
    weight is compressed.

    mode: "lossless", "q8", "q6". skip: names of layers to leave: the whole name, its last part, or a pattern with * and
    ?. progress: a bar on stderr. A weight that layers share is compressed once and shared again. Layer by layer: the
    peak is the model and one packed weight. Raises codecllm.Error; layers that were replaced before it stay replaced,
    so that calling it again goes on."""
    if mode not in _library.MODES:
        raise Error(f"mode {mode!r}: use one of {', '.join(_library.MODES)}")
    if isinstance(skip, str):
        skip = (skip,)
    report = CompressionReport(mode, model_bytes_before=model_bytes(model))
    begin = time.perf_counter()
    layers = list(_candidates(model, skip, embeddings, report.kept))
    uses = {id(m.weight): 0 for _, m in layers}
    for _, m in layers:
        uses[id(m.weight)] += 1
    bar = _Progress(sum(m.weight.nbytes for _, m in layers), progress)
    shared: dict[int, CompressedTensor] = {}
    keep: list[Any] = []  # weights that are met again: their ids must stay theirs
    replaced: dict[int, nn.Module] = {}
    while layers:
        name, module = layers.pop(0)
        weight, size = module.weight, module.weight.nbytes
        if id(module) in replaced:  # the same module under another name
            set_module(model, name, replaced[id(module)])
        else:
            packed = shared.get(id(weight)) or CompressedTensor.compress(weight, mode, jobs=jobs)
            if isinstance(module, nn.Linear):
                new: nn.Module = CompressedLinear(packed, module.bias, mode)
            else:
                new = CompressedEmbedding(packed, module.padding_idx, mode)
            set_module(model, name, new.train(module.training))
            report.layers.append(
                Layer(
                    name,
                    packed.mode,
                    tuple(packed.shape),
                    packed.logical_nbytes,
                    packed.nbytes,
                    packed.ratio,
                    packed.bits_per_weight,
                )
            )
            if uses[id(weight)] > 1:
                shared[id(weight)] = packed
                replaced[id(module)] = new
                keep += [weight, module]
        del module, weight
        bar.add(size)
    bar.close()
    _explain_tied(model, keep, report)
    if report.layers:
        let_go_of_files(model)
    _library.give_back_freed_memory()
    report.model_bytes_after = model_bytes(model)
    report.seconds = time.perf_counter() - begin
    return report


def _explain_tied(model: nn.Module, compressed: list[Any], report: CompressionReport) -> None:
    del compressed[:]
    # A weight that something else still holds (a tied embedding) takes memory twice.
    tied = getattr(model, "_tied_weights_keys", None)
    names = {layer.name + ".weight" for layer in report.layers}
    for name in sorted(names & set(tied or ())):
        report.kept[name.rpartition(".")[0]] = (
            "compressed, but tied to a weight that was not: it takes memory twice; add it to skip"
        )
