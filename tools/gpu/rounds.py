#!/usr/bin/env python3
"""Programs whose activations and weights share a budget, in rounds, plain and paged on a GPU: are the bits the same,
does the budget hold, and does a round load more than what does not fit?

    python tools/gpu/rounds.py OUTDIR [--build BUILD] [--work DIR] [--only images,cache,...] [--scale small|large]
        [--shares 50] [--device cuda|cpu]

    images   steps of a denoiser, then a decoder with few weights and activations that double in each stage
    models   two models in turn, some steps of each
    streams  the two halves of a batch on a stream each; the halves change places after each block
    cache    caches that grow by torch.cat in each step; a step uses one block of the model
    prefill  all logits of a prompt at once, torch.cuda.empty_cache(), then steps of one token
    strict   all of these with the small sizes under CODEC_STRICT=1

Makes the model and packs it, runs each in a process of its own, and prints a row when a paged one ends. The budget is
what the plain program's activations take at their peak, staging, and a share of the weights (--shares, percent). What
does not fit in a round: the weights less what the budget leaves beside activations, staging and what the driver's
pools take, as often as they are used. A round has to load that much; `median` and `worst` are what the rounds after
the fourth loaded, in parts of it. Peak MiB is what nvidia-smi says of the device, sampled, less what the plain
program takes beside its tensors: context and kernels. Inside: the peak as counted. Span: from the first to the last
address that an activation had. Counters of each round are in OUTDIR/NAME.json. Exit status 1 if what was computed
differs, the budget did not hold, a round loaded more than 1.1 of what does not fit, empty_cache() kept memory,
addresses were lost, or a program failed; the end of the row says which. In strict mode weights go after each launch,
so that loads are not judged. --device cpu tries the programs everywhere; there the budget bounds host memory, and
bits alone are judged."""

import argparse
import collections
import hashlib
import json
import os
import statistics
import sys
import time

import scenarios
import workers

MIB = 1 << 20
LEARNT = 4  # rounds until the program is known: what it repeats, what stays, where its memory has peaks
MOST = 1.1  # what a round may load, in parts of what does not fit
SPAN = 4  # by how many times the activations, and 1 GiB, the addresses that they lie at may grow after two rounds
OUTSIDE_MIB = 100  # of the peak seen from outside: contexts are not the same to the MiB
NAMES = ["images", "models", "streams", "cache", "prefill"]
SIZES = {
    "small": {
        "hidden": 1024, "inner": 2048, "first": 4, "second": 2, "vocabulary": 4096, "tokens": 64, "steps": 2,
        "rounds": 6, "side": 8, "channels": 128, "stages": 2, "prompt": 64, "caches": 8, "cache_rounds": 6,
        "cache_steps": 10, "cache_mib": 2,
    },
    "large": {
        "hidden": 2048, "inner": 8192, "first": 40, "second": 20, "vocabulary": 65536, "tokens": 1024, "steps": 4,
        "rounds": 9, "side": 128, "channels": 1024, "stages": 4, "prompt": 4096, "caches": 64, "cache_rounds": 10,
        "cache_steps": 1000, "cache_mib": 512,
    },
}  # fmt: skip
COLUMNS = {  # after the name: what it is, how wide
    "budget": 7, "plain ms": 9, "paged ms": 9, "loads GB": 9, "not fit GB": 10, "median": 7, "worst": 7, "peak MiB": 9,
    "inside": 7, "frames made": 11, "stolen MiB": 10, "span GiB": 8, "bits": 5,
}  # fmt: skip


# --- the model ----------------------------------------------------------------------------------------------


def shapes(sizes):
    """{part: [(name, shape)]} of all weights."""
    hidden, inner, channels = sizes["hidden"], sizes["inner"], sizes["channels"]
    block = [(name, (hidden, hidden)) for name in "qkvo"] + [("up", (inner, hidden)), ("down", (hidden, inner))]
    parts = {part: [(f"{i}.{n}", s) for i in range(sizes[part]) for n, s in block] for part in ("first", "second")}
    parts["decoder"] = [("in", (channels, hidden))]
    for stage in range(sizes["stages"]):
        now = channels >> stage
        parts["decoder"] += [(f"{stage}.{name}", (now, now)) for name in ("one", "two")]
        parts["decoder"].append((f"{stage}.half", (now // 2, now)))
    parts["decoder"].append(("out", (3, channels >> sizes["stages"])))
    parts["head"] = [("head", (sizes["vocabulary"], hidden))]
    return parts


def make_model(arguments, directory):
    """A directory with a safetensors file for each part."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator(arguments.device).manual_seed(1)
    where = {}
    os.makedirs(directory + ".part", exist_ok=True)
    for part, weights in shapes(SIZES[arguments.scale]).items():
        tensors = {}
        for name, shape in weights:
            values = torch.empty(shape, dtype=torch.bfloat16, device=arguments.device)
            tensors[f"{part}.{name}"] = values.normal_(0, shape[1] ** -0.5, generator=random).cpu()
        save_file(tensors, os.path.join(directory + ".part", part + ".safetensors"), {"format": "pt"})
        where.update(dict.fromkeys(tensors, part + ".safetensors"))
    with open(os.path.join(directory + ".part", "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": where}, file)
    with open(os.path.join(directory + ".part", "config.json"), "w") as file:
        json.dump({"model_type": "rounds"}, file)
    os.rename(directory + ".part", directory)


class Model:
    """Some parts of the model on a device, and how often each was used. Each tensor is copied there from the mapped
    file."""

    def __init__(self, arguments, parts):
        from safetensors import safe_open

        self.device, self.sizes, self.uses = arguments.device, SIZES[arguments.scale], collections.Counter()
        self.kept, self.span = 0, None  # what empty_cache() left; the addresses of activations, from and to
        self.weights = {}
        for part in parts:
            with safe_open(os.path.join(arguments.model, part + ".safetensors"), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no dict)
                    self.weights[key] = file.get_tensor(key).to(self.device)

    def part_bytes(self):
        total = collections.Counter()
        for key, weight in self.weights.items():
            total[key.split(".")[0]] += weight.nbytes
        return dict(total)

    def draw(self, seed, *shape):
        import torch

        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(self.device)

    def note(self, x):
        """An activation, by its address, if it is a range of its own."""
        if x.nbytes < MIB:
            return
        low, high = self.span or (x.data_ptr(), 0)
        self.span = min(low, x.data_ptr()), max(high, x.data_ptr() + x.nbytes)

    def linear(self, x, name):
        from torch.nn import functional

        return functional.linear(x, self.weights[name])

    def block(self, part, i, x):
        from torch.nn import functional

        y = functional.layer_norm(x, x.shape[-1:])
        q, k, v = (self.linear(y, f"{part}.{i}.{n}").unflatten(-1, (-1, 128)).transpose(1, 2) for n in "qkv")
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        x = x + self.linear(attended, f"{part}.{i}.o")
        inner = functional.gelu(self.linear(functional.layer_norm(x, x.shape[-1:]), f"{part}.{i}.up"))
        self.note(inner)
        return x + self.linear(inner, f"{part}.{i}.down")

    def walk(self, part, x):
        self.uses[part] += 1
        for i in range(self.sizes[part]):
            x = self.block(part, i, x)
        return x

    def decode(self, x):
        """An image of a square of latents, twice as large in both directions after each stage."""
        from torch.nn import functional

        self.uses["decoder"] += 1
        x = self.linear(x, "decoder.in")
        for stage in range(self.sizes["stages"]):
            y = self.linear(functional.silu(functional.layer_norm(x, x.shape[-1:])), f"decoder.{stage}.one")
            x = x + self.linear(functional.silu(y), f"decoder.{stage}.two")
            x = self.linear(x, f"decoder.{stage}.half")
            h, w, c = x.shape
            x = x[:, None, :, None].expand(h, 2, w, 2, c).reshape(2 * h, 2 * w, c)
            x = x + functional.silu(functional.layer_norm(x, x.shape[-1:]))
            self.note(x)
        return self.linear(x, "decoder.out").sigmoid()


# --- the programs: each gives the results of a round at a time -------------------------------------------------


def images(model):
    sizes = model.sizes
    for round_ in range(sizes["rounds"]):
        x = model.draw(round_, 1, sizes["tokens"], sizes["hidden"])
        for _ in range(sizes["steps"]):
            x = model.walk("first", x)
        side, tokens = sizes["side"], x[0]
        latents = tokens.repeat(-(-side * side // len(tokens)), 1)[: side * side].view(side, side, -1)
        del x, tokens
        yield [model.decode(latents)]


def models(model):
    for round_ in range(model.sizes["rounds"]):
        x = model.draw(round_, 1, model.sizes["tokens"], model.sizes["hidden"])
        for part in ("first", "second"):
            for _ in range(model.sizes["steps"]):
                x = model.walk(part, x)
        yield [x]


def streams(model):
    import torch

    cuda = model.device == "cuda"
    two = [torch.cuda.Stream() for _ in range(2)] if cuda else [None, None]
    for round_ in range(model.sizes["rounds"]):
        halves = [model.draw(2 * round_ + i, 1, model.sizes["tokens"], model.sizes["hidden"]) for i in range(2)]
        for half, stream in zip(halves, two if cuda else []):
            stream.wait_stream(torch.cuda.current_stream())
            half.record_stream(stream)
        for _ in range(model.sizes["steps"]):
            model.uses["first"] += 1
            for i in range(model.sizes["first"]):
                for half, stream in enumerate(two):
                    with torch.cuda.stream(stream):
                        halves[half] = model.block("first", i, halves[half])
                if cuda:  # each goes on with what the other made, and frees it there
                    two[0].wait_stream(two[1])
                    two[1].wait_stream(two[0])
                    for half, stream in zip(halves, reversed(two)):
                        half.record_stream(stream)
                halves.reverse()
        for stream in two if cuda else []:
            torch.cuda.current_stream().wait_stream(stream)
        yield halves


def cache(model):
    """Caches from narrow to wide, so that they are of many sizes at any time."""
    import torch

    sizes = model.sizes
    unit = (
        sizes["cache_mib"] * MIB / (sizes["cache_rounds"] * sizes["cache_steps"] * sum(range(1, sizes["caches"] + 1)))
    )
    widths = [max(1, round(unit * k / 2)) for k in range(1, sizes["caches"] + 1)]
    caches = [torch.empty(0, width, dtype=torch.bfloat16, device=model.device) for width in widths]
    x = model.draw(0, 1, 1, sizes["hidden"])
    for _ in range(sizes["cache_rounds"]):
        for step in range(sizes["cache_steps"]):
            x = model.block("first", step % sizes["first"], x)
            row = x.view(1, -1).repeat(1, -(-widths[-1] // sizes["hidden"]))
            for k, width in enumerate(widths):
                caches[k] = torch.cat((caches[k], row[:, :width]))
            model.note(caches[step % len(caches)])
            x = (x + caches[step % len(caches)].mean()) / 2
        model.uses["first"] += sizes["cache_steps"] / sizes["first"]
        yield [x] + [c.view(torch.int16).sum(1, dtype=torch.int64) for c in caches]


def prefill(model):
    import torch

    sizes = model.sizes
    for round_ in range(sizes["rounds"]):
        x = model.walk("first", model.draw(round_, 1, sizes["prompt"], sizes["hidden"]))
        model.uses["head"] += 1
        logits = model.linear(x, "head.head").float().log_softmax(-1)
        best = logits.amax(-1)
        model.note(logits)
        del logits
        if model.device == "cuda":
            torch.cuda.empty_cache()
            model.kept = max(model.kept, workers.counters().get("reserve", 0))
        x = x[:, -1:]
        for _ in range(sizes["steps"]):
            x = model.walk("first", x)
        yield [best, x]


PARTS = {  # each program's
    "images": ("first", "decoder"), "models": ("first", "second"), "streams": ("first",), "cache": ("first",),
    "prefill": ("first", "head"),
}  # fmt: skip


# --- in a process of its own -------------------------------------------------------------------------------------


def digest(tensors):
    import torch

    content = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
    return hashlib.sha256(content).hexdigest()[:20]


def play(name, model, sync, facts):
    """One program, from its first round to its last; adds to facts."""
    import torch

    before = workers.counters()
    plain = model.device == "cuda" and not before  # its allocator tells what activations take
    program, count = globals()[name](model), model.sizes["cache_rounds" if name == "cache" else "rounds"]
    for _ in range(count):
        model.uses.clear()
        if plain:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        results = next(program)
        sync()
        facts["ms"].append((time.perf_counter() - begin) * 1e3)
        facts["activations"].append(torch.cuda.max_memory_allocated() - facts["weights"] if plain else 0)
        results = [result.cpu() for result in results]
        facts["digests"].append(digest(results))
        facts["finite"] &= all(bool(result.isfinite().all()) for result in results)
        facts["uses"].append(dict(model.uses))
        after = workers.counters()
        facts["told"].append({key: after[key] - before[key] for key in after if key not in ("device", "peak")})
        facts["after"].append(after)
        facts["span"].append(model.span[1] - model.span[0] if model.span else 0)
        before = after
        del results


def work(arguments):
    """Prints what came out as one line of JSON."""
    import torch

    cuda = arguments.device == "cuda"
    sync = torch.cuda.synchronize if cuda else lambda: None
    names = NAMES if arguments.only == ["strict"] else arguments.only
    model = Model(arguments, list(dict.fromkeys(part for name in names for part in PARTS[name])))
    sync()
    lists = ("ms", "activations", "digests", "uses", "told", "after", "span")
    facts = {"parts": model.part_bytes(), "finite": True, **{key: [] for key in lists}}
    facts["weights"] = torch.cuda.memory_allocated() if cuda and not workers.counters() else 0
    with torch.no_grad():
        for name in names:
            play(name, model, sync, facts)
    facts["kept"] = model.kept
    if cuda and not workers.counters():
        import check

        facts["outside"], facts["reserved"] = check.DeviceMemory.now(), torch.cuda.memory_reserved() / MIB
    print(json.dumps(facts))


# --- what it says -------------------------------------------------------------------------------------------------


def does_not_fit(parts, uses, room):
    """Bytes that a round has to load: weights that do not fit in the room, of those that are used least often first.
    parts: bytes of each, uses: in the round."""
    rest, loads = sum(parts.values()) - room, 0
    for part, size in sorted(parts.items(), key=lambda item: uses.get(item[0], 0)):
        streamed = min(max(rest, 0), size)
        loads += streamed * uses.get(part, 0)
        rest -= streamed
    return loads


def ratios(paged, plain, budget):
    """(bytes that do not fit, loaded bytes) of each round; []: nothing counts loads."""
    found = []
    for told, after, activations, uses in zip(paged["told"], paged["after"], plain["activations"], plain["uses"]):
        if "loaded_bytes" in told:
            room = budget - activations - after["staging"] - after.get("driver", 0)
            found.append((does_not_fit(plain["parts"], uses, room), told["loaded_bytes"]))
    return found


def judge(name, paged, plain, budget):
    """(cells of the row after the name, what is wrong)"""
    wrong, judged = [], ratios(paged, plain, budget)[LEARNT:]
    others = sum(a != b for a, b in zip(paged["digests"], plain["digests"]))
    cells = [budget // MIB] + [f"{statistics.median(run['ms'][LEARNT:]):.1f}" for run in (plain, paged)]
    if judged:
        steady = paged["told"][LEARNT:]
        made, stolen = (statistics.mean(told[key] for told in steady) for key in ("frames_created", "stolen"))
        bound, loads = (statistics.mean(pair[i] for pair in judged) / 1e9 for i in range(2))
        parts = [loaded / least for least, loaded in judged if least > 0] if name != "strict" else []
        cells += [f"{loads:.2f}", f"{bound:.2f}"]
        cells += [f"{statistics.median(parts):.3f}", f"{max(parts):.3f}"] if parts else ["-", "-"]
        context = plain["outside"] - plain["reserved"] - plain["before_mib"]
        outside, inside = paged["peak_mib"] - context, paged["after"][-1]["peak"]
        cells += [f"{outside:.0f}", f"{inside / MIB:.0f}", f"{made:.1f}", f"{stolen / MIB:.1f}"]
        cells.append(f"{paged['span'][-1] / 1024 / MIB:.1f}")
        if parts and max(parts) > MOST:
            wrong.append(f"A ROUND LOADS {max(parts):.2f} OF WHAT DOES NOT FIT")
        if inside > budget or outside > budget / MIB + OUTSIDE_MIB:
            wrong.append("OVER BUDGET")
        lost = paged["span"][-1] - paged["span"][1]
        if lost > SPAN * max(plain["activations"]) + 1024 * MIB and name != "strict":
            wrong.append(f"ADDRESSES OF {lost / 1024 / MIB:.1f} GiB LOST")
        if paged["kept"]:
            wrong.append(f"empty_cache() KEPT {paged['kept'] / MIB:.0f} MiB")
    else:
        cells += ["-"] * 9
    cells.append("other" if others else "same")
    if others:
        wrong.append(f"{others} ROUNDS OF OTHER BITS")
    if not plain["finite"]:
        wrong.append("NOT FINITE, so that equal bits tell nothing")
    return cells, wrong


def line(cells):
    return f"{cells[0]:<12}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def run(arguments, name, case, scale, model, budget):
    """What work() printed, and what was seen from outside; {"failed": words}: the program did not end well."""
    command = [sys.executable, os.path.abspath(__file__), arguments.out, "--model", model, "--only", case]
    command += ["--scale", scale, "--device", arguments.device]
    environment = scenarios.environment(arguments, budget)
    if budget and case == "strict":
        environment["CODEC_STRICT"] = "1"
    return workers.run(arguments, name.replace(" ", "-"), command, environment)


def budget_of(arguments, scale, plain, share):
    """Bytes, whole MiB: the activations, a share of the weights, and staging, which is a 32nd and 64 MiB at most."""
    weights = sum(plain["parts"].values()) * share / 100
    if arguments.device == "cpu":
        return int(weights) // MIB * MIB + 2 * MIB
    rest = max(plain["activations"]) + weights
    more = 64 * MIB if scale == "small" else 0  # what the driver's pools grow by counts there
    return int(rest + more + min(64 * MIB, rest / 31)) // MIB * MIB + MIB


def prepare(arguments, scale):
    """The plain model; its packed form lies beside it."""
    made = argparse.Namespace(scale=scale, device=arguments.device)
    directory = os.path.join(arguments.work, f"rounds-{scale}")
    if not os.path.isdir(directory):
        make_model(made, directory)
    workers.packed(arguments, directory)
    return directory


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--only", default=",".join([*NAMES, "strict"]), type=lambda text: text.split(","))
    parser.add_argument("--shares", default="50", help="percent of the weights, one after the other")
    parser.add_argument("--scale", default="large", choices=SIZES)
    parser.add_argument("--model", help=argparse.SUPPRESS)  # in the processes that this one starts
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - {*NAMES, "strict"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if arguments.model:
        work(arguments)
        return
    workers.make_directories(arguments)
    bad = False
    with workers.table(arguments) as say:
        say(line(["rounds", *COLUMNS]))
        for case in arguments.only:
            scale = "small" if case == "strict" else arguments.scale
            model = prepare(arguments, scale)
            plain = run(arguments, f"{case} plain", case, scale, model, None)
            if "failed" in plain:
                say(f"{case:<12} {plain['failed']}")
                bad = True
                continue
            for share in map(int, arguments.shares.split(",")):
                name, budget = f"{case} {share} %", budget_of(arguments, scale, plain, share)
                paged = run(arguments, name.replace(" %", ""), case, scale, model + ".packed", budget)
                cells, wrong = ([], [paged["failed"]]) if "failed" in paged else judge(case, paged, plain, budget)
                say(" ".join([line([name, *cells]), *wrong]))
                bad |= bool(wrong)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
