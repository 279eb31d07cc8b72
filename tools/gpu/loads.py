"""Programs that bring weights to a device, for patterns.py: each in a way that engines and libraries have, and what it
computes with them in a round.

A pattern takes a Source and gives its weights, matrices and stacks of them, by name; or them and a program that yields
what it computes in a round from x(columns, dtype), the round's rows."""

import functools
import glob
import json
import mmap
import os
import struct
import sys

MIB = 1 << 20
SIZES = {
    "small": {
        "hidden": 512, "inner": 1536, "kv": 256, "layers": 4, "vocabulary": 1024, "rows": 4, "least": 0,
        "mixtral": {"layers": 2, "experts": 4, "inner": 256, "hidden": 128},
        "qwen3_moe": {"layers": 2, "experts": 8, "inner": 64, "hidden": 128},
    },
    "large": {
        "hidden": 2048, "inner": 5632, "kv": 512, "layers": 12, "vocabulary": 32000, "rows": 64, "least": 256,
        "mixtral": {"layers": 4, "experts": 8, "inner": 7168, "hidden": 2048},
        "qwen3_moe": {"layers": 6, "experts": 64, "inner": 768, "hidden": 2048},
    },
}  # fmt: skip
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
GROUPS = {"qkv": ATTENTION[:3], "o": ATTENTION[3:], "gate_up": MLP[:2], "down": MLP[2:]}
EXPERTS = 2  # MLPs of so many layers stand for the experts of one
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
PATTERNS = {}


def name_of(layer, what):
    return f"model.layers.{layer}.{'mlp' if what in MLP else 'self_attn'}.{what}.weight"


def pattern(function):
    PATTERNS[function.__name__] = function
    return function


class Source:
    """The tensors of a directory, read from its files' mappings, as loaders do. Nothing is opened before the first."""

    def __init__(self, directory, device, sizes, bin_file):
        self.directory, self.device, self.sizes, self.bin_file = directory, device, sizes, bin_file
        self.cuda = device == "cuda"

    @functools.cached_property
    def files(self):
        return sorted(glob.glob(os.path.join(self.directory, "*.safetensors")))

    @functools.cached_property
    def where(self):
        from safetensors import safe_open

        files = [safe_open(path, framework="pt") for path in self.files]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it is no dict)

    @functools.cached_property
    def names(self):
        return list(self.where)

    def get(self, name):
        return self.where[name].get_tensor(name)

    def slice(self, name):
        return self.where[name].get_slice(name)

    def shape(self, name):
        return tuple(self.slice(name).get_shape())

    def layers(self):
        return range(self.sizes["layers"])

    def empty(self, *shape, device=None):
        import torch

        return torch.empty(*shape, dtype=torch.bfloat16, device=device or self.device)

    def pinned(self, tensor):
        return tensor.pin_memory() if self.cuda else tensor.clone()

    def sync(self):
        import torch

        if self.cuda:
            torch.cuda.synchronize()


# --- whole tensors ----------------------------------------------------------------------------------------------


def use(weights, x):
    """One product with each matrix; one names a whole stack."""
    import torch
    from torch.nn import functional

    for w in weights.values():
        given = x(w.shape[-1], w.dtype)
        yield functional.linear(given, w) if w.dim() == 2 else torch.matmul(given, w.transpose(-1, -2))


@pattern
def whole(s):
    """each tensor, from the mapped file to the device"""
    return {name: s.get(name).to(s.device) for name in s.names}


@pattern
def load_file(s):
    """a file at a time into a dict, then to the device"""
    from safetensors.torch import load_file

    return {name: t.to(s.device) for file in s.files for name, t in load_file(file).items()}


@pattern
def on_device(s):
    """safe_open with the device"""
    from safetensors import safe_open

    out = {}
    for path in s.files:
        with safe_open(path, framework="pt", device=s.device + ":0" * s.cuda) as file:
            out.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (it is no dict)
    return out


def parameters(s, device):
    """A module with all matrices, of which nothing is loaded; its names have no dots."""
    import torch

    make = {n.replace(".", "/"): torch.nn.Parameter(s.empty(*s.shape(n), device=device), False) for n in s.names}
    return torch.nn.ParameterDict(make)


def state(s):
    return {name.replace(".", "/"): s.get(name) for name in s.names}


@pattern
def state_dict(s):
    """parameters on the device, load_state_dict()"""
    module = parameters(s, s.device)
    module.load_state_dict(state(s))
    return dict(module.items())


@pattern
def assign(s):
    """parameters on meta, load_state_dict(assign=True), then the module to the device"""
    module = parameters(s, "meta")
    module.load_state_dict(state(s), assign=True)
    return dict(module.to(s.device).items())


@pattern
def to_empty(s):
    """parameters on meta, to_empty() on the device, then copy_() of each"""
    import torch

    module = parameters(s, "meta").to_empty(device=s.device)
    with torch.no_grad():
        for name in s.names:
            module[name.replace(".", "/")].copy_(s.get(name))
    return dict(module.items())


@pattern
def bin(s):
    """torch.load() of a .bin into memory, load_state_dict() into parameters on the device"""
    import torch

    module = parameters(s, s.device)
    module.load_state_dict({n.replace(".", "/"): t for n, t in torch.load(s.bin_file, weights_only=True).items()})
    return dict(module.items())


@pattern
def pinned(s):
    """to pinned memory, then to the device without waiting"""
    keep = {name: s.pinned(s.get(name)) for name in s.names}
    out = {name: t.to(s.device, non_blocking=True) for name, t in keep.items()}
    s.sync()
    return out


def tensors_in(path):
    """(name, shape, first byte, end) of each tensor in a safetensors file, in its order."""
    with open(path, "rb", buffering=0) as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    found = [(k, v["shape"], *(8 + size + at for at in v["data_offsets"])) for k, v in header.items() if k[:2] != "__"]
    return sorted(found, key=lambda entry: entry[2])


@pattern
def staging(s):
    """read() into one pinned buffer, copies to the device from inside it without waiting"""
    import torch

    out, room, at = {}, s.pinned(torch.empty(128 * MIB if s.cuda else 4 * MIB, dtype=torch.uint8)), 0
    for path in s.files:
        with open(path, "rb", buffering=0) as file:
            for name, shape, begin, end in tensors_in(path):
                if at + end - begin > room.numel():
                    s.sync()
                    at = 0
                part, got = room[at : at + end - begin], 0
                file.seek(begin)
                while got < end - begin:
                    got += file.readinto(memoryview(part.numpy())[got:])
                out[name] = s.empty(*shape)
                out[name].copy_(part.view(torch.bfloat16).view(shape), non_blocking=True)
                at += -(-(end - begin) // 512) * 512
    s.sync()
    return out


@pattern
def own_mapping(s):
    """the program's own mmap of the file, torch.frombuffer() over it"""
    import torch

    out = {}
    for path in s.files:
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        for name, shape, begin, end in tensors_in(path):
            out[name] = torch.frombuffer(view[begin:end], dtype=torch.bfloat16).view(shape).to(s.device)
    return out


# --- parts of tensors, and tensors of parts ------------------------------------------------------------------------


@pattern
def fused(s):
    """q, k, v and gate, up: narrow().copy_() into one parameter, a layer after the other"""
    out = {}
    for layer in s.layers():
        for key, parts in GROUPS.items():
            tensors, at = [s.get(name_of(layer, part)) for part in parts], 0
            out[f"{layer}.{key}"] = parameter = s.empty(sum(len(t) for t in tensors), tensors[0].shape[1])
            for t in tensors:
                parameter.narrow(0, at, len(t)).copy_(t)
                at += len(t)
    return out


@pattern
def fused_in_file_order(s):
    """the same with all parameters made first, and the parts as the file has them"""
    out, place = {}, {}
    for layer in s.layers():
        for key, parts in GROUPS.items():
            shapes, at = [s.shape(name_of(layer, part)) for part in parts], 0
            out[f"{layer}.{key}"] = parameter = s.empty(sum(rows for rows, _ in shapes), shapes[0][1])
            for part, (rows, _) in zip(parts, shapes):
                place[name_of(layer, part)] = parameter.narrow(0, at, rows)
                at += rows
    for name in s.names:
        if name in place:
            place[name].copy_(s.get(name))
    return out


@pattern
def fused_on_device(s):
    """q, k, v and gate, up: torch.cat() on the device, copied into the parameter"""
    import torch

    out = {}
    for layer in s.layers():
        for key, parts in GROUPS.items():
            joined = torch.cat([s.get(name_of(layer, part)).to(s.device) for part in parts])
            out[f"{layer}.{key}"] = torch.empty_like(joined).copy_(joined)
    return out


def expert_groups(s):
    return [range(first, first + EXPERTS) for first in range(0, len(s.layers()) - EXPERTS + 1, EXPERTS)]


@pattern
def experts(s):
    """stacks of experts, expert by expert: parameter[i].copy_(), gate and up in one"""
    out = {}
    for group in expert_groups(s):
        inner, hidden = s.shape(name_of(group[0], "gate_proj"))
        out[f"{group[0]}.w13"] = w13 = s.empty(len(group), 2 * inner, hidden)
        out[f"{group[0]}.w2"] = w2 = s.empty(len(group), hidden, inner)
        for i, layer in enumerate(group):
            w13[i].narrow(0, 0, inner).copy_(s.get(name_of(layer, "gate_proj")))
            w13[i].narrow(0, inner, inner).copy_(s.get(name_of(layer, "up_proj")))
            w2[i].copy_(s.get(name_of(layer, "down_proj")))
    return out


@pattern
def experts_on_device(s):
    """torch.stack() of experts on the device, torch.cat() of gate and up"""
    import torch

    out = {}
    for group in expert_groups(s):
        stacks = {w: torch.stack([s.get(name_of(layer, w)).to(s.device) for layer in group]) for w in MLP}
        out[f"{group[0]}.w13"] = torch.cat([stacks.pop("gate_proj"), stacks.pop("up_proj")], 1)
        out[f"{group[0]}.w2"] = stacks.pop("down_proj")
    return out


@pattern
def rows(s):
    """tensor parallelism: half of the rows, copied into a parameter"""
    out = {}
    for layer in s.layers():
        for what in ("q_proj", "gate_proj", "up_proj"):
            t = s.get(name_of(layer, what))
            half = len(t) // 2
            out[f"{layer}.{what}"] = s.empty(half, t.shape[1]).copy_(t.narrow(0, half, half))
    return out


@pattern
def columns(s):
    """tensor parallelism: half of the columns, by get_slice()"""
    out = {}
    for layer in s.layers():
        for what in ("o_proj", "down_proj"):
            half = s.shape(name_of(layer, what))[1] // 2
            out[f"{layer}.{what}"] = s.slice(name_of(layer, what))[:, half:].to(s.device)
    return out


@pattern
def columns_copied(s):
    """tensor parallelism: half of the columns of the mapped tensor, copied into a parameter"""
    out = {}
    for layer in s.layers():
        for what in ("o_proj", "down_proj"):
            t = s.get(name_of(layer, what))
            half = t.shape[1] // 2
            out[f"{layer}.{what}"] = s.empty(len(t), half).copy_(t.narrow(1, half, half))
    return out


@pattern
def padded(s):
    """a vocabulary with rows of zeros behind it"""
    out = {}
    for name in EMBEDDINGS:
        t = s.get(name)
        out[name] = parameter = s.empty(len(t) + 64, t.shape[1])
        parameter[: len(t)].copy_(t)
        parameter[len(t) :].fill_(0)
    return out


@pattern
def expanded(s):
    """heads of keys and values repeated: expand(), then copied into a parameter"""
    out = {}
    for layer in s.layers():
        for what in ("k_proj", "v_proj"):
            t = s.get(name_of(layer, what)).to(s.device).unflatten(0, (-1, 64))
            repeated = t[:, None].expand(-1, 4, -1, -1)
            out[f"{layer}.{what}"] = s.empty(*repeated.shape).copy_(repeated).flatten(0, 2)
    return out


@pattern
def transposed(s):
    """contiguous() of each transpose, on the device"""
    return {name: s.get(name).to(s.device).t().contiguous() for name in s.names}


@pattern
def device_to_device(s):
    """to the device, and from there into the parameter"""
    import torch

    out = {}
    for name in s.names:
        there = s.get(name).to(s.device)
        out[name] = torch.empty_like(there).copy_(there)
    return out


# --- other values --------------------------------------------------------------------------------------------------


@pattern
def cast_on_device(s):
    """to the device, and to float16 there"""
    import torch

    return {name: s.get(name).to(s.device).to(torch.float16) for name in s.names}


@pattern
def cast_on_device_float32(s):
    """to the device, and to float32 there"""
    import torch

    return {name: s.get(name).to(s.device).to(torch.float32) for name in s.names}


@pattern
def cast_on_cpu(s):
    """to float16, then to the device"""
    import torch

    return {name: s.get(name).to(torch.float16).to(s.device) for name in s.names}


@pattern
def cast_on_cpu_float32(s):
    """to float32, then to the device"""
    import torch

    return {name: s.get(name).to(torch.float32).to(s.device) for name in s.names}


def adapters(s, weights):
    """Low-rank factors for each matrix."""
    import torch

    random, out = torch.Generator().manual_seed(3), {}
    for name, w in weights.items():
        for part, shape in (("a", (8, w.shape[1])), ("b", (w.shape[0], 8))):
            out[f"{name}.{part}"] = (torch.randn(*shape, generator=random) / 64).bfloat16().to(s.device)
    return out


@pattern
def adapter(s):
    """low-rank adapters beside the weights"""
    from torch.nn import functional

    weights = whole(s)
    more = adapters(s, weights)

    def play(x):
        for name, w in weights.items():
            low = functional.linear(x(w.shape[1], w.dtype), more[name + ".a"])
            yield functional.linear(x(w.shape[1], w.dtype), w) + functional.linear(low, more[name + ".b"])

    return weights, play


@pattern
def adapter_merged(s):
    """low-rank adapters added to the weights in place"""
    weights = whole(s)
    more = adapters(s, weights)
    for name, w in weights.items():
        w += more[name + ".b"] @ more[name + ".a"]
    return weights


@pattern
def adapter_unmerged(s):
    """the same, and subtracted again"""
    weights = adapter_merged(s)
    more = adapters(s, weights)
    for name, w in weights.items():
        w -= more[name + ".b"] @ more[name + ".a"]
    return weights


# --- programs of their own -----------------------------------------------------------------------------------------


@pattern
def two_buffers(s):
    """an offloader of its own: weights in pinned memory, copied into two buffers on the device in turn"""
    from torch.nn import functional

    keep = [s.pinned(s.get(name_of(layer, "down_proj"))) for layer in s.layers()]
    buffers = [s.empty(*keep[0].shape) for _ in range(2)]

    def play(x):
        for i, t in enumerate(keep):
            buffers[i % 2].copy_(t, non_blocking=True)
            yield functional.linear(x(t.shape[1], t.dtype), buffers[i % 2])

    return {}, play


@pattern
def graphs(s):
    """fused parameters; a captured graph for each layer, replayed in each round"""
    import torch
    from torch.nn import functional

    weights, hidden = fused(s), s.sizes["hidden"]
    static = s.empty(s.sizes["rows"], hidden)

    def layer_of(layer):
        qkv = functional.linear(static, weights[f"{layer}.qkv"])
        h = functional.linear(qkv[:, :hidden].contiguous(), weights[f"{layer}.o"])
        gate, up = functional.linear(h, weights[f"{layer}.gate_up"]).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, weights[f"{layer}.down"])

    captured = []
    for layer in s.layers() if s.cuda else []:
        if layer == 0:
            layer_of(0)
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=captured[0][0].pool() if captured else None):
            result = layer_of(layer)
        captured.append((graph, result))

    def play(x):
        static.copy_(x(hidden, torch.bfloat16))
        for layer in s.layers():
            if s.cuda:
                captured[layer][0].replay()
            yield captured[layer][1].clone() if s.cuda else layer_of(layer)

    return weights, play


@pattern
def asks(s):
    """asks how much memory is free, before and after it loads, and takes a cache of it"""
    import torch

    before = torch.cuda.mem_get_info() if s.cuda else (0, 0)
    weights = fused(s)
    if not s.cuda:
        return weights
    torch.cuda.synchronize()
    after = torch.cuda.mem_get_info()
    print(f"free, total: {before} before, {after} after", file=sys.stderr)
    if after[0] > before[0]:
        raise RuntimeError(f"free memory grew from {before[0]} to {after[0]} while a model was loaded")
    if min(before[1], after[1]) < 1.2 * (1 << 30):  # transformers takes the rest of this for one allocation
        raise RuntimeError(f"{min(before[1], after[1])} of memory in all makes sums of loaders negative")
    cache = torch.zeros(min(after[0] * 9 // 10, 64 * MIB), dtype=torch.uint8, device=s.device)
    return weights, lambda x: (*use(weights, x), cache[:64])


@pattern
def benchmark(s):
    """torch.backends.cudnn.benchmark: PyTorch compares what it has allocated with the memory that there is"""
    import torch

    weights = whole(s)
    if s.cuda:
        torch.backends.cudnn.benchmark = True  # its choice may change bits: what is computed here is not compared
        picture = torch.ones(1, 64, 32, 32, device=s.device)
        torch.nn.functional.conv2d(picture, torch.ones(64, 64, 3, 3, device=s.device), padding=1)
    return weights


@pattern
def memory_pool(s):
    """a pool of the program's own (torch.cuda.MemPool), where PyTorch has one, for something beside the weights"""
    import torch

    weights, taken = whole(s), []
    if s.cuda:
        try:
            with torch.cuda.use_mem_pool(torch.cuda.MemPool()):
                taken.append(torch.ones(4 * MIB, dtype=torch.uint8, device=s.device))
        except Exception as error:  # whatever PyTorch refuses it with
            print(f"no pool: {error}", file=sys.stderr)
    return weights


# --- mixtures of experts, by transformers --------------------------------------------------------------------------


def mixture(s, **options):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(s.directory, dtype=torch.bfloat16, device_map=s.device, **options)
    model.eval()

    def play(x):
        ids = x(32, torch.float32)[:2].mul(1000).long().abs() % model.config.vocab_size
        told = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, min_new_tokens=10, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        return [told.sequences, *told.logits]

    return dict(model.named_parameters()), play


@pattern
def mixtral(s):
    """transformers: a mixture of 8 large experts, which it stacks while it loads"""
    return mixture(s)


@pattern
def mixtral_eager(s):
    """the same, and experts one after the other"""
    return mixture(s, experts_implementation="eager")


@pattern
def qwen3_moe(s):
    """transformers: a mixture of 64 small experts"""
    return mixture(s)


@pattern
def qwen3_moe_eager(s):
    """the same, and experts one after the other"""
    return mixture(s, experts_implementation="eager")
