#!/usr/bin/env python3
"""What does the shim cost a program whose model fits? program.py's `overhead` from the plain directory with PyTorch's default allocator and without the
shim, and from the packed one with it and a budget that holds everything, one after the other and again, so that what changes with time hits both.

    python tools/gpu/overhead.py OUTDIR [--build BUILD] [--work DIR] [--shape tinyllama-1.1b] [--budget 16G] [--rounds 3] [--tokens 64] [--context 2048]

Prints a line for each run and a table last: medians over all runs, their ratio, and the ratio of each round. Exit status 1 if what they
computed differs. --device cpu tries it everywhere (there the budget bounds host memory).
"""

import argparse
import os
import statistics
import sys

import scenarios


def milliseconds(run, name):
    return [float(value) for value in run.figure(name).split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--build", default=os.path.join(scenarios.ROOT, "build"))
    parser.add_argument("--work", default="/tmp/codecllm-check")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of tools/make_model.py")
    parser.add_argument("--budget", type=float, default=16, help="GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--limit", type=int, default=150, help="seconds for a run")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.work, exist_ok=True)
    open(os.path.join(arguments.out, "runs.log"), "w").close()
    plain_dir, packed_dir, _ = scenarios.make_model(arguments, arguments.shape)
    options = ["--tokens", str(arguments.tokens), "--context", str(arguments.context)]
    names = {"decode_ms": "a token, batch 1", "prefill_ms": f"prefill of 4 x {arguments.context}"}
    times = {(name, kind): [] for name in names for kind in ("plain", "shim")}
    ratios, failed = {name: [] for name in names}, False
    for number in range(1, arguments.rounds + 1):
        plain = scenarios.Run(arguments, f"round {number} plain", plain_dir, None, "overhead", options)
        shim = scenarios.Run(arguments, f"round {number} shim", packed_dir, arguments.budget * 2**30, "overhead", options)
        wrong = scenarios.compare(plain, shim)
        failed |= wrong is not None
        if plain.code != 0 or shim.code != 0:
            print(f"round {number}: {wrong}", flush=True)
            continue
        for name, words in names.items():
            one, other = milliseconds(plain, name), milliseconds(shim, name)
            times[name, "plain"] += one
            times[name, "shim"] += other
            ratios[name].append(statistics.median(other) / statistics.median(one))
            print(f"round {number}: {words}: {statistics.median(one):.3f} ms plain, {statistics.median(other):.3f} ms with the shim; {wrong or 'same bits'}", flush=True)
    table = [f"{'':<24}  {'plain ms':>9}  {'shim ms':>9}  {'ratio':>6}  ratio of each round"]
    for name, words in names.items():
        if ratios[name]:
            one, other = statistics.median(times[name, "plain"]), statistics.median(times[name, "shim"])
            table.append(f"{words:<24}  {one:>9.3f}  {other:>9.3f}  {other / one:>6.3f}  {' '.join(f'{r:.3f}' for r in ratios[name])}")
    print("\n".join(table))
    with open(os.path.join(arguments.out, "table.txt"), "w") as file:
        file.write("\n".join(table) + "\n")
    sys.exit(1 if failed or not ratios["decode_ms"] else 0)


if __name__ == "__main__":
    main()
