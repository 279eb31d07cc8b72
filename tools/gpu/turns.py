#!/usr/bin/env python3
"""How fast is a paged program beside the plain one, on a machine whose own speed swings? All of them are started and
stay: the plain one without the shim and with PyTorch's default allocator, and one from the packed model for each
budget. Then they take short turns, one at a time, so that every swing hits all.

    python tools/gpu/turns.py OUTDIR [--build BUILD] [--work DIR] [--shape tinyllama-1.1b]
        [--budgets 16G,1700M,1100M,600M] [--beside OTHER-BUILD]
                              [--turns 24] [--tokens 8] [--prefills 0] [--context 2048] [--attention eager]

A turn is `--tokens` tokens after a prompt of 24 (or one prefill of 4 x `--context`), timed each with a wait for the
device, as generate() waits. --beside: the same budgets with the shim of another build, too, in turn with the first.
Prints one table: medians over all tokens; the ratio to plain as the median over the turns,
each beside the plain turns before and after it, and where the middle half of these ratios lies. Exit status 1 if what
they computed differs. --device cpu tries it everywhere (there the budget bounds host memory)."""

import argparse
import json
import os
import statistics
import subprocess
import sys

import scenarios


class Worker:
    """program.py's `turns` in a process of its own."""

    def __init__(self, arguments, name, model, budget, build=None):
        self.name, self.ms, self.means, self.loops = name, {}, {}, []
        self.log = open(os.path.join(arguments.out, f"{name}.log"), "w")
        command = [
            sys.executable,
            scenarios.PROGRAM,
            "turns",
            "--model",
            model,
            "--device",
            arguments.device,
            "--context",
            str(arguments.context),
            "--attention",
            arguments.attention,
        ]
        self.process = subprocess.Popen(
            command,
            env=scenarios.environment(arguments, budget, build=build),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}; what it said is in {self.log.name}")
        return json.loads(line)

    def turn(self, what, count):
        """Returns a digest of what was computed."""
        self.process.stdin.write(f"{what} {count}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.ms.setdefault(what, []).extend(answer["ms"])
        self.means.setdefault(what, []).append(statistics.mean(answer["ms"]))
        self.loops.append(answer["loop_ms"])
        return answer["digest"]

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.close()


def ratios(worker, plain, what):
    """Of each turn: its mean time beside the mean of the plain turns around it."""
    around = plain.means[what]
    return [mean / ((around[i] + around[i + 1]) / 2) for i, mean in enumerate(worker.means[what])]


def table(workers, kinds):
    plain, lines = workers[0], []
    for what, words in kinds.items():
        lines.append(
            f"{words:<28} {'ms':>9} {'of plain time':>14} {'middle half':>16} {'share of speed':>15} "
            f"{'python loop ms':>15}"
        )
        for worker in workers:
            line = f"{worker.name:<28} {statistics.median(worker.ms[what]):>9.3f}"
            if worker is not plain:
                sorted_ratios = sorted(ratios(worker, plain, what))
                middle, quarter = statistics.median(sorted_ratios), len(sorted_ratios) // 4
                low, high = sorted_ratios[quarter], sorted_ratios[-1 - quarter]
                line += f" {middle:>14.3f} {low:>8.3f}..{high:.3f} {1 / middle:>15.3f}"
            else:
                line += f" {'1':>14} {'':>16} {'1':>15}"
            lines.append(line + f" {statistics.median(worker.loops):>15.2f}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--build", default=os.path.join(scenarios.ROOT, "build"))
    parser.add_argument("--beside", help="another build, whose paged programs take turns with those of --build")
    parser.add_argument("--work", default="/tmp/codecllm-check")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of tools/examples/make_model.py")
    parser.add_argument("--budgets", default="16G,1700M,1100M,600M")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--prefills", type=int, default=0, help="turns of one prefill each")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--attention", default="eager", help="as tools/examples/infer.py's; '' for the model's default")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    os.makedirs(arguments.work, exist_ok=True)
    plain_dir, packed_dir, _ = scenarios.make_model(arguments, arguments.shape)
    workers = [Worker(arguments, "plain", plain_dir, None)]
    for budget in arguments.budgets.split(","):
        workers.append(Worker(arguments, budget, packed_dir, budget))
        if arguments.beside:
            workers.append(Worker(arguments, f"{budget} beside", packed_dir, budget, arguments.beside))
    for worker in workers:
        worker.answer()  # it is ready
    kinds, digests = {}, {}
    for what, count, turns in (("decode", arguments.tokens, arguments.turns), ("prefill", 1, arguments.prefills)):
        if turns == 0:
            continue
        kinds[what] = "a token, batch 1" if what == "decode" else f"prefill of 4 x {arguments.context}"
        for _ in range(turns):
            for worker in workers:
                digests.setdefault((what, worker.turn(what, count)), set()).add(worker.name)
        digests[what, workers[0].turn(what, count)].add("plain")
    for worker in workers:
        worker.end()
    lines = table(workers, kinds)
    same = len(digests) == len(kinds)
    lines.append("what was computed: the same everywhere" if same else f"what was computed DIFFERS: {digests}")
    print("\n".join(lines))
    with open(os.path.join(arguments.out, "table.txt"), "w") as file:
        file.write("\n".join(lines) + "\n")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
