#!/usr/bin/env python3
"""A language model on a GPU, packed lossless, as q8 and as q6, each paged at several budgets: memory, speed, bits.

    python tools/gpu/quantized.py OUTDIR [--build BUILD] [--work DIR] [--shape llama-2-13b] [--modes lossless,q8,q6]
        [--budgets 6G,4G] [--resident 60G] [--tokens 12] [--most-slowdown 5] [--device cuda]

Makes the model with random weights, runs it plain in its own dtype, then packs it in one mode after the other (one at
a time is on the disk) and runs that with all resident and at each budget. What is lossless must give the tokens and
logits of the plain program; a lossy mode those of its own resident run, which are not the plain ones: random weights
say nothing about how good it is (tools/bench/bench_perplexity.py does). Memory is what nvidia-smi says of the device,
less what it said before. Exit status 1 if bits differ, a program fails or is over its budget by more than a context, or
q8 at the smallest budget is more than --most-slowdown times slower than the plain program. --device cpu with a small
shape tries it everywhere (there the budget bounds host memory, and no memory is measured)."""

import os
import shutil
import subprocess
import sys

import scenarios
import workers

CONTEXT_MIB = 700  # of the peak seen from outside is the context's at most
COLUMNS = {"bits": 8, "peak MiB": 9, "tokens/s": 9, "times slower": 13, "load s": 8, "stored GB": 10}


def size_of(text):
    """MiB of a size as CODEC_VRAM_BUDGET takes it."""
    return workers.size_of(text) / 2**20


def pack(arguments, plain, mode):
    """(the packed directory, GB of its stores)"""
    packed = f"{plain}.{mode}"
    if not os.path.isdir(packed):
        command = [os.path.join(arguments.build, "bin", "codecllm"), "pack", "--quiet", "--mode", mode, plain, packed]
        subprocess.run(command, check=True)
    names = [name for name in os.listdir(packed) if name.endswith(".safetensors")]
    return packed, sum(os.path.getsize(os.path.join(packed, name)) for name in names) / 1e9


def run(arguments, name, model, budget):
    """The report of infer.py, with its logits and what was seen from outside; {"failed": words}."""
    stem = os.path.join(arguments.work, name)
    command = [sys.executable, os.path.join(scenarios.ROOT, "tools", "examples", "infer.py"), "--model", model]
    command += ["--device", arguments.device, "--prompt", "ROMEO: what is it that you want?", "--attention", "eager"]
    command += ["--max-new-tokens", str(arguments.tokens), "--min-new-tokens", str(arguments.tokens)]
    command += ["--logits", stem + ".logits", "--report", stem + ".report"]
    program = "import json, subprocess, sys; subprocess.run(sys.argv[2:], check=True, stdout=sys.stderr); "
    program += "print(json.dumps(json.load(open(sys.argv[1]))))"
    environment = scenarios.environment(arguments, budget)
    result = workers.run(arguments, name, [sys.executable, "-c", program, stem + ".report", *command], environment)
    if "failed" not in result:
        with open(stem + ".logits", "rb") as file:
            result["logits"] = file.read()
        os.unlink(stem + ".logits")
    return result


def judge(arguments, mode, budget, result, reference, plain):
    """(cells of the row after the name, but the last one; what is wrong)"""
    wrong = []
    same = all(result[key] == reference[key] for key in ("tokens", "logits"))
    if not same:
        wrong.append("OTHER BITS")
    slower = plain["tokens_per_s"] / result["tokens_per_s"]
    if mode == "q8" and budget == arguments.budgets[-1] and slower > arguments.most_slowdown:
        wrong.append(f"MORE THAN {arguments.most_slowdown:g} TIMES SLOWER")
    peak = result.get("peak_mib", 0)
    if budget in arguments.budgets and peak and peak > size_of(budget) + CONTEXT_MIB:
        wrong.append("OVER BUDGET")
    speed, load = f"{result['tokens_per_s']:.2f}", f"{result['load_s']:.1f}"
    return ["same" if same else "OTHER", peak or "-", speed, f"{slower:.2f}", load], wrong


def line(cells):
    return f"{cells[0]:<18}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def rows(arguments, plain_directory):
    """Each row as it is done, and whether something is wrong."""
    plain = run(arguments, "plain", plain_directory, None)
    if "failed" in plain:
        yield f"plain: {plain['failed']}", True
        return
    yield line(["plain", *judge(arguments, "plain", None, plain, plain, plain)[0], "-"]), False
    for mode in arguments.modes:
        packed, stored = pack(arguments, plain_directory, mode)
        reference = plain if mode == "lossless" else None
        for budget in [arguments.resident, *arguments.budgets]:
            name = f"{mode} {budget}"
            result = run(arguments, name.replace(" ", "-"), packed, budget)
            if "failed" in result:
                yield f"{name:<18} {result['failed']}", True
                continue
            reference = reference or result
            cells, wrong = judge(arguments, mode, budget, result, reference, plain)
            yield line([name, *cells, f"{stored:.2f}"]) + "".join(f" {words}" for words in wrong), bool(wrong)
        shutil.rmtree(packed)


def names(text):
    return text.split(",")


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--shape", default="llama-2-13b", help="of tools/examples/make_model.py")
    parser.add_argument("--modes", default="lossless,q8,q6", type=names)
    parser.add_argument("--budgets", default="6G,4G", type=names, help="the smallest one last")
    parser.add_argument("--resident", default="60G", help="a budget in which all fits")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--most-slowdown", type=float, default=5)
    arguments = parser.parse_args()
    workers.make_directories(arguments)
    plain = os.path.join(arguments.work, arguments.shape)
    if not os.path.isdir(plain):
        maker = os.path.join(scenarios.ROOT, "tools", "examples", "make_model.py")
        command = [sys.executable, maker, "--shape", arguments.shape, "--device", arguments.device, plain]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    bad = False
    with workers.table(arguments) as say:
        say(line([f"{arguments.tokens} tokens, batch 1", *COLUMNS]))
        for text, wrong in rows(arguments, plain):
            say(text)
            bad |= wrong
    sys.exit(bad)


if __name__ == "__main__":
    main()
