#!/usr/bin/env python3
"""A denoising step of a transformer of FLUX.1-dev's shape on a GPU: plain, and paged at several budgets. Are the bits
the same, how long does a step take, what does it load and wait for?

    python tools/gpu/denoise.py OUTDIR [--build BUILD] [--beside OTHER-BUILD] [--work DIR] [--budgets 12G,8G,6G]
        [--steps 8] [--blocks 19,38] [--hidden 3072] [--heads 24] [--tokens 4096,512] [--dtype bfloat16] [--device cuda]

The blocks are those of the model, in plain torch: 19 with two streams and 38 with one, 12 G weights of random values,
23.8 GB in bf16; 4096 latent and 512 text tokens. Makes the model and packs it, runs each in a process of its own, and
prints a row of the table when it ends: a step is the median of all but the first two. The link is measured first,
pinned memory to the device. OUTDIR/NAME.json has the time and the counters of each step. Exit status 1 if what was
computed differs, or a program fails. --device cpu with small sizes tries it everywhere (there the budget bounds host
memory)."""

import argparse
import glob
import hashlib
import json
import math
import os
import statistics
import sys
import time

import scenarios
import workers

WHEN = {"time": 256, "guidance": 256, "pooled": 768}  # what the modulation comes from, elements
# Of codecllm.memory_stats(), where the build has them.
RATES = """loads drops link_bytes link_ns weight_waits weight_wait_ns fresh_waits fresh_wait_ns staging_waits
    staging_wait_ns frames_created frames_released vmm_calls stolen""".split()
COLUMNS = {  # after the name: what it is, how wide
    "ms": 8, "of plain": 8, "peak MiB": 8, "bits": 9, "loads": 6, "link GB": 7, "link busy": 9,
    "weight waits, ms": 16, "fresh waits, ms": 15, "frames made": 11, "stolen MiB": 10,
}  # fmt: skip


def make_parts(arguments):
    """The model's parts in the order of their use, without values: what comes before the blocks, then the blocks."""
    import torch
    from torch import nn
    from torch.nn import functional

    hidden, blocks, head = arguments.hidden, arguments.blocks, arguments.hidden // arguments.heads
    dtype = getattr(torch, arguments.dtype)

    def linear(to, of=hidden):
        return nn.Linear(of, to, device="meta", dtype=dtype)

    def normed(x, shift, scale):
        return functional.layer_norm(x, (hidden,)) * (1 + scale) + shift

    def heads(x):
        return x.unflatten(-1, (-1, head)).transpose(1, 2)

    def attend(q, k, v, turn):
        q, k = (x * turn[0] + torch.cat((-x[..., head // 2 :], x[..., : head // 2]), -1) * turn[1] for x in (q, k))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)

    class Projections(nn.Module):
        """Queries and keys, normed, and values, by head."""

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (linear(hidden) for _ in range(3))
            self.q_norm, self.k_norm = (nn.RMSNorm(head, 1e-6, device="meta", dtype=dtype) for _ in range(2))

        def forward(self, x):
            return self.q_norm(heads(self.q(x))), self.k_norm(heads(self.k(x))), heads(self.v(x))

    class Embedding(nn.Module):
        def __init__(self, of):
            super().__init__()
            self.up, self.out = linear(hidden, of), linear(hidden)

        def forward(self, x):
            return self.out(functional.silu(self.up(x)))

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.modulation, self.out = linear(2 * hidden), linear(64)

        def forward(self, x, when):
            return self.out(normed(x, *self.modulation(functional.silu(when)).unsqueeze(1).chunk(2, -1)))

    class Stream(nn.Module):
        """What a block with two streams does to one of them."""

        def __init__(self):
            super().__init__()
            self.modulation = linear(6 * hidden)
            self.qkv, self.out = Projections(), linear(hidden)
            self.up, self.down = linear(4 * hidden), linear(hidden, 4 * hidden)

        def before(self, x, when):
            parts = self.modulation(functional.silu(when)).unsqueeze(1).chunk(6, -1)
            return parts[2:], self.qkv(normed(x, parts[0], parts[1]))

        def after(self, x, attended, parts):
            x = x + parts[0] * self.out(attended)
            inner = functional.gelu(self.up(normed(x, parts[1], parts[2])), approximate="tanh")
            return x + parts[3] * self.down(inner)

    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = Stream(), Stream()

        def forward(self, image, text, when, turn):
            image_parts, image_qkv = self.image.before(image, when)
            text_parts, text_qkv = self.text.before(text, when)
            both = attend(*(torch.cat(pair, 2) for pair in zip(text_qkv, image_qkv)), turn)
            words = text.shape[1]
            return self.image.after(image, both[:, words:], image_parts), self.text.after(
                text, both[:, :words], text_parts
            )

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.modulation = linear(3 * hidden)
            self.up, self.qkv = linear(4 * hidden), Projections()
            self.out = linear(hidden, 5 * hidden)

        def forward(self, x, when, turn):
            shift, scale, gate = self.modulation(functional.silu(when)).unsqueeze(1).chunk(3, -1)
            y = normed(x, shift, scale)
            inner = functional.gelu(self.up(y), approximate="tanh")
            return x + gate * self.out(torch.cat((attend(*self.qkv(y), turn), inner), -1))

    yield "image", lambda: linear(hidden, 64)
    yield "text", lambda: linear(hidden, 4096)
    for name, of in WHEN.items():
        yield name, lambda of=of: Embedding(of)
    for i in range(blocks[0]):
        yield f"double.{i}", Double
    for i in range(blocks[1]):
        yield f"single.{i}", Single
    yield "last", Last


def make_model(arguments, directory):
    """A directory of safetensors files, some blocks in each."""
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, arguments.dtype)
    os.makedirs(directory + ".part", exist_ok=True)
    random = torch.Generator(arguments.device).manual_seed(1)
    tensors, where, size = {}, {}, 0

    def flush():
        name = f"model-{len(set(where.values())):05}.safetensors"
        save_file(tensors, os.path.join(directory + ".part", name), {"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
        tensors.clear()

    for part, make in make_parts(arguments):
        for name, p in make().state_dict().items():
            values = torch.ones(p.shape, dtype=dtype, device=arguments.device)
            if not name.endswith("norm.weight"):
                values.normal_(0, 0.02, generator=random)
            tensors[f"{part}.{name}"] = values.cpu()
            size += p.nbytes
        if sum(t.nbytes for t in tensors.values()) > 2 << 30:
            flush()
    flush()
    with open(os.path.join(directory + ".part", "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": size}, "weight_map": where}, file)
    with open(os.path.join(directory + ".part", "config.json"), "w") as file:
        json.dump({"model_type": "denoise"}, file)
    os.rename(directory + ".part", directory)


def load(arguments):
    """The model's parts by name, on the device; each tensor is copied there from the mapped file."""
    import torch
    from safetensors import safe_open

    parts = {name: make() for name, make in make_parts(arguments)}
    for path in sorted(glob.glob(os.path.join(arguments.model, "*.safetensors"))):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                part, name = next((p, key[len(p) + 1 :]) for p in parts if key.startswith(p + "."))
                owner, _, leaf = name.rpartition(".")
                module = parts[part].get_submodule(owner)
                setattr(
                    module, leaf, torch.nn.Parameter(file.get_tensor(key).to(arguments.device), requires_grad=False)
                )
    return parts


def rotary(arguments):
    """Cosines and sines for each text and each latent token: an eighth of a head does not turn, the rest by the row and
    by the column of a square of latents."""
    import torch

    images, words = arguments.tokens
    head, latent = arguments.hidden // arguments.heads, torch.arange(images)
    part = head // 16 * 7
    side, angles = math.ceil(math.sqrt(images)), []
    for position, size in ((0 * latent, head - 2 * part), (latent // side, part), (latent % side, part)):
        position = torch.cat((torch.zeros(words, dtype=torch.int64), position))
        angles.append(torch.outer(position, 10000 ** (-torch.arange(0, size, 2) / size)))
    angles = torch.cat(angles, 1).repeat(1, 2)
    return [turn.to(getattr(torch, arguments.dtype)).to(arguments.device) for turn in (angles.cos(), angles.sin())]


def work(arguments):
    """In a process of its own: prints what came out as one line of JSON."""
    import torch

    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    begin = time.perf_counter()
    parts = load(arguments)
    sync()
    loaded = time.perf_counter() - begin
    random = torch.Generator().manual_seed(5)
    images, words = arguments.tokens

    def draw(*shape):
        return torch.randn(*shape, generator=random).to(dtype).to(device)

    image_in, text_in = draw(1, images, 64), draw(1, words, 4096)
    when_in, turn = {name: draw(1, of) for name, of in WHEN.items()}, rotary(arguments)
    ms, digests, told, finite = [], [], [], True
    with torch.no_grad():
        for _ in range(arguments.steps + 2):
            told.append(workers.counters())
            begin = time.perf_counter()
            image, text = parts["image"](image_in), parts["text"](text_in)
            when = sum(parts[name](x) for name, x in when_in.items())
            for i in range(arguments.blocks[0]):
                image, text = parts[f"double.{i}"](image, text, when, turn)
            x = torch.cat((text, image), 1)
            for i in range(arguments.blocks[1]):
                x = parts[f"single.{i}"](x, when, turn)
            out = parts["last"](x[:, words:], when)
            sync()
            ms.append((time.perf_counter() - begin) * 1e3)
            digests.append(hashlib.sha256(out.cpu().view(torch.uint8).numpy().tobytes()).hexdigest()[:20])
            finite &= bool(out.isfinite().all())
    told.append(workers.counters())
    steps = [{k: after[k] - before[k] for k in RATES if k in before} for before, after in zip(told, told[1:])]
    rates = {k: statistics.mean(step[k] for step in steps[2:]) for k in steps[-1]}
    facts = {"load_s": loaded, "ms": ms, "digests": digests, "finite": finite, "a_step": rates, "steps": steps}
    print(json.dumps(facts))


def run(arguments, name, model, budget, build=None):
    """What work() printed, and the peak; {"failed": words}: the program did not end well."""
    command = [sys.executable, os.path.abspath(__file__), arguments.out, "--model", model, "--device", arguments.device]
    for option in ("blocks", "tokens"):
        command += [f"--{option}", ",".join(map(str, getattr(arguments, option)))]
    for option in ("steps", "hidden", "heads", "dtype"):
        command += [f"--{option}", str(getattr(arguments, option))]
    environment = scenarios.environment(arguments, budget, build=build)
    result = workers.run(arguments, name.replace(" ", "-"), command, environment)
    result.setdefault("peak_mib", 0)
    return result


def differs(result, plain):
    """Steps that computed something else than the plain program's first one."""
    return sum(digest != plain["digests"][0] for digest in result["digests"])


def line(cells):
    return f"{cells[0]:<14}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def row(name, result, plain):
    if "failed" in result:
        return f"{name:<14} {result['failed']}"
    ms, others = statistics.median(result["ms"][2:]), differs(result, plain)
    cells = [name, f"{ms:.1f}", f"{ms / statistics.median(plain['ms'][2:]):.2f}", result["peak_mib"]]
    cells.append(f"{others} OTHERS" if others else "same")
    rates = result["a_step"]
    if not rates:  # the plain program, or the host
        return line(cells)

    def cell(words, *keys):
        """Of these counters; a build may lack one."""
        return words(*(rates[key] for key in keys)) if all(key in rates for key in keys) else "-"

    cells += [cell("{:.0f}".format, "loads"), cell(lambda b: f"{b / 1e9:.2f}", "link_bytes")]
    cells.append(cell(lambda ns: f"{ns / 1e6 / ms:.0%}", "link_ns"))
    for why in ("weight", "fresh"):
        cells.append(cell(lambda ns, n: f"{ns / 1e6:.1f} ({n:.0f})", f"{why}_wait_ns", f"{why}_waits"))
    cells += [cell("{:.1f}".format, "frames_created"), cell(lambda b: f"{b / (1 << 20):.1f}", "stolen")]
    return line(cells)


def pair(text):
    return tuple(int(part) for part in text.split(","))


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--beside", help="another build, whose paged programs are run, too")
    parser.add_argument("--budgets", default="12G,8G,6G")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--blocks", type=pair, default=(19, 38), help="with two streams, with one")
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--heads", type=int, help="default: one for 128 of --hidden")
    parser.add_argument("--tokens", type=pair, default=(4096, 512), help="latent, text")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--model", help=argparse.SUPPRESS)  # in the processes that this one starts
    arguments = parser.parse_args()
    arguments.heads = arguments.heads or arguments.hidden // 128
    if not arguments.heads or arguments.hidden % (32 * arguments.heads):
        parser.error(f"{arguments.hidden} cannot be divided into {arguments.heads} heads of a multiple of 32")
    if arguments.model:
        work(arguments)
        return
    workers.make_directories(arguments)
    shape = [arguments.hidden, arguments.heads, *arguments.blocks] + [arguments.dtype] * (arguments.dtype != "bfloat16")
    plain_dir = os.path.join(arguments.work, "flux-" + "-".join(map(str, shape)))
    if not os.path.isdir(plain_dir):
        make_model(arguments, plain_dir)
    packed_dir = workers.packed(arguments, plain_dir)
    with workers.table(arguments) as say:
        workers.say_link(arguments, say)
        say(line(["a step", *COLUMNS]))
        plain = run(arguments, "plain", plain_dir, None)
        say(row("plain", plain, plain))
        if "failed" in plain:
            sys.exit(1)
        if not plain["finite"]:
            say("what was computed is not finite, so that equal bits tell nothing")
        wrong = differs(plain, plain) > 0 or not plain["finite"]
        for budget in arguments.budgets.split(","):
            for name, build in ((budget, None), (f"{budget} beside", arguments.beside))[: 2 if arguments.beside else 1]:
                result = run(arguments, name, packed_dir, budget, build)
                say(row(name, result, plain))
                wrong |= "failed" in result or differs(result, plain) > 0
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
