#!/usr/bin/env python3
"""Programs that use weights in ways a residency manager could get wrong: plain PyTorch and transformers, nothing of
CodecLLM is imported. tools/gpu/scenarios.py runs each without the shim and with it, and compares what they print.

    python tools/gpu/program.py SCENARIO --model DIR [--device cuda] [--seed N]

Every line on stdout is a fact that must not depend on paging: a label and a digest, or a word. Scenarios that measure
print their figures to stderr, "figure NAME VALUE"."""

import argparse
import glob
import hashlib
import json
import os
import sys
import threading
import time

import torch


def digest(label, *tensors):
    """One line: the SHA-256 of the tensors' bytes."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    print(label, sha.hexdigest()[:24], flush=True)


def figure(name, value):
    print(f"figure {name} {value}", file=sys.stderr, flush=True)


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def load_model(args, **keywords):
    from transformers import AutoModelForCausalLM

    keywords.setdefault("dtype", "auto")
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(args.model, **keywords)
    if "device_map" not in keywords:
        model = model.to(args.device)
    synchronize(args.device)
    figure("load_s", round(time.perf_counter() - begin, 3))
    return model.eval()


def prompt(args, count=24, batch=1):
    generator = torch.Generator().manual_seed(args.seed)
    return torch.randint(3, 2000, (batch, count), generator=generator).to(args.device)


def greedy(model, ids, steps, cache=None, **keywords):
    """Token by token, so that the logits of each step can be compared. Returns the tokens and the last logits."""
    tokens = []
    with torch.inference_mode():
        out = model(ids, use_cache=True, past_key_values=cache, **keywords)
        for _ in range(steps):
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(token)
            out = model(token, use_cache=True, past_key_values=out.past_key_values, **keywords)
    return torch.cat(tokens, 1), out.logits


def state(args):
    """The tensors of all files of the model, straight from safetensors to the device."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(glob.glob(os.path.join(args.model, "*.safetensors"))):
        tensors.update(load_file(path, device=args.device))
    return tensors


def touch_all(tensors, rounds=2):
    """Reads every tensor, which pushes others out when they do not all fit. One digest of the sums."""
    sums = []
    for _ in range(rounds):
        for name in sorted(tensors):
            sums.append(tensors[name].view(torch.int16).sum(dtype=torch.int64))
    return torch.stack(sums)


# --- scenarios ------------------------------------------------------------------------------------


def generate(args):
    model = load_model(args)
    ids = prompt(args)
    begin = time.perf_counter()
    tokens, logits = greedy(model, ids, 1)
    synchronize(args.device)
    figure("first_token_s", round(time.perf_counter() - begin, 3))
    begin = time.perf_counter()
    tokens, logits = greedy(model, ids, args.tokens)
    synchronize(args.device)
    figure("tokens_per_s", round(args.tokens / (time.perf_counter() - begin), 2))
    digest("tokens", tokens)
    digest("logits", logits)


def batch(args):
    """Several sequences at once, of a length that makes activations large."""
    model = load_model(args)
    with torch.inference_mode():
        logits = model(prompt(args, 256, 4)).logits
    digest("prefill", logits)
    digest("tokens", *greedy(model, prompt(args, 16, 4), 8))


def turns(args):
    """Does what stdin says, "decode N" or "prefill N", a line at a time, and answers each with a line of JSON: the
    milliseconds of each token or prefill, a digest of what was computed, and what a loop of Python alone takes at that
    moment, which tells how fast the machine is."""
    keywords = {"attn_implementation": args.attention} if args.attention else {}
    model = load_model(args, **keywords)
    ids, prompts = prompt(args), prompt(args, args.context, 4)

    def decode(count):
        moments, tokens = [], []
        out = model(ids, use_cache=True)
        for _ in range(count + 1):
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(token.item())
            moments.append(time.perf_counter())
            out = model(token, use_cache=True, past_key_values=out.past_key_values)
        synchronize(args.device)
        return moments, [torch.tensor(tokens), out.logits]

    def prefill(count):
        moments = [time.perf_counter()]
        for _ in range(count):
            out = model(prompts, use_cache=True, logits_to_keep=1)
            synchronize(args.device)
            moments.append(time.perf_counter())
        return moments, [out.logits]

    def loop():
        begin, total = time.perf_counter(), 0
        for i in range(20000):
            total += i * i
        return 1e3 * (time.perf_counter() - begin)

    work, warm = {"decode": decode, "prefill": prefill}, set()
    print("{}", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            what, count = line.split()
            if what not in warm:
                work[what](int(count))
                warm.add(what)
            loop_ms = loop()
            moments, results = work[what](int(count))
            sha = hashlib.sha256(
                b"".join(result.cpu().contiguous().view(torch.uint8).numpy().tobytes() for result in results)
            ).hexdigest()
            print(
                json.dumps(
                    {
                        "ms": [1e3 * (b - a) for a, b in zip(moments, moments[1:])],
                        "digest": sha[:24],
                        "loop_ms": loop_ms,
                    }
                ),
                flush=True,
            )


def offload(args):
    """accelerate's cpu_offload, the peer: only its speed is of interest."""
    from accelerate import cpu_offload

    model = load_model(args, device_map="cpu")
    cpu_offload(model, execution_device=torch.device(args.device))
    ids = prompt(args)
    greedy(model, ids, 1)
    synchronize(args.device)
    begin = time.perf_counter()
    tokens, _ = greedy(model, ids, args.tokens)
    synchronize(args.device)
    figure("tokens_per_s", round(args.tokens / (time.perf_counter() - begin), 3))
    digest("tokens", tokens)


def edits(args):
    """One bf16 changed and two rows swapped in otherwise clean weights; everything else touched; the exact bytes
    back."""
    tensors = state(args)
    names = sorted((n for n in tensors if tensors[n].dim() == 2), key=lambda n: -tensors[n].numel())[:6]
    digest("before", *(tensors[n] for n in names))
    one, two, three = (tensors[n] for n in names[:3])
    one.view(-1)[12345] = 0.75
    two[[3, 700]] = two[[700, 3]]
    three.mul_(2)
    digest("sums", touch_all(tensors, 3))
    digest("after", *(tensors[n] for n in names))
    one.view(-1)[12345] += 1
    digest("sums", touch_all(tensors, 1))
    digest("again", *(tensors[n] for n in names))


def there_and_back(args):
    """Off the device and onto it again, as programs that swap models do."""
    model = load_model(args)
    ids = prompt(args)
    digest("tokens", *greedy(model, ids, 6))
    for turn in range(2):
        model = model.to("cpu")
        digest(f"cpu {turn}", *(p for p in model.parameters() if p.numel() > 1000))
        model = model.to(args.device)
        digest(f"tokens {turn}", *greedy(model, ids, 6))


def two_models(args):
    first, second = load_model(args), load_model(args)
    ids = prompt(args)
    for turn in range(3):
        digest(f"first {turn}", *greedy(first, ids, 4))
        digest(f"second {turn}", *greedy(second, ids + 1, 4))
    del first
    digest("alone", *greedy(second, ids, 4))


def threads(args):
    """Two threads on streams of their own, one model."""
    model = load_model(args)
    results = {}

    def work(key):
        stream = torch.cuda.Stream() if args.device.startswith("cuda") else None
        with torch.cuda.stream(stream):
            for turn in range(4):
                results[key, turn] = greedy(model, prompt(args) + key, 4)
            synchronize(args.device)

    workers = [threading.Thread(target=work, args=(key,)) for key in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for key in sorted(results):
        digest(f"thread {key}", *results[key])


def growing(args):
    """A cache of keys and values that grows until it takes --cache-mb: weights must give way."""
    model = load_model(args)
    config = model.config
    kv_bytes = (
        2
        * 2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.hidden_size // config.num_attention_heads)
    )
    steps, length = 12, 64
    sequences = max(1, int(args.cache_mb * 2**20 / (kv_bytes * steps * length)))
    cache = None
    with torch.inference_mode():
        for step in range(steps):
            out = model(prompt(args, length, sequences) + step, use_cache=True, past_key_values=cache, logits_to_keep=1)
            cache = out.past_key_values
            digest(f"step {step}", out.logits)
    figure("cache_mib", round(kv_bytes * steps * length * sequences / 2**20))


def convert(args):
    """Loaded in another dtype than the file's: unpaged, or a clear error."""
    model = load_model(args, dtype=torch.float16)
    digest("tokens", *greedy(model, prompt(args), 4))


def auto(args):
    model = load_model(args, device_map="auto")
    print("devices", *sorted({p.device.type for p in model.parameters()}))
    digest("tokens", *greedy(model, prompt(args), 4))


def products(args):
    """Products of many matrices: pointer arrays in device memory, grouped and batched."""
    tensors = state(args)
    shapes = {}
    for name in sorted(tensors):
        if tensors[name].dim() == 2:
            shapes.setdefault(tuple(tensors[name].shape), []).append(tensors[name])
    generator = torch.Generator().manual_seed(args.seed)
    for shape, group in sorted(shapes.items()):
        x = torch.randn(4, shape[1], generator=generator, dtype=torch.float32).to(torch.bfloat16).to(args.device)
        digest(f"linear {shape}", *(torch.nn.functional.linear(x, w) for w in group))
        digest(f"foreach {shape}", *torch._foreach_mul(group, 0.5))
        if len(group) > 1:
            digest(f"bmm {shape}", torch.bmm(torch.stack([x] * 2), torch.stack([w.t() for w in group[:2]])))
            digest(f"norms {shape}", *torch._foreach_norm(group))


def compiled(args):
    model = load_model(args)
    ids = prompt(args)
    with torch.inference_mode():
        model.forward = torch.compile(model.forward)
        for turn in range(3):
            digest(f"forward {turn}", model(ids, use_cache=False).logits)


def graph(args):
    """A decoding step captured with torch.cuda.CUDAGraph over a static cache."""
    from transformers import StaticCache

    model = load_model(args)
    ids = prompt(args)
    cache = StaticCache(config=model.config, max_cache_len=128)
    with torch.inference_mode():
        out = model(
            ids, use_cache=True, past_key_values=cache, cache_position=torch.arange(ids.shape[1], device=args.device)
        )
        token = out.logits[:, -1:].argmax(-1)
        position = torch.tensor([ids.shape[1]], device=args.device)

        def step():
            return model(
                token, use_cache=True, past_key_values=cache, cache_position=position, position_ids=position[None]
            )

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = step()
        for turn in range(8):
            captured.replay()
            digest(f"step {turn}", out.logits)
            token.copy_(out.logits[:, -1:].argmax(-1))
            position.add_(1)


def reduce_overhead(args):
    model = load_model(args)
    ids = prompt(args)
    with torch.inference_mode():
        model.forward = torch.compile(model.forward, mode="reduce-overhead")
        for turn in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            digest(f"forward {turn}", model(ids, use_cache=False).logits)


def hidden(args):
    """A kernel that reaches weights through an array of pointers in device memory, filled by a kernel, so that nobody
    saw it; --write: it writes there. The weights are pushed out first."""
    import cupy

    tensors = state(args)
    names = sorted(n for n in tensors if tensors[n].dim() == 2)
    source = r"""
    extern "C" __global__ void keep(unsigned long long *slot, unsigned long long half) { *slot = half << 1; }
    extern "C" __global__ void reach(unsigned long long **slot, unsigned long long *out, int write)
    { if (write) **slot = 1; else *out = **slot; }"""
    module = cupy.RawModule(code=source)
    slot = torch.zeros(1, dtype=torch.int64, device=args.device)
    out = torch.zeros(1, dtype=torch.int64, device=args.device)
    module.get_function("keep")((1,), (1,), (slot.data_ptr(), tensors[names[0]].data_ptr() >> 1))
    touch_all({n: tensors[n] for n in names[1:]}, 3)
    synchronize(args.device)
    module.get_function("reach")((1,), (1,), (slot.data_ptr(), out.data_ptr(), int(args.write)))
    synchronize(args.device)
    digest("reached", out, tensors[names[0]])


def too_much(args):
    """More than the budget: PyTorch's OutOfMemoryError, and the program goes on."""
    model = load_model(args)
    digest("tokens", *greedy(model, prompt(args), 4))
    try:
        hog = torch.empty(int(args.hog_mb) << 20, dtype=torch.uint8, device=args.device)
        hog.fill_(1)
        print("no error")
        del hog
    except torch.cuda.OutOfMemoryError:
        print("OutOfMemoryError")
    digest("tokens", *greedy(model, prompt(args), 4))


def damaged(args):
    """Over a damaged store: an exception, not wrong tokens."""
    try:
        model = load_model(args)
        digest("tokens", *greedy(model, prompt(args), 4))
        print("no error")
    except Exception as error:  # noqa: BLE001  the kind is what is asked for
        print("exception", type(error).__name__)
        sys.exit(3)


def interrupted(args):
    """Says that it works, then works until somebody sends SIGINT."""
    model = load_model(args)
    ids = prompt(args)
    print("working", flush=True)
    while True:
        greedy(model, ids, 4)


def random_walk(args):
    """Random work from the seed: streams, threads, graphs, writes, copies, frees; a digest of each result."""
    import random

    chance = random.Random(args.seed)
    cuda = args.device.startswith("cuda")
    tensors = {n: t for n, t in state(args).items() if t.dim() == 2}
    streams = [torch.cuda.Stream() for _ in range(3)] if cuda else [None]
    end = time.monotonic() + args.seconds if not args.steps else None
    kept = []
    step = 0
    while (step < args.steps) if args.steps else (time.monotonic() < end):
        step += 1
        name = chance.choice(sorted(tensors))
        weight = tensors[name]
        x = torch.ones(chance.choice([1, 3, 16]), weight.shape[1], dtype=weight.dtype, device=args.device)
        kind = chance.randrange(10)
        stream = chance.choice(streams)
        if cuda:
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if kind < 4:
                kept.append((f"{step} {name} linear", torch.nn.functional.linear(x, weight)))
            elif kind == 4:
                row = chance.randrange(weight.shape[0])
                weight[row] += 1
                kept.append((f"{step} {name} row", weight[row].clone()))
            elif kind == 5:
                kept.append((f"{step} {name} clone", weight.clone().view(torch.int16).sum(dtype=torch.int64)))
            elif kind == 6:
                tensors[name] = weight.cpu().to(args.device)
                del weight
            elif kind == 7:
                kept.append(
                    (f"{step} {name} big", (torch.ones(chance.randrange(1, 64) << 18, device=args.device) * step).sum())
                )
            elif kind == 8 and cuda:
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured, stream=stream):
                    out = weight.float().abs().amax(1)
                for _ in range(3):
                    captured.replay()
                kept.append((f"{step} {name} graph", out.clone()))
                torch.cuda.synchronize()
                captured.reset()
                del captured, out  # not while the next one is captured: PyTorch's cudaMallocAsync backend refuses that
            else:
                sums = []
                worker = threading.Thread(
                    target=lambda sums=sums, weight=weight: sums.append(
                        weight.view(torch.int16).sum(dtype=torch.int64).cpu()
                    )
                )
                worker.start()
                worker.join()
                kept.append((f"{step} {name} thread", sums[0]))
        if cuda:
            torch.cuda.current_stream().wait_stream(stream)
        if len(kept) > 16:
            for label, value in kept:
                digest(label, value)
            kept.clear()
    for label, value in kept:
        digest(label, value)
    for name in sorted(tensors):
        digest(f"end {name}", tensors[name])


SCENARIOS = [
    generate, batch, turns, offload, edits, there_and_back, two_models, threads, growing, convert, auto,
    products, compiled, graph, reduce_overhead, hidden, too_much, damaged, interrupted, random_walk,
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[s.__name__ for s in SCENARIOS])
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument(
        "--context", type=int, default=2048, help="turns: tokens of each of the four prompts of a prefill"
    )
    parser.add_argument("--attention", default="", help="turns: transformers' attn_implementation")
    parser.add_argument("--cache-mb", type=float, default=64)
    parser.add_argument("--hog-mb", type=float, default=4096)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--steps", type=int, default=0, help="random_walk: so many steps")
    parser.add_argument("--seconds", type=float, default=60, help="random_walk without --steps")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(False)
    globals()[args.scenario](args)


if __name__ == "__main__":
    main()
