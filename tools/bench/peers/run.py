#!/usr/bin/env python3
"""CodecLLM beside others that run a model in less GPU memory than it has weights, on one GPU in one call.

    python tools/bench/peers/run.py OUTDIR [--build BUILD] [--work DIR] [--models flux,8b,tinyllama] [--budgets 8G,6G]
        [--peers leaves,blocks,aimdo,dfloat11,accelerate] [--wheels DIR] [--steps 8] [--remove]

The peers: diffusers' group offload of leaves and of blocks, comfy-aimdo (at the same budgets as CodecLLM), DFloat11's
cpu_offload (Llamas only), accelerate's cpu_offload. Their packages go into an environment of their own, WORK/venv; with
--wheels from that folder, without a network. One that cannot be installed, or fails, is a row that says why.

The models have random weights: FLUX.1-dev's transformer as diffusers has it (4096 image and 512 text tokens), Llamas of
the shapes of Llama-3.1-8B and TinyLlama. Each contender is a process of its own, one after the other; a step is the
median after two that warm up. Device memory is what nvidia-smi says, with the context. The link is measured first:
pinned memory to the device. Peers use PyTorch's default allocator, CodecLLM cudaMallocAsync, as documented.

Prints a row when a contender ends, and the tables last. OUTDIR has NAME.json and NAME.log for each, and table.txt. Exit
status 1 if plain or CodecLLM fails, or they compute something else. --device cpu --tiny tries it everywhere."""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import install
import models

sys.path.insert(0, os.path.join(models.ROOT, "tools", "gpu"))
import check  # noqa: E402
import scenarios  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
BUDGETS = {"flux": "12G,8G,6G", "8b": "8G,4G,3G", "tinyllama": "1700M,1100M,600M"}
TINY_BUDGETS = {"flux": "1M", "8b": "80M", "tinyllama": "80M"}
WORDS = {
    "blocks": "diffusers, blocks",
    "leaves": "diffusers, leaves",
    "aimdo": "comfy-aimdo",
    "dfloat11": "DFloat11, offload",
    "accelerate": "accelerate, offload",
}
PEERS = list(WORDS)
ONLY_GPU, ONLY_LLAMAS = {"aimdo", "dfloat11"}, {"dfloat11"}
COLUMNS = {"ms": 9, "a second": 9, "of plain": 9, "peak MiB": 9, "bits": 8, "load s": 7, "steps": 6}  # how wide


def bytes_of(budget):
    return int(float(budget[:-1]) * (1 << {"K": 10, "M": 20, "G": 30}[budget[-1]]))


def sizes(text):
    wrong = [size for size in text.split(",") if not re.fullmatch(r"\d+(\.\d+)?[KMG]", size)]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]}: use sizes like 8G or 600M")
    return text.split(",")


def contenders(arguments, model):
    """(name, way, budget, is it packed) in the order in which they run."""
    budgets = arguments.budgets or sizes((TINY_BUDGETS if arguments.tiny else BUDGETS)[model])
    yield "plain", "plain", None, False
    for budget in budgets:
        yield f"CodecLLM {budget}", "plain", budget, True
    for peer in arguments.peers:
        if peer in ONLY_LLAMAS and model == "flux":
            continue
        for budget in budgets if peer == "aimdo" else [None]:
            yield " ".join([WORDS[peer], budget or ""]).strip(), peer, budget, False


class Models:
    """Directories of a model, each made when it is first asked for. An error says why one cannot be made."""

    def __init__(self, arguments, python, name):
        self.arguments, self.python, self.name = arguments, python, name
        self.plain = os.path.join(arguments.work, name + "-tiny" * arguments.tiny)
        self.failed = {}

    def make(self, directory, command, size):
        """Runs the command that makes the directory, once; what it says goes to OUTDIR."""
        if directory not in self.failed and not os.path.isdir(directory):
            self.failed[directory] = self.try_to_make(directory, command, size)
        if self.failed.get(directory):
            raise OSError(f"{os.path.basename(directory)}: {self.failed[directory]}")

    def try_to_make(self, directory, command, size):
        """None, or why it failed."""
        free = shutil.disk_usage(self.arguments.work).free
        if free < size and not self.arguments.tiny:
            return f"needs {size / 1e9:.0f} GB in {self.arguments.work}, {free / 1e9:.0f} GB are free"
        shutil.rmtree(directory + ".part", ignore_errors=True)
        name = os.path.join(self.arguments.out, os.path.basename(directory) + ".make.log")
        with open(name, "w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment(self.arguments)).returncode
        with open(name) as log:
            said = log.read().split("\n")
        return f"could not be made: {next((line for line in said[::-1] if line.strip()), code)}" if code else None

    def directory(self, way, packed):
        arguments, size = self.arguments, models.SIZES[self.name]
        tiny = ["--tiny"] * arguments.tiny + ["--device", arguments.device]
        self.make(self.plain, [self.python, os.path.join(HERE, "models.py"), self.name, self.plain, *tiny], 1.05 * size)
        if packed:
            command = [os.path.join(arguments.build, "bin", "codecllm"), "pack", self.plain, self.plain + ".packed"]
            self.make(self.plain + ".packed", command, 0.72 * size)
            return self.plain + ".packed"
        if way == "dfloat11":
            out = self.plain + ".df11"
            command = [self.python, os.path.join(HERE, "df11.py"), self.plain, out]
            self.make(out, command, 0.72 * size)
            return out
        return self.plain

    def remove(self):
        for directory in (self.plain, self.plain + ".packed", self.plain + ".df11"):
            shutil.rmtree(directory, ignore_errors=True)


def environment(arguments, budget=None):
    """Of a contender; the allocator of PyTorch is its default unless the shim is there."""
    values = scenarios.environment(arguments, budget)
    if not budget:
        values.pop("PYTORCH_ALLOC_CONF", None)
        values.pop("LD_PRELOAD", None)
    return dict(values, PYTHONUNBUFFERED="1", TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error")


def run(arguments, python, stem, way, directory, budget, packed):
    """What contender.py printed, and the peak; {"failed": words}: there is nothing to compare."""
    command = [python, os.path.join(HERE, "contender.py"), way, directory, "--device", arguments.device]
    command += ["--steps", str(arguments.steps), "--seconds", str(arguments.seconds)]
    command += ["--tokens", "64,16"] if arguments.tiny else []
    command += ["--budget", str(bytes_of(budget))] if budget else []
    watch = check.DeviceMemory() if arguments.device == "cuda" else contextlib.nullcontext()
    with watch, open(os.path.join(arguments.out, stem + ".log"), "w") as log:
        try:
            done = subprocess.run(
                command, env=environment(arguments, budget if packed else None),
                stdout=subprocess.PIPE, stderr=log, text=True, timeout=arguments.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"stopped after {arguments.limit} s"}
    said = done.stdout.splitlines()
    if done.returncode or not said:
        return {"failed": f"ended with {done.returncode}; what it said is in {log.name}"}
    result = json.loads(said[-1])
    if arguments.device == "cuda":
        result["peak_mib"] = watch.peak
    return result


def attempt(arguments, python, missing, model, contender):
    """The result of one contender."""
    name, way, budget, packed = contender
    if way in ONLY_GPU and arguments.device == "cpu":
        return {"failed": "needs a GPU"}
    lacks = missing.get(way) or (missing.get("diffusers") if model.name == "flux" else None)
    if lacks:
        return {"failed": f"not installed: {lacks}"}
    if arguments.time and time.monotonic() - arguments.begin > arguments.time:
        return {"failed": f"left out: {arguments.time} s are over"}
    try:
        directory = model.directory(way, packed)
    except OSError as error:
        return {"failed": str(error)}
    stem = "-".join([model.name, way if not packed else "codecllm"] + [budget] * bool(budget))
    result = run(arguments, python, stem, way, directory, budget, packed)
    with open(os.path.join(arguments.out, stem + ".json"), "w") as file:
        json.dump(dict(result, name=name, model=model.name, way=way, budget=budget), file)
    return result


def row(name, result, plain):
    if "failed" in result:
        return f"{name:<22} {result['failed']}"
    ms = statistics.median(result["ms"])
    cells = [f"{ms:.1f}", f"{1e3 / ms:.3g}"]
    known = plain and "failed" not in plain
    cells.append(f"{ms / statistics.median(plain['ms']):.2f}" if known else "-")
    cells.append(result.get("peak_mib", "-"))
    cells.append("-" if not known else "same" if result["digest"] == plain["digest"] else "OTHERS")
    cells += [f"{result['load_s']:.1f}", len(result["ms"])]
    return f"{name:<22}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells, COLUMNS.values()))


def compare(arguments, python, missing, name, say):
    """(the lines of the table of a model, was plain or CodecLLM wrong)"""
    model, plain, wrong = Models(arguments, python, name), None, False
    step = "a step" if name == "flux" else "a token"
    lines = [f"{name}: {step}", f"{'':<22}" + "".join(f" {words:>{width}}" for words, width in COLUMNS.items())]
    say("\n".join(lines))
    for contender in contenders(arguments, name):
        result = attempt(arguments, python, missing, model, contender)
        plain = result if plain is None else plain
        lines.append(row(contender[0], result, plain))
        say(lines[-1])
        if contender[1] == "plain":
            same = result.get("digest") == plain.get("digest") and " " not in result.get("digest", " ")
            wrong |= not same
    if arguments.remove:
        model.remove()
    return lines, wrong


def machine(arguments, python):
    """What it ran on, in lines."""
    program = """
import importlib.metadata as m, torch
print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU")
for name in "torch transformers accelerate diffusers comfy-aimdo dfloat11".split():
    try: print(name, m.version(name))
    except m.PackageNotFoundError: pass"""
    query = subprocess.run([python, "-c", program], capture_output=True, text=True, env=environment(arguments))
    lines = [", ".join(query.stdout.splitlines())]
    if arguments.device == "cuda":
        lines.append(f"link, pinned memory to the device: {check.link_speed()} GB/s")
    return lines


def names(known):
    def parse(text):
        wrong = [name for name in text.split(",") if name and name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]}: use {', '.join(known)}")
        return [name for name in text.split(",") if name]

    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--build", default=os.path.join(models.ROOT, "build"))
    parser.add_argument("--work", default="/tmp/codecllm-peers", help="for models and packages, 70 GB with all models")
    parser.add_argument("--models", type=names(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--budgets", type=sizes, help="of CodecLLM and aimdo, for all models; default: three of each")
    parser.add_argument("--peers", type=names(PEERS), default=PEERS)
    parser.add_argument("--wheels", metavar="DIR", help="packages come from this folder, not from an index")
    parser.add_argument("--no-install", dest="install", action="store_false", help="use packages that are there")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20, help="no step begins when the timed ones took that long")
    parser.add_argument("--limit", type=float, default=240, help="seconds for a contender")
    parser.add_argument("--time", type=float, help="no contender begins after so many seconds")
    parser.add_argument("--remove", action="store_true", help="remove a model when its table is complete")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    arguments.begin = time.monotonic()
    for directory in (arguments.out, arguments.work):
        os.makedirs(directory, exist_ok=True)
    python, missing = install.prepare(arguments, arguments.peers, "flux" in arguments.models)
    tables, wrong = machine(arguments, python), False
    print("\n".join(tables), flush=True)
    for name in arguments.models:
        lines, bad = compare(arguments, python, missing, name, lambda words: print(words, flush=True))
        tables += ["", *lines]
        wrong |= bad
    with open(os.path.join(arguments.out, "table.txt"), "w") as file:
        file.write("\n".join(tables) + "\n")
    print("\n" + "\n".join(tables))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
