#!/usr/bin/env python3
"""Models that are adapted by LoRA while their weights are paged: adapters loaded, switched, merged, unmerged, unloaded,
and trained over the frozen model. Are the losses, the adapters and the outputs those of the plain program, to the bit?

    python tools/gpu/adapters.py OUTDIR [--build BUILD] [--work DIR] [--only NAME,...] [--shape tinyllama-1.1b]
        [--share 50] [--device cuda|cpu]
    python tools/gpu/adapters.py --list                       # the programs, a line each

Makes a model of a shape of tools/examples/make_model.py (or takes tests/models/bard: --shape bard), a transformer for
diffusers, and two adapters for each, and packs the models. Each program runs in a process of its own (NAME+NAME: those
of one model one after the other in one process), plain and, from the packed directory, under the shim. Those whose
libraries are not installed are left out with a line. The budget is
what the plain program takes beside its weights at its peak, staging, 64 MiB, and a share of the weights (--share,
percent); with --device cpu the share and 2 MiB. A row for each: seconds, plain and paged; of a GPU, weights that are
bound, adopted, and memory that nothing can give back (anonymous) in the end, and the peak that nvidia-smi shows less
what the plain program takes beside its tensors; of a CPU, what was decoded, what the program wrote to and has as its
own since, and the peak. What was said is in OUTDIR/NAME-plain.json, NAME-paged.json and .log. Exit status 1 if
something differs, a program fails, or the budget did not hold. A program that differs is run once more without the
shim: if it then differs from itself, the row says so."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time

import lora
import patterns
import scenarios
import workers

MIB = 1 << 20
SEEDS = {"one": 11, "two": 12}  # of the adapters
COLUMNS = {  # after the name: what it is, how wide
    "weights": 7, "budget": 6, "plain s": 7, "paged s": 7, "bound": 6, "adopted": 7, "anon": 6, "decoded": 7,
    "written": 7, "peak": 6, "bits": 5,
}  # fmt: skip


# --- models and adapters -------------------------------------------------------------------------------------------


def is_small(arguments):
    return arguments.shape in ("bard", "tiny", "llama-90m")


def make_flux(arguments, directory):
    """In a process of its own, so that a GPU's memory is free afterwards."""
    command = [sys.executable, os.path.abspath(__file__), arguments.out, *passed(arguments), "--make", directory]
    with open(os.path.join(arguments.out, "make.log"), "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def adapters_of(arguments, name, model, prefix, targets):
    directory = os.path.join(arguments.work, f"adapters-of-{name}")
    if not os.path.isdir(directory):
        for adapter, seed in SEEDS.items():
            lora.make_adapter(model, os.path.join(directory + ".part", adapter), seed, prefix, targets)
        os.rename(directory + ".part", directory)
    return directory


def prepare(arguments, name):
    """(the model's plain directory, beside it the packed one, its adapters) for a program."""
    if name.startswith("diffusers"):
        what = "flux-small" if is_small(arguments) else "flux-medium"
        plain = os.path.join(arguments.work, what)
        if not os.path.isdir(plain):
            make_flux(arguments, plain)
        workers.packed(arguments, plain)
        part, targets = os.path.join(plain, "transformer"), lora.FLUX_TARGETS
        return plain, adapters_of(arguments, what, part, "transformer.", targets)
    plain = scenarios.make_model(arguments, arguments.shape)[0]
    return plain, adapters_of(arguments, arguments.shape, plain, "base_model.model.", lora.TARGETS)


# --- in a process of its own ---------------------------------------------------------------------------------------


def work(arguments):
    """Prints what came out as one line of JSON."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it writes to memory that weights are copied to
    (name,) = arguments.only
    s = lora.Source(arguments.model, arguments.adapters, arguments.device)
    cuda, kept = arguments.device == "cuda", None  # the last program's model, until it was counted
    begin = time.perf_counter()
    for s.title in name.split("+"):
        del kept
        kept = lora.PROGRAMS[s.title](s)
    if cuda:
        torch.cuda.synchronize()
    facts = {"said": s.said, "finite": s.finite, "s": time.perf_counter() - begin}
    facts["after"] = workers.counters() if cuda else workers.host_counters()
    if cuda and not os.environ.get("CODEC_VRAM_BUDGET"):
        import check

        facts["allocated"] = torch.cuda.max_memory_allocated()
        facts["outside"], facts["reserved"] = check.DeviceMemory.now(), torch.cuda.memory_reserved() / MIB
    del kept
    print(json.dumps(facts))


# --- what it says --------------------------------------------------------------------------------------------------


def passed(arguments):
    return ["--work", arguments.work, "--shape", arguments.shape, "--device", arguments.device]


def run(arguments, name, model, adapters, budget, stem=None):
    """What work() printed, and what was seen from outside; {"failed": words}: the program did not end well."""
    stem = stem or f"{name}-{'paged' if budget else 'plain'}"
    command = [sys.executable, os.path.abspath(__file__), arguments.out, *passed(arguments)]
    command += ["--model", model, "--adapters", adapters, "--only", name]
    environment = scenarios.environment(arguments, budget)
    return workers.run(arguments, stem, command, environment, patterns.why, arguments.limit)


def weight_bytes(directory):
    found = [os.path.join(at, name) for at, _, names in os.walk(directory + "/") for name in names]
    return sum(os.path.getsize(path) for path in found if path.endswith(".safetensors"))


def budget_of(arguments, plain, weights):
    """Bytes, whole MiB."""
    share = weights * arguments.share // 100
    if arguments.device == "cpu":
        return share // MIB * MIB + 2 * MIB
    rest = max(0, plain["allocated"] - weights) + share + 64 * MIB
    return ((rest + min(64 * MIB, rest // 31)) // MIB + 1) * MIB


def differences(plain, paged):
    """Labels of what is not the same."""
    pairs = zip(plain["said"], paged["said"])
    others = [label for (label, bits), (_, other) in pairs if bits != other]
    return others + ["how much was said"] * (len(plain["said"]) != len(paged["said"]))


def judge(arguments, plain, paged, budget):
    """(cells of the row after the budget, what is wrong)"""
    cells, wrong, after = [f"{plain['s']:.1f}", f"{paged['s']:.1f}"], [], paged["after"]
    cuda = arguments.device == "cuda"
    if not after.get("loaded_bytes" if cuda else "decoded_bytes"):
        return [*cells, *"------", "-"], ["NOTHING WAS PAGED"]
    if cuda:
        cells += [after[key] // MIB if key in after else "-" for key in ("bound", "adopted", "anonymous")]
        outside = paged["peak_mib"] - (plain["outside"] - plain["reserved"] - plain["before_mib"])
        cells += [after["loaded_bytes"] // MIB, "-", f"{outside:.0f}"]
        if after["peak"] > budget:
            wrong.append(f"OVER BUDGET by {(after['peak'] - budget) / MIB:.1f} MiB as counted")
        elif outside > budget / MIB + patterns.OUTSIDE_MIB:
            wrong.append("OVER BUDGET as seen from outside")
    else:
        cells += ["-"] * 3 + [after[key] // MIB for key in ("decoded_bytes", "written_bytes", "peak_bytes")]
        if after["peak_bytes"] > budget:
            wrong.append(f"OVER BUDGET by {(after['peak_bytes'] - budget) / MIB:.1f} MiB as counted")
    others = differences(plain, paged)
    if others:
        wrong.append(f"OTHER BITS: {', '.join(others)}")
    if not plain["finite"] or len({bits for _, bits in plain["said"]}) < 2:
        wrong.append("NOT FINITE, or all the same, so that equal bits tell nothing")
    return [*cells, "other" if others else "same"], wrong


def line(cells):
    return f"{cells[0]:<17}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def row(arguments, name):
    """(the row, is anything wrong)"""
    model, adapters = prepare(arguments, name)
    weights = weight_bytes(model)
    plain = run(arguments, name, model, adapters, None)
    if "failed" in plain:
        return f"{name:<17} FAIL: the plain program {plain['failed']}", True
    budget = budget_of(arguments, plain, weights)
    cells = [name, weights // MIB, budget // MIB]
    paged = run(arguments, name, model + ".packed", adapters, budget)
    if "failed" in paged:
        return f"{line(cells)} FAIL: {paged['failed']}", True
    more, wrong = judge(arguments, plain, paged, budget)
    if differences(plain, paged):
        again = run(arguments, name, model, adapters, None, f"{name}-again")
        if "failed" in again or differences(plain, again):
            wrong.append("the plain program is not the same twice either")
    return line([*cells, *more]) + (f" FAIL: {', '.join(wrong)}" if wrong else ""), bool(wrong)


def missing(name):
    """What a program needs and is not there, in words; None: nothing."""
    needs = dict.fromkeys(module for part in name.split("+") for module in lora.PROGRAMS[part].needs)
    absent = [module for module in needs if importlib.util.find_spec(module) is None]
    if absent:
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    return lora.transformers_refuses_peft() if "transformers-load" in name.split("+") else None


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(f"{name:<17} {function.__doc__}" for name, function in lora.PROGRAMS.items()))
        return
    parser = workers.parser(__doc__)
    parser.add_argument("--only", default=",".join(lora.PROGRAMS), type=lambda text: text.split(","))
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of tools/examples/make_model.py, or bard")
    parser.add_argument("--share", type=int, default=50, help="percent of the weights (%(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a program may take (%(default)s)")
    parser.add_argument("--model", help=argparse.SUPPRESS)  # these in the processes that this one starts
    parser.add_argument("--adapters", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := {part for name in arguments.only for part in name.split("+")} - set(lora.PROGRAMS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if arguments.make:
        lora.make_flux(arguments.make + ".part", is_small(arguments), arguments.device)
        os.rename(arguments.make + ".part", arguments.make)
        return
    if arguments.model:
        work(arguments)
        return
    workers.make_directories(arguments)
    why_not = {name: missing(name) for name in arguments.only}
    bad, left_out = [], {name: words for name, words in why_not.items() if words}
    with workers.table(arguments) as say:
        say(line([f"MiB, {arguments.share} %", *COLUMNS]))
        for name in arguments.only:
            if name not in left_out:
                words, wrong = row(arguments, name)
                say(words)
                bad += [name] * wrong
        for name, words in left_out.items():
            say(f"{name}: left out, because {words}")
        say(f"{len(arguments.only) - len(left_out) - len(bad)} right, {len(bad)} FAIL")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
