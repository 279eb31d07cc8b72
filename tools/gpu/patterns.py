#!/usr/bin/env python3
"""Weights that come to the GPU in every way that programs and engines bring them, plain and paged: are the bits the
same, is what was loaded paged, does the budget hold?

    python tools/gpu/patterns.py OUTDIR [--build BUILD] [--work DIR] [--only NAME,...] [--share 50]
        [--mode lossless|q8|q6] [--scale small|large] [--device cuda|cpu]
    python tools/gpu/patterns.py --list                       # the patterns, a line each

Makes a model of Llama's shape, and two mixtures of experts for transformers (left out where it is not installed),
and packs them. Each pattern runs in a process of its own, plain and, from the packed directory, under the shim; of a
lossy mode the plain program reads the unpacked store. It loads, then uses all weights in several rounds. The budget
is what the plain program's activations take at their peak, staging, 64 MiB, and a share of the weights (--share,
percent); or the least that the shim names (--share least): it runs with a tenth of the weights, and, where that is
too little, with what the last line names. A row for each: seconds to load, plain and paged, median time of a round,
weights that are bound, adopted, and memory that nothing can give back (anonymous) in the end, pinned host memory,
the peak that nvidia-smi shows less what the plain program takes beside its tensors, loads a round. Counters of each
are in OUTDIR/NAME.json, what it said in OUTDIR/NAME.log. Exit status 1 if the bits differ, a program fails (no
memory is a failure, too), the peak is over the budget, or more is anonymous than the plain program's activations and
64 MiB: what was loaded is not paged then. --device cpu tries the programs everywhere; there the budget bounds host
memory, and bits alone are judged."""

import argparse
import collections
import functools
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time

import scenarios
import workers
from loads import ATTENTION, EMBEDDINGS, MLP, PATTERNS, SIZES, Source, name_of, use

MIB = 1 << 20
SLACK_MIB = 64  # of anonymous memory, beside the plain program's activations
OUTSIDE_MIB = 100  # of the peak seen from outside: contexts are not the same to the MiB
ROUNDS = 4
LEAST_SHARE, LEAST_TRIES = 10, 3  # percent that --share least begins with; times that what is named may be too little
COLUMNS = {  # after the name: what it is, how wide
    "weights": 7, "budget": 6, "load s": 6, "paged s": 7, "plain ms": 8, "paged ms": 8, "bound": 6, "adopted": 7,
    "anon": 6, "pinned": 6, "peak": 6, "loads": 6, "bits": 5,
}  # fmt: skip


# --- the models ------------------------------------------------------------------------------------------------


def model_of(name):
    """Which model a pattern loads."""
    return name.removesuffix("_eager") if name.startswith(("mixtral", "qwen3_moe")) else "llama"


def make_llama(arguments, directory):
    import torch
    from safetensors.torch import save_file

    sizes, random = SIZES[arguments.scale], torch.Generator(arguments.device).manual_seed(1)
    hidden, inner, vocabulary = (sizes[key] for key in ("hidden", "inner", "vocabulary"))
    shapes = {"k_proj": (sizes["kv"], hidden), "v_proj": (sizes["kv"], hidden), "down_proj": (hidden, inner)}
    shapes.update({"gate_proj": (inner, hidden), "up_proj": (inner, hidden)})

    def draw(rows, columns):
        values = torch.empty(rows, columns, dtype=torch.bfloat16, device=arguments.device)
        return values.normal_(0, columns**-0.5, generator=random).cpu()

    tensors = {EMBEDDINGS[0]: draw(vocabulary, hidden)}
    for layer in range(sizes["layers"]):
        for what in (*ATTENTION, *MLP):
            tensors[name_of(layer, what)] = draw(*shapes.get(what, (hidden, hidden)))
    tensors[EMBEDDINGS[1]] = draw(vocabulary, hidden)
    os.makedirs(directory)
    save_file(tensors, os.path.join(directory, "model.safetensors"), {"format": "pt"})
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump({"model_type": "patterns"}, file)
    torch.save(tensors, bin_of(arguments))


def make_mixture(arguments, kind, directory):
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

    size = SIZES[arguments.scale][kind]
    config = {
        "hidden_size": size["hidden"], "num_hidden_layers": size["layers"], "vocab_size": 8192, "head_dim": 64,
        "num_attention_heads": size["hidden"] // 64, "num_key_value_heads": max(1, size["hidden"] // 256),
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "mixtral":
        config = MixtralConfig(num_local_experts=size["experts"], intermediate_size=size["inner"], **config)
    else:
        more = {"num_experts_per_tok": 4, "moe_intermediate_size": size["inner"], "intermediate_size": size["inner"]}
        config = Qwen3MoeConfig(num_experts=size["experts"], **more, **config)
    torch.manual_seed(1)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="2GB")


def bin_of(arguments):
    return os.path.join(arguments.work, f"patterns-{arguments.scale}.bin")


def make(arguments):
    """In a process of its own, so that a GPU's memory is free afterwards: the model that --make names."""
    directory = os.path.join(arguments.work, f"patterns-{arguments.make}-{arguments.scale}")
    if arguments.make == "llama":
        make_llama(arguments, directory + ".part")
    else:
        make_mixture(arguments, arguments.make, directory + ".part")
    os.rename(directory + ".part", directory)


def prepare(arguments, kind):
    """(the plain model, the packed one)"""
    directory = os.path.join(arguments.work, f"patterns-{kind}-{arguments.scale}")
    if not os.path.isdir(directory):
        command = [sys.executable, os.path.abspath(__file__), arguments.out, *passed(arguments), "--make", kind]
        with open(os.path.join(arguments.out, f"make-{kind}.log"), "w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
    return workers.stores(arguments, directory, arguments.mode)


# --- in a process of its own -------------------------------------------------------------------------------------


def inputs(s, round_):
    """Gives random rows of so many columns, the same ones in a round."""
    import torch

    @functools.cache
    def x(columns, dtype):
        random = torch.Generator().manual_seed(1000 * round_ + columns)
        return torch.randn(s.sizes["rows"], columns, generator=random).to(dtype).to(s.device)

    return x


def digest(tensors):
    import torch

    content = b"".join(t.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    return hashlib.sha256(content).hexdigest()[:20]


def load(name, s, facts):
    """(weights, program that uses them in a round)"""
    begin = time.perf_counter()
    weights = PATTERNS[name](s)
    weights, play = weights if isinstance(weights, tuple) else (weights, functools.partial(use, weights))
    s.sync()
    facts["load_s"] = time.perf_counter() - begin
    facts["weights"] = sum(w.nbytes for w in weights.values())
    return weights, play


def play_rounds(s, play, facts):
    """Returns what was computed first; adds to facts."""
    finite = True
    for round_ in range(ROUNDS):
        x, before = inputs(s, round_), workers.counters()
        begin = time.perf_counter()
        results = list(play(x))
        s.sync()
        facts["ms"].append((time.perf_counter() - begin) * 1e3)
        facts["told"].append({key: value - before[key] for key, value in workers.counters().items()})
        facts["digests"].append(digest(results))
        finite &= all(bool(result.isfinite().all()) for result in results)
    facts["finite"] = finite


def work(arguments):
    """Prints what came out as one line of JSON."""
    import torch

    (name,) = arguments.only
    s = Source(arguments.model, arguments.device, SIZES[arguments.scale], bin_of(arguments))
    facts = collections.defaultdict(list)
    plain = s.cuda and not os.environ.get("CODEC_VRAM_BUDGET")
    with torch.no_grad():
        weights, play = load(name, s, facts)
        play_rounds(s, play, facts)
    facts["after"] = workers.counters()
    facts["activations"] = torch.cuda.max_memory_allocated() - facts["weights"] if plain else 0
    if plain:
        import check

        facts["outside"], facts["reserved"] = check.DeviceMemory.now(), torch.cuda.memory_reserved() / MIB
    del weights
    print(json.dumps(facts))


# --- what it says -------------------------------------------------------------------------------------------------


def passed(arguments):
    return ["--work", arguments.work, "--scale", arguments.scale, "--device", arguments.device]


def why(log):
    """The last lines that say why a program ended."""
    with open(log, errors="replace") as file:
        lines = [line.strip() for line in file]
    told = [x for x in lines if x.startswith("codecllm: ") and not x.startswith(("codecllm:  ", "codecllm: paging of"))]
    errors = [line for line in lines if "Error" in line and line not in told]
    return " / ".join(text[:400] for text in [*errors[-1:], *told[-2:]])


def run(arguments, name, model, budget):
    """What work() printed, and what was seen from outside; {"failed": words}: the program did not end well."""
    stem = f"{name}-{'paged' if budget else 'plain'}"
    command = [sys.executable, os.path.abspath(__file__), arguments.out, *passed(arguments)]
    command += ["--model", model, "--only", name]
    return workers.run(arguments, stem, command, scenarios.environment(arguments, budget), why, arguments.limit)


def budget_of(arguments, plain):
    """Bytes, whole MiB: the activations, a share of the weights, and what paging takes: staging, which is a 32nd and 64
    MiB at most, and steps of the driver's pools."""
    weights = plain["weights"] * (LEAST_SHARE if arguments.share == "least" else arguments.share) // 100
    if arguments.device == "cpu":
        return weights // MIB * MIB + 2 * MIB
    rest = max(0, plain["activations"]) + weights + 64 * MIB
    return max((rest + min(64 * MIB, rest // 31)) // MIB + 1, SIZES[arguments.scale]["least"]) * MIB


def named(log):
    """Bytes of the budget that the last line which names one says would do; None: none does."""
    with open(log, errors="replace") as file:
        found = re.findall(r"least (?:budget )?that would (?:do|have done) is (\d+) MiB", file.read())
    return int(found[-1]) * MIB if found else None


def run_paged(arguments, name, model, plain):
    """(what run() gives, the budget, what is wrong beside that)"""
    budget, wrong = budget_of(arguments, plain), []
    paged, tried = run(arguments, name, model, budget), []
    while arguments.share == "least" and "failed" in paged and len(tried) < LEAST_TRIES:
        least = named(os.path.join(arguments.out, f"{name}-paged.log"))
        if not least or least <= budget:
            return paged, budget, ["NO LEAST BUDGET IS NAMED, or one that was too little"]
        tried, budget = [*tried, least // MIB], least
        paged = run(arguments, name, model, budget)
    if len(tried) > 1:
        wrong.append(f"NAMED TOO LITTLE: {', '.join(str(least) for least in tried[:-1])} MiB")
    return paged, budget, wrong


def median(values):
    return statistics.median(values[1:])  # in the first round the program and the pager are new to each other


def judge(paged, plain, budget):
    """(cells of the row after the name, what is wrong)"""
    others = sum(a != b for a, b in zip(paged["digests"], plain["digests"]))
    cells = [plain["weights"] // MIB, budget // MIB, *(f"{run['load_s']:.1f}" for run in (plain, paged))]
    cells += [f"{median(run['ms']):.1f}" for run in (plain, paged)]
    after, wrong = paged["after"], []
    if after:
        cells += [after[key] // MIB if key in after else "-" for key in ("bound", "adopted", "anonymous", "compressed")]
        context = plain["outside"] - plain["reserved"] - plain["before_mib"]
        outside = paged["peak_mib"] - context
        cells += [f"{outside:.0f}", f"{statistics.mean(told['loads'] for told in paged['told'][1:]):.0f}"]
        may = max(0, plain["activations"]) // MIB + SLACK_MIB
        if after["anonymous"] > may * MIB:
            wrong.append(f"NOT PAGED: {after['anonymous'] // MIB} MiB are anonymous, {may} may be")
        if after["peak"] > budget:
            over, driver = ((after[key] - of) / MIB for key, of in (("peak", budget), ("driver", 0)))
            wrong.append(f"OVER BUDGET by {over:.1f} MiB as counted; the driver has {driver:.1f}")
        elif outside > budget / MIB + OUTSIDE_MIB:
            wrong.append("OVER BUDGET as seen from outside")
    else:
        cells += ["-"] * 6
    cells.append("other" if others else "same")
    if others:
        wrong.append(f"{others} ROUNDS OF OTHER BITS")
    if not plain["finite"] or len(set(plain["digests"])) < ROUNDS:
        wrong.append("NOT FINITE, or the same in all rounds, so that equal bits tell nothing")
    return cells, wrong


def percent(text):
    if text != "least" and not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"{text}: use a number of percent, or least")
    return text if text == "least" else int(text)


def line(cells):
    return f"{cells[0]:<23}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def row(arguments, name):
    """(the row, is anything wrong)"""
    model, packed = prepare(arguments, model_of(name))
    plain = run(arguments, name, model, None)
    if "failed" in plain:
        return f"{name:<23} FAIL: the plain program {plain['failed']}", True
    paged, budget, wrong = run_paged(arguments, name, packed, plain)
    if "failed" in paged:
        why_not = ", ".join([paged["failed"], *wrong])
        return f"{line([name, plain['weights'] // MIB, budget // MIB])} FAIL: {why_not}", True
    cells, more = judge(paged, plain, budget)
    wrong += more
    return line([name, *cells]) + (f" FAIL: {', '.join(wrong)}" if wrong else ""), bool(wrong)


def missing(names):
    """Patterns that cannot run here."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        return [name for name in names if model_of(name) != "llama"]
    return []


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(f"{name:<23} {function.__doc__}" for name, function in PATTERNS.items()))
        return
    parser = workers.parser(__doc__)
    parser.add_argument("--only", default=",".join(PATTERNS), type=lambda text: text.split(","))
    parser.add_argument("--mode", default="lossless", choices=workers.MODES)
    parser.add_argument("--share", type=percent, default=50, help="percent of the weights, or least")
    parser.add_argument("--scale", default="large", choices=SIZES)
    parser.add_argument("--limit", type=float, default=180, help="seconds that a program may take (%(default)s)")
    parser.add_argument("--model", help=argparse.SUPPRESS)  # these two in the processes that this one starts
    parser.add_argument("--make", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(PATTERNS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if arguments.make or arguments.model:
        make(arguments) if arguments.make else work(arguments)
        return
    workers.make_directories(arguments)
    bad, left_out = [], missing(arguments.only)
    what = "MiB, least budgets" if arguments.share == "least" else f"MiB, {arguments.share} % of weights"
    with workers.table(arguments) as say:
        say(line([what, *COLUMNS]))
        for name in arguments.only:
            if name not in left_out:
                words, wrong = row(arguments, name)
                say(words)
                bad += [name] * wrong
        if left_out:
            say(f"left out, because transformers is not installed: {', '.join(left_out)}")
        say(f"{len(arguments.only) - len(left_out) - len(bad)} right, {len(bad)} FAIL")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
