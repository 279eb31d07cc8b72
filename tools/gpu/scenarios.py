#!/usr/bin/env python3
"""Runs the programs of tools/gpu/program.py from a plain model and, under the shim, from its packed form inside a
budget; what they print must be the same to the byte, or the error must be the one that is promised.

    python tools/gpu/scenarios.py OUTDIR [--build BUILD] [--work DIR] [--device cuda|cpu] [--only NAME,...] [--jobs N]
        [--modes lossless,q8,q6] [--seed N]
    python tools/gpu/scenarios.py OUTDIR --stress SECONDS     # random models, budgets and work, until the time is over

With several --modes each run takes one of them at random, by the seed that is printed; of a lossy one the plain program
reads the unpacked store.
With --device cpu the programs that need no GPU run through the paging of host memory, so that this can be tried
everywhere. Prints a line for each run and a table last; exit status 1 if one is not as it should be. The programs' own
output is in OUTDIR/runs.log."""

import concurrent.futures
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import workers

ROOT = workers.ROOT
PROGRAM = os.path.join(ROOT, "tools", "gpu", "program.py")
MIB = 2**20
LOG = threading.Lock()

# name of the run: scenario, budget as a share of the logical size plus MiB, its options, whether it needs a GPU
SAME = {
    "generate 50 %": ("generate", (0.5, 128), [], False),
    "batch 60 %": ("batch", (0.6, 224), [], False),
    "edits 60 %": ("edits", (0.6, 144), [], False),
    "there and back 60 %": ("there_and_back", (0.6, 144), [], False),
    "two models 80 %": ("two_models", (0.8, 144), [], False),
    "threads 60 %": ("threads", (0.6, 144), [], False),
    "growing cache 100 %": ("growing", (1.0, 176), ["--cache-mb", "80"], False),
    "products 60 %": ("products", (0.6, 240), [], False),
    "device_map auto 25 %": ("auto", (0.25, 144), [], True),
    "compile 60 %": ("compiled", (0.6, 176), [], True),
    "graph 120 %": ("graph", (1.2, 192), [], True),
}


def budget_of(arguments, size, share, mib):
    """A share of the model, and what a GPU's budget must hold besides; the host's bounds decoded weights alone."""
    return share * size + (mib * MIB if arguments.device == "cuda" else 2 * MIB)


def environment(arguments, budget, backend="backend:cudaMallocAsync", build=None):
    """Of a plain program (no budget), or of one under the shim, of another build if that is said."""
    values = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUBLAS_WORKSPACE_CONFIG=":4096:8")
    if budget:
        shim = os.path.join(os.path.abspath(build or arguments.build), "lib", "libcodecshim.so")
        values.update(CODEC_VRAM_BUDGET=str(budget), CODEC_STATS="1", PYTORCH_ALLOC_CONF=backend, LD_PRELOAD=shim)
    return values


class Run:
    """What one program did: exit status, facts (stdout), figures, talk (stderr)."""

    def __init__(
        self,
        arguments,
        name,
        model,
        budget,
        scenario,
        options,
        interrupt=False,
        backend="backend:cudaMallocAsync",
        pin=None,
    ):
        environment_of_run = environment(arguments, int(budget or 0), backend)
        if (
            arguments.device == "cuda" and scenario == "random_walk"
        ):  # what PyTorch refuses with this backend is not ours
            environment_of_run["PYTORCH_ALLOC_CONF"] = backend
        if pin:
            environment_of_run["CODEC_PIN"] = pin
        command = [sys.executable, PROGRAM, scenario, "--model", model, "--device", arguments.device, *options]
        begin = time.monotonic()
        self.name = name
        process = subprocess.Popen(
            command, env=environment_of_run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        try:
            if interrupt:
                first = process.stdout.readline()
                time.sleep(1)
                process.send_signal(signal.SIGINT)
                self.facts, self.talk = process.communicate(timeout=30)
                self.facts = first + self.facts
            else:
                self.facts, self.talk = process.communicate(timeout=arguments.limit)
            self.code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            self.facts, self.talk = process.communicate()
            self.code = "timeout"
        self.seconds = time.monotonic() - begin
        with LOG, open(os.path.join(arguments.out, "runs.log"), "a") as log:
            log.write(f"=== {name}: exit {self.code}, budget {int(budget or 0) >> 20} MiB\n{self.facts}\n{self.talk}\n")

    def figure(self, name):
        values = [line.split()[2] for line in self.talk.splitlines() if line.startswith(f"figure {name} ")]
        return values[-1] if values else "-"


def reason(run):
    """The lines on stderr that say why a program ended, without the counters at its end."""
    said = [
        line
        for line in run.talk.splitlines()
        if "Error" in line or (line.startswith("codecllm: ") and not line.startswith("codecllm:  "))
    ]
    return " / ".join(line for line in said[-4:] if "paging of" not in line)


def first_difference(one, other):
    for a, b in zip(one.facts.splitlines(), other.facts.splitlines()):
        if a != b:
            return f"{a!r} became {b!r}"
    return f"{reason(other)}: {len(one.facts.splitlines())} lines became {len(other.facts.splitlines())}"


def compare(plain, paged):
    if plain.code != 0:
        return f"the plain run failed with {plain.code}: {reason(plain)}"
    if paged.code != 0:
        return f"exit {paged.code}: {reason(paged)}"
    return None if plain.facts == paged.facts else first_difference(plain, paged)


def make_model(arguments, shape, mode="lossless"):
    """(plain directory, packed directory, logical bytes); bard is the small model of the tests."""
    plain = os.path.join(arguments.work, shape)
    if shape == "bard" and not os.path.lexists(plain):
        os.symlink(os.path.join(ROOT, "tests", "models", "bard"), plain)
    if not os.path.isdir(plain):
        subprocess.run(
            [sys.executable, os.path.join(ROOT, "tools", "examples", "make_model.py"), "--shape", shape, plain],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    plain, packed = workers.stores(arguments, plain, mode)
    return (
        plain,
        packed,
        sum(os.path.getsize(os.path.join(plain, f)) for f in os.listdir(plain) if f.endswith(".safetensors")),
    )


def damage(arguments, packed, kind):
    """A copy of a packed directory with a truncated store, or one with a flipped bit in a chunk in the middle."""
    copy = os.path.join(arguments.work, kind)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(packed, copy)
    store = os.path.join(copy, "model.safetensors")
    if kind == "truncated":
        os.truncate(store, os.path.getsize(store) // 2)
    else:
        with open(store, "r+b") as file:
            file.seek(os.path.getsize(store) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    return copy


def loud(run, *words):
    """None when the program failed and one line on stderr has all words."""
    if run.code == 0 or run.code == "timeout":
        return f"exit {run.code}, but an error was to come"
    if not any(all(word in line for word in words) for line in run.talk.splitlines()):
        return f"exit {run.code}, but no line with {words}"
    return None


def errors(arguments, plain, packed, size):
    """The promised errors: (name, function that returns the run and what is wrong or None)."""
    budget = budget_of(arguments, size, 0.6, 144)

    def damaged(kind, *words):
        run = Run(arguments, kind, damage(arguments, packed, kind), budget, "damaged", [])
        return run, loud(run, *words)

    def interrupted():
        run = Run(arguments, "interrupted", packed, budget, "interrupted", [], interrupt=True)
        return run, None if run.code in (
            1,
            -2,
            130,
        ) and "KeyboardInterrupt" in run.talk else f"exit {run.code} on SIGINT"

    def convert():
        run = Run(arguments, "convert", packed, budget, "convert", [])
        same = compare(Run(arguments, "convert plain", plain, None, "convert", []), run)
        # What does not fit may be PyTorch's own (OutOfMemoryError) or a workspace of cuBLAS (RuntimeError:
        # CUBLAS_STATUS_ALLOC_FAILED).
        return run, same if run.code == 0 else loud(run, "codecllm", "dtype") and (
            loud(run, "codecllm", "CODEC_VRAM_BUDGET", "least")
            or (loud(run, "OutOfMemoryError") and loud(run, "CUBLAS_STATUS_ALLOC_FAILED"))
        )

    def too_much():
        run = Run(arguments, "too much", packed, budget, "too_much", ["--hog-mb", str(budget // MIB)])
        right = run.code == 0 and "OutOfMemoryError" in run.facts and "CODEC_VRAM_BUDGET" in run.talk
        return run, None if right else f"exit {run.code}: {run.facts.split()[-4:]}"

    def hidden(write):
        run = Run(arguments, "hidden pointer" + "".join(write), packed, 0.4 * size + 112 * MIB, "hidden", write)
        return run, loud(run, "CODEC_PIN")

    def pinned():
        # The weight that it reaches so (the first matrix by name), and what may come before it in other shapes: all
        # would not fit.
        run = Run(
            arguments,
            "hidden pointer pinned",
            packed,
            budget,
            "hidden",
            [],
            pin="lm_head.weight,model.embed_tokens.weight",
        )
        return run, compare(Run(arguments, "hidden pointer plain", plain, None, "hidden", []), run)

    def graph_too_large():
        run = Run(arguments, "graph too large", packed, 0.5 * size + 112 * MIB, "graph", [])
        return run, loud(run, "codecllm")

    def reduce_overhead():
        run = Run(
            arguments,
            "reduce-overhead native",
            packed,
            1.5 * size + 256 * MIB,
            "reduce_overhead",
            [],
            backend="backend:native",
        )
        return run, compare(Run(arguments, "reduce-overhead plain", plain, None, "reduce_overhead", []), run)

    everywhere = [
        lambda: damaged("truncated", "model.safetensors"),
        lambda: damaged("corrupt", "model.safetensors", 'tensor "', "offset"),
        interrupted,
        convert,
    ]
    return (
        everywhere
        if arguments.device != "cuda"
        else [
            reduce_overhead,
            *everywhere,
            too_much,
            lambda: hidden([]),
            lambda: hidden(["--write"]),
            pinned,
            graph_too_large,
        ]
    )


def same(arguments, name, mode):
    """One of SAME: (its paged run, what is wrong or None, seconds of the plain run)."""
    scenario, (share, more), options, _ = SAME[name]
    plain, packed, size = make_model(arguments, shape_of(arguments, scenario), mode)
    name = workers.named(name, mode)
    without = Run(arguments, name + " plain", plain, None, scenario, options)
    paged = Run(arguments, name, packed, budget_of(arguments, size, share, more), scenario, options)
    return paged, compare(without, paged), without.seconds


def shape_of(arguments, scenario):
    """transformers leaves 1.2 GiB free, so that a model has to be larger than that to be placed automatically."""
    return "tinyllama-1.1b" if scenario == "auto" else arguments.shape


def check(arguments):
    """The table's rows. Runs of different scenarios go beside each other: none of them times anything, and each has its
    own process."""
    wanted = arguments.only.split(",") if arguments.only else None
    names = [
        name
        for name, (scenario, _, _, needs_gpu) in SAME.items()
        if (arguments.device == "cuda" or not needs_gpu) and (not wanted or scenario in wanted)
    ]
    chance = random.Random(arguments.seed)
    print(f"seed {arguments.seed}", flush=True)
    modes = {name: chance.choice(arguments.modes) for name in [*names, "errors"]}
    cases = [functools.partial(same, arguments, name, modes[name]) for name in names]
    for name in names:  # before anyone else would make them, too
        make_model(arguments, shape_of(arguments, SAME[name][0]), modes[name])
    if not wanted or "errors" in wanted:
        cases = errors(arguments, *make_model(arguments, arguments.shape, modes["errors"])) + cases
    rows = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(case) for case in cases]):
            run, wrong, *seconds = done.result()
            rows.append(
                (
                    run.name,
                    "as it should be" if wrong is None else "WRONG: " + wrong,
                    f"{run.seconds:.1f}",
                    f"{seconds[0]:.1f}" if seconds else "-",
                )
            )
            print(" | ".join(rows[-1]), flush=True)
    return rows


def stress(arguments):
    """Random walks until the time is over, each against an unshimmed shadow of the same seed."""
    chance = random.Random(arguments.seed)
    print(f"seed {arguments.seed}", flush=True)
    end = time.monotonic() + arguments.stress
    rows = []
    while time.monotonic() < end:
        seed = chance.randrange(1 << 30)
        shape = chance.choice(["tiny", "llama-90m", "llama-90m"])
        mode = chance.choice(arguments.modes)
        plain, packed, size = make_model(arguments, shape, mode)
        # The largest step of a walk: a copy of a tensor, a graph over it, 64 MiB of ones, and what torch and cuBLAS
        # keep.
        budget = budget_of(arguments, size, chance.uniform(0.2, 1.3), 320)
        options = ["--seed", str(seed), "--steps", str(chance.randrange(50, 400))]
        without = Run(arguments, f"walk {seed} plain", plain, None, "random_walk", options)
        paged = Run(arguments, f"walk {seed}", packed, budget, "random_walk", options)
        wrong = compare(without, paged)
        rows.append(
            (
                workers.named(f"walk {seed} {shape} {budget / MIB:.0f}M", mode),
                "as it should be" if wrong is None else "WRONG: " + wrong,
                f"{paged.seconds:.1f}",
                f"{without.seconds:.1f}",
            )
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--shape", default="llama-90m", help="of tools/examples/make_model.py")
    parser.add_argument("--modes", default="lossless", type=workers.modes, help="how models are packed, by chance")
    parser.add_argument("--only", help="scenarios by name, comma-separated; 'errors' for the promised errors")
    parser.add_argument("--stress", type=float, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument(
        "--jobs",
        type=int,
        default=max(1, min(4, (os.cpu_count() or 1) // 4)),
        help="scenarios beside each other (%(default)s here)",
    )
    parser.add_argument("--limit", type=float, default=120, help="seconds for a run")
    arguments = parser.parse_args()
    workers.make_directories(arguments)
    open(os.path.join(arguments.out, "runs.log"), "w").close()
    rows = stress(arguments) if arguments.stress else check(arguments)
    width = max((len(row[0]) for row in rows), default=4)
    table = [f"{'run':<{width}}  {'paged s':>8}  {'plain s':>8}  result"] + [
        f"{n:<{width}}  {s:>8}  {p:>8}  {r}" for n, r, s, p in rows
    ]
    print("\n".join(table))
    with open(os.path.join(arguments.out, "scenarios.txt"), "w") as file:
        file.write("\n".join(table) + "\n")
    sys.exit(1 if any(row[1].startswith("WRONG") for row in rows) or not rows else 0)


if __name__ == "__main__":
    main()
