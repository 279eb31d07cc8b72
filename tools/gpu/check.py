#!/usr/bin/env python3
"""Unmodified transformers programs on a GPU, plain and paged: are tokens and logits the same to the bit, does the
process stay inside its budget, how fast is it?

    python tools/gpu/check.py OUTDIR [--build BUILD] [--work DIR] [--models bard,tinyllama,8b]
        [--modes lossless,q8,q6] [--budgets 1700M,1100M,...] [--tokens 64] [--attention eager] [--unpacked] [--strict]
        [--offload] [--cold]

Makes models of TinyLlama's and Llama-3.1-8B's shape with random weights, packs them, runs tools/examples/infer.py on
each without the shim and then with it at each budget, and prints one table. Of a lossy mode the plain program reads the
unpacked store, whose values are the ones that the packed one decodes to. Device memory is what nvidia-smi says of
the whole device, sampled while a program runs, less what it said before; the context is in it, so the plain run of the
same program stands beside. --unpacked runs each budget from the original directory, too; --strict runs the first one
with CODEC_STRICT=1, where a kernel that touches a weight which was not named for it fails; --offload times accelerate's
cpu_offload over 8 tokens; --cold drops the model's files from the page cache before each run. The link is measured
first: pinned memory to the device, 64 MiB. Attention is transformers' eager one: PyTorch's own may take cuDNN's, which
plans each new length of the context anew, for tens of milliseconds a token that hide everything else."""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import scenarios
import workers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHAPES = {"tinyllama": "tinyllama-1.1b", "8b": "llama-3.1-8b"}


class DeviceMemory:
    """MiB in use on device 0, sampled every 50 ms while running."""

    def __init__(self):
        self.peak = 0
        self.process = None

    @staticmethod
    def now():
        if shutil.which("nvidia-smi") is None:
            sys.exit(
                "check.py: there is no nvidia-smi, which tells how much device memory is in use; this check needs a GPU"
            )
        text = subprocess.run(
            ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
        )
        return int(text.stdout.split()[0]) if text.returncode == 0 and text.stdout.split() else 0

    def __enter__(self):
        self.before = self.now()
        self.process = subprocess.Popen(
            ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "50"],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        return self

    def _read(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.peak = max(self.peak, int(line))

    def __exit__(self, *unused):
        self.process.terminate()
        self.thread.join()
        self.peak -= self.before


def run(arguments, name, model, budget, tokens, strict=False):
    """One run of infer.py. Returns its report with what was seen from outside."""
    stem = os.path.join(arguments.out, name)
    raw = os.path.join(arguments.work, name)
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if budget:
        environment.update(
            CODEC_VRAM_BUDGET=budget,
            CODEC_STATS="1",
            PYTORCH_ALLOC_CONF="backend:cudaMallocAsync",
            LD_PRELOAD=os.path.join(os.path.abspath(arguments.build), "lib", "libcodecshim.so"),
        )
    if strict:
        environment["CODEC_STRICT"] = "1"
    command = [
        sys.executable,
        os.path.join(ROOT, "tools", "examples", "infer.py"),
        "--model",
        model,
        "--device",
        "cuda",
        "--prompt",
        "ROMEO: what is it that you want?",
    ]
    if arguments.attention:
        command += ["--attention", arguments.attention]
    command += [
        "--max-new-tokens",
        str(tokens),
        "--min-new-tokens",
        str(tokens),
        "--logits",
        raw + ".logits",
        "--report",
        raw + ".json",
    ]
    if arguments.cold:
        drop_from_page_cache(model)
    for old in (raw + ".logits", raw + ".json"):
        if os.path.exists(old):
            os.unlink(old)
    begin = time.time()
    with DeviceMemory() as memory, open(stem + ".log", "w") as log:
        try:
            code = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=arguments.limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = "timeout"
    result = {
        "name": name,
        "code": code,
        "wall_s": time.time() - begin,
        "peak_mib": memory.peak,
        "budget": budget or "-",
    }
    if code == 0:
        with open(raw + ".json") as file:
            result.update(json.load(file))
        with open(raw + ".logits", "rb") as file:
            result["logits"] = file.read()
    else:
        with open(stem + ".log") as log:
            print(f"--- {name}: exit {code}\n" + "".join(log.readlines()[-25:]), flush=True)
    return result


def drop_from_page_cache(directory):
    for file in os.listdir(directory):
        descriptor = os.open(os.path.join(directory, file), os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def offload_speed(model):
    """Tokens per second of accelerate's cpu_offload from the plain directory, 8 tokens; what it said where it
    failed."""
    command = [
        sys.executable,
        os.path.join(ROOT, "tools", "gpu", "program.py"),
        "offload",
        "--model",
        model,
        "--tokens",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = [line.split()[2] for line in done.stderr.splitlines() if line.startswith("figure tokens_per_s ")]
    return found[-1] if found else f"failed with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"


def link_speed():
    """GB/s from pinned host memory to the device, the best of ten copies of 64 MiB."""
    program = """
import torch, time
host, best = torch.empty(64 << 20, dtype=torch.uint8).pin_memory(), 0
device = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
for _ in range(10):
    torch.cuda.synchronize(); begin = time.perf_counter()
    device.copy_(host, non_blocking=True); torch.cuda.synchronize()
    best = max(best, (64 << 20) / 1e9 / (time.perf_counter() - begin))
print(f"{best:.1f}")"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip() or "not measured"


def row(result, plain):
    same = "-"
    if result is not plain:
        same = (
            "FAILED"
            if result["code"] != 0
            else "no run"
            if plain["code"] != 0
            else "same"
            if (result["tokens"], result["logits"]) == (plain["tokens"], plain["logits"])
            else "DIFFERS"
        )
    speed = result.get("tokens_per_s", 0)
    share = speed / plain["tokens_per_s"] if plain.get("tokens_per_s") else 0
    load, first = result.get("load_s", 0), result.get("first_token_s", 0)
    return (
        f"{result['name']:<27} {result['budget']:>8} {same:>8} {result['peak_mib']:>8} {speed:>9.2f} {share:>6.2f} "
        f"{load:>7.2f} {first:>7.2f} {result['wall_s']:>7.1f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    parser.add_argument("--work", default="/tmp/codecllm-check")
    parser.add_argument("--models", default="bard,tinyllama")
    parser.add_argument("--modes", default="lossless", type=workers.modes)
    parser.add_argument("--budgets", default="4G,1700M,1100M,600M")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--attention", default="eager", help="as infer.py's; '' for the model's default")
    parser.add_argument("--limit", type=int, default=150, help="seconds for a run")
    parser.add_argument("--unpacked", action="store_true", help="run from the plain directory under the shim, too")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="run with CODEC_STRICT=1, too: no kernel touches a weight that it did not name",
    )
    parser.add_argument("--offload", action="store_true", help="time accelerate's cpu_offload beside")
    parser.add_argument("--cold", action="store_true", help="start each run with the model out of the page cache")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.work, exist_ok=True)
    failed = False
    print(f"link: {link_speed()} GB/s", flush=True)
    table = [
        f"{'run':<27} {'budget':>8} {'bits':>8} {'MiB':>8} {'tokens/s':>9} {'share':>6} {'load s':>7} {'first s':>7} "
        f"{'wall s':>7}"
    ]
    for name, mode in itertools.product(arguments.models.split(","), arguments.modes):
        plain_dir, packed_dir, _ = scenarios.make_model(arguments, SHAPES.get(name, name), mode)
        budgets = ["512M", "256M"] if name == "bard" else arguments.budgets.split(",")
        name = workers.named(name, mode).replace(" ", "-")
        plain = run(arguments, name + "-plain", plain_dir, None, arguments.tokens)
        table.append(row(plain, plain))
        print(table[-1], flush=True)
        for budget in budgets:
            result = run(arguments, f"{name}-{budget}", packed_dir, budget, arguments.tokens)
            table.append(row(result, plain))
            print(table[-1], flush=True)
            failed |= "same" not in table[-1]
            if arguments.unpacked:
                table.append(
                    row(run(arguments, f"{name}-{budget}-unpacked", plain_dir, budget, arguments.tokens), plain)
                )
                print(table[-1], flush=True)
                failed |= "same" not in table[-1]
        if arguments.strict:
            table.append(
                row(
                    run(
                        arguments, f"{name}-{budgets[0]}-strict", packed_dir, budgets[0], arguments.tokens, strict=True
                    ),
                    plain,
                )
            )
            print(table[-1], flush=True)
            failed |= "same" not in table[-1]
        if arguments.offload:
            table.append(f"{name}-cpu_offload: {offload_speed(plain_dir)} tokens/s over 8 tokens")
            print(table[-1], flush=True)
    print("\n".join(table))
    with open(os.path.join(arguments.out, "table.txt"), "w") as file:
        file.write("\n".join(table) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
