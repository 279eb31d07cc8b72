#!/usr/bin/env python3
"""A context whose cache of keys and values is larger than the budget, in an unmodified program of transformers: is it
refused as promised, and does the program run with a cache that is kept on the host?

    python tools/gpu/kvcache.py OUTDIR [--build BUILD] [--work DIR] [--shape tinyllama-1.1b] [--budget 1000M]
        [--batch 24] [--length 2032] [--tokens 16] [--chunk 64] [--only NAME,...] [--device cuda|cpu]

    dynamic    the ordinary cache, in a budget that holds it and half of the weights
    static     cache_implementation="static", the same
    offloaded  cache_implementation="offloaded", in --budget
    outgrown   the ordinary cache in --budget: it runs, with what does not fit in host memory, or is refused
    refused    the same with 64 MiB of host memory, which cannot hold it: it has to be refused
    freed      the same, and the program frees the cache when it is refused, and goes on with a short prompt

Generates from random tokens, with the prompt in chunks, so that activations stay small. Each runs in a process of its
own, plain and, from the packed model, under the shim; a row for each: seconds, plain and paged, the peak as counted and
as nvidia-smi shows it less what the plain program takes beside its tensors. Refused means: the program ends with
PyTorch's error and one line that names the least budget, and the device's memory is free again. Exit status 1 if tokens
or logits differ from the plain program's with the same cache, a program fails or hangs, one is not refused that has to
be, or the budget did not hold. --device cpu: there the budget bounds weights alone, so that a cache does not matter;
only the first two are run, with small sizes if they are given."""

import argparse
import gc
import json
import os
import sys
import time

import lora
import patterns
import scenarios
import workers

MIB = 1 << 20
RUNS = {  # (cache, in --budget, MiB of host memory at most, may be refused, has to be, the program goes on)
    "dynamic": ("dynamic", False, None, False, False, False),
    "static": ("static", False, None, False, False, False),
    "offloaded": ("offloaded", True, None, False, False, False),
    "outgrown": ("dynamic", True, None, True, False, False),
    "refused": ("dynamic", True, 64, True, True, False),
    "freed": ("dynamic", True, 64, True, True, True),
}
ON_CPU = ("dynamic", "static")  # transformers keeps an offloaded cache on a GPU's host only
REFUSALS = ("OutOfMemoryError", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
GIVEN_BACK_S, GIVEN_BACK_MIB = 10, 32  # by when, and to how much, a device's memory is what it was before
COLUMNS = {  # after the name: what it is, how wide
    "weights": 7, "cache": 6, "budget": 6, "plain s": 7, "paged s": 7, "counted": 7, "peak": 6, "outcome": 8,
}  # fmt: skip


# --- in a process of its own ---------------------------------------------------------------------------------------


def generate(arguments, model, ids, count, cache):
    return model.generate(
        input_ids=ids,
        attention_mask=ids.new_ones(ids.shape),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        cache_implementation=cache,
        prefill_chunk_size=arguments.chunk,
        disable_compile=True,
        return_dict_in_generate=True,
        output_logits=True,
    )


def is_refusal(error):
    return any(words in f"{type(error).__name__}: {error}" for words in REFUSALS)


def work(arguments):
    """Prints what came out as one line of JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    cache, goes_on, cuda = RUNS[arguments.only[0]][0], RUNS[arguments.only[0]][5], arguments.device == "cuda"
    begin, facts = time.perf_counter(), {"refused": None}
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).to(arguments.device).eval()
    s = lora.Source(arguments.model, None, arguments.device)
    s.title = cache
    try:
        told = generate(arguments, model, s.ids(1, arguments.batch, arguments.length), arguments.tokens, cache)
        s.say("long", told.sequences, *told.logits)
        del told
    except RuntimeError as error:  # OutOfMemoryError is one
        if not goes_on or not is_refusal(error):
            raise
        facts["refused"] = str(error).splitlines()[0]
    gc.collect()
    told = generate(arguments, model, s.ids(2, 2, 32), 8, cache)
    s.say("short", told.sequences, *told.logits)
    facts.update(said=s.said, finite=s.finite, s=time.perf_counter() - begin)
    facts["after"] = workers.counters() if cuda else workers.host_counters()
    if cuda and not os.environ.get("CODEC_VRAM_BUDGET"):
        import check

        facts["allocated"] = torch.cuda.max_memory_allocated()
        facts["outside"], facts["reserved"] = check.DeviceMemory.now(), torch.cuda.memory_reserved() / MIB
    print(json.dumps(facts))


# --- what it says --------------------------------------------------------------------------------------------------


def cache_bytes(arguments, model):
    """Of keys and values of all tokens in the end."""
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    row = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
    return row * arguments.batch * (arguments.length + arguments.tokens)


def run(arguments, name, model, budget, stem):
    """What work() printed, and what was seen from outside; {"failed": words}: the program did not end well."""
    command = [sys.executable, os.path.abspath(__file__), arguments.out, "--model", model, "--only", name]
    for option in ("device", "batch", "length", "tokens", "chunk"):
        command += [f"--{option}", str(getattr(arguments, option))]
    environment = scenarios.environment(arguments, budget)
    host = RUNS[name][2]
    if budget and host:
        environment["CODEC_HOST_BUDGET"] = f"{host}M"
    return workers.run(arguments, stem, command, environment, patterns.why, arguments.limit)


def still_taken(arguments, before):
    """MiB of the device that a program which ended has not given back after a while."""
    if arguments.device == "cpu":
        return 0
    import check

    end = time.monotonic() + GIVEN_BACK_S
    while (taken := check.DeviceMemory.now() - before) > GIVEN_BACK_MIB and time.monotonic() < end:
        time.sleep(0.2)
    return taken if taken > GIVEN_BACK_MIB else 0


def not_refused(result, log, budget, goes_on):
    """What is wrong with a run that was to be refused, in words; None: it was refused as promised."""
    with open(log, errors="replace") as file:
        said = file.read()
    least = patterns.named(log)
    refused = (
        result.get("refused") if goes_on else said if result.get("failed", "").startswith("FAILED with 1;") else ""
    )
    if not refused:
        return f"NOT REFUSED: {result.get('failed', 'it ended well')}"
    if not goes_on and not any(words in said for words in REFUSALS):
        return f"FAILED, but not for memory: {result['failed']}"
    if not least or least <= budget:
        return f"NO LEAST BUDGET IS NAMED above {budget // MIB} MiB"
    return None


def budget_of(arguments, name, plain, weights):
    """Bytes, whole MiB."""
    if arguments.device == "cpu":
        return weights // 3 // MIB * MIB + 2 * MIB
    if RUNS[name][1]:
        return arguments.budget
    rest = max(0, plain["allocated"] - weights) + weights // 2 + 64 * MIB
    return ((rest + min(64 * MIB, rest // 31)) // MIB + 1) * MIB


def judge(arguments, name, plain, paged, budget, log):
    """(cells of the row after the budget, what is wrong)"""
    _, _, _, may, must, goes_on = RUNS[name]
    cells, wrong = [f"{plain['s']:.1f}"], []
    if must or (may and "failed" in paged):
        if words := not_refused(paged, log, budget, goes_on):
            return [*cells, "-", "-", "-", "-"], [words]
    if "failed" in paged:
        return [*cells, "-", "-", "-", "refused" if may else "-"], [] if may else [paged["failed"]]
    others = [label for label, bits in paged["said"] if bits != dict(plain["said"])[label]]
    after, cuda = paged["after"], arguments.device == "cuda"
    if not after.get("loaded_bytes" if cuda else "decoded_bytes"):
        return [*cells, "-", "-", "-", "-"], ["NOTHING WAS PAGED"]
    peak = after["peak" if cuda else "peak_bytes"]
    cells += [f"{paged['s']:.1f}", peak // MIB]
    outside = paged["peak_mib"] - (plain["outside"] - plain["reserved"] - plain["before_mib"]) if cuda else None
    cells += [f"{outside:.0f}" if cuda else "-", "other" if others else "refused" if paged["refused"] else "same"]
    if others:
        wrong.append(f"OTHER BITS: {', '.join(others)}")
    if peak > budget:
        wrong.append(f"OVER BUDGET by {(peak - budget) / MIB:.1f} MiB as counted")
    elif cuda and outside > budget / MIB + patterns.OUTSIDE_MIB:
        wrong.append("OVER BUDGET as seen from outside")
    if not plain["finite"] or len({bits for _, bits in plain["said"]}) < 2:
        wrong.append("NOT FINITE, or all the same, so that equal bits tell nothing")
    return cells, wrong


def line(cells):
    return f"{cells[0]:<10}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def row(arguments, name, model, plain):
    """(the row, is anything wrong); `plain` is what the plain program printed, by cache, and gets what it prints."""
    directory, packed, weights = model
    cache = RUNS[name][0]
    if cache not in plain:
        plain[cache] = run(arguments, name, directory, None, f"{cache}-plain")
    if "failed" in plain[cache]:
        return f"{name:<10} FAIL: the plain program {plain[cache]['failed']}", True
    budget = budget_of(arguments, name, plain[cache], weights)
    paged = run(arguments, name, packed, budget, f"{name}-paged")
    log = os.path.join(arguments.out, f"{name}-paged.log")
    more, wrong = judge(arguments, name, plain[cache], paged, budget, log)
    if taken := still_taken(arguments, plain[cache].get("before_mib", 0)):
        wrong.append(f"{taken} MiB ARE STILL TAKEN after it ended")
    cells = [name, weights // MIB, cache_bytes(arguments, directory) // MIB, budget // MIB, *more]
    return line(cells) + (f" FAIL: {', '.join(wrong)}" if wrong else ""), bool(wrong)


def size(text):
    """Bytes of 700M or 2G."""
    try:
        if text[-1:].upper() in ("M", "G"):
            return workers.size_of(text)
        raise ValueError(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: use a size such as 700M or 1.5G") from None


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--only", default=",".join(RUNS), type=lambda text: text.split(","))
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of tools/examples/make_model.py, or bard")
    parser.add_argument("--budget", default="1000M", type=size, help="less than the cache (%(default)s)")
    parser.add_argument("--batch", default=24, type=int, help="prompts (%(default)s)")
    parser.add_argument("--length", default=2032, type=int, help="tokens of each (%(default)s)")
    parser.add_argument("--tokens", default=16, type=int, help="that are generated (%(default)s)")
    parser.add_argument("--chunk", default=64, type=int, help="tokens of a prompt at a time (%(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a program may take (%(default)s)")
    parser.add_argument("--model", help=argparse.SUPPRESS)  # in the processes that this one starts
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(RUNS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if arguments.model:
        work(arguments)
        return
    try:
        import transformers  # noqa: F401
    except ImportError:
        print("kvcache.py: transformers is not installed: pip install transformers")
        sys.exit(77)
    workers.make_directories(arguments)
    left_out = [name for name in arguments.only if arguments.device == "cpu" and name not in ON_CPU]
    names = [name for name in arguments.only if name not in left_out]
    model, plain, bad = scenarios.make_model(arguments, arguments.shape), {}, []
    if any(RUNS[name][4] for name in names) and cache_bytes(arguments, model[0]) <= arguments.budget:
        parser.error(f"the cache has {cache_bytes(arguments, model[0]) // MIB} MiB, which the budget holds: lower it")
    with workers.table(arguments) as say:
        say(line(["MiB", *COLUMNS]))
        for name in names:
            words, wrong = row(arguments, name, model, plain)
            say(words)
            bad += [name] * wrong
        if left_out:
            say(f"left out, because the budget bounds weights alone on a CPU: {', '.join(left_out)}")
        say(f"{len(names) - len(bad)} right, {len(bad)} FAIL")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
