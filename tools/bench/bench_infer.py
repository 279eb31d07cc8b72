#!/usr/bin/env python3
"""Runs infer.py from a plain model and, under the shim, from its packed form at several budgets; compares tokens and
logits bit for bit and prints a table.

    python tools/bench/bench_infer.py --model DIR [--packed DIR] [--budgets 100,50,25] [--tokens 16]

The peak is measured from outside: the resident bytes of the views' entries in /proc/PID/smaps, sampled while the
program runs. Cold runs start with the model's files out of the page cache."""

import argparse
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VIEW_NAME = b"codecllm view"


def find_command(given=None):
    for path in (given, os.path.join(ROOT, "build", "bin", "codecllm"), shutil.which("codecllm")):
        if path and os.access(path, os.X_OK):
            return os.path.abspath(path)
    sys.exit("bench_infer.py: the codecllm command was not found; build it or name it with --command")


def view_rss(pid):
    """Resident bytes of the views of a process now; 0 when it is gone. A view is known by its name, where the kernel
    keeps names of anonymous memory, by being registered with userfaultfd (flags um and uw), or by being /dev/zero (the
    sigsegv rung), as nothing else is in such a program."""
    total = rss = 0
    named = False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as smaps:
            for line in smaps:
                if line.startswith(b"VmFlags:"):  # the last line of a mapping
                    flags = line.split()
                    if named or b"um" in flags or b"uw" in flags:
                        total += rss
                elif line.startswith(b"Rss:"):
                    rss = int(line.split()[1]) * 1024
                elif line[:1] in b"0123456789abcdef":  # the first line of a mapping; names of details start upper-case
                    named, rss = VIEW_NAME in line or line.endswith(b" /dev/zero\n"), 0
    except OSError:
        pass
    return total


def stop(pid):
    """Stops a process and waits until every thread of it stands still. False when it is gone."""
    try:
        os.kill(pid, signal.SIGSTOP)
        for task in os.listdir(f"/proc/{pid}/task"):
            state = b"R"
            while state not in b"TtZX":
                with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                    state = file.read().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return True


class Sampler(threading.Thread):
    """The most view_rss() of a process until stop(). The kernel walks a large mapping for many milliseconds and counts
    what is dropped behind its back and what is filled ahead of it; `exact` stops the process for each sample, which
    shows the truth and slows the process down."""

    def __init__(self, pid, exact=False):
        super().__init__(daemon=True)
        self.pid, self.exact, self.interval_s, self.peak_bytes, self.samples = (
            pid,
            exact,
            0.05 if exact else 0.002,
            0,
            0,
        )
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(self.interval_s):
            if self.exact and not stop(self.pid):
                continue
            self.peak_bytes = max(self.peak_bytes, view_rss(self.pid))
            self.samples += 1
            if self.exact:
                try:
                    os.kill(self.pid, signal.SIGCONT)
                except OSError:
                    pass

    def stop(self):
        self.over.set()
        self.join()


def forget_cache(directory):
    """Takes a model's files out of the page cache."""
    for path in glob.glob(os.path.join(directory, "*.safetensors")):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def parse_stats(text):
    """The counters of the CODEC_STATS=1 table, sizes in bytes: {"faults": 12, "read_bytes": 1048576, ...}."""
    found = {}
    for name, number, unit in re.findall(r"^codecllm:   ([a-z ]+?) +([0-9.]+)( MiB)?$", text, re.MULTILINE):
        name = name.replace(" ", "_")
        if unit:
            found[name + "_bytes"] = int(float(number) * (1 << 20))
        else:
            found[name] = int(number)
    return found


def run_infer(model, args, prefix=(), budget=None, variables=()):
    """One run of infer.py. Returns its report with "peak_bytes", "stats", "logits" and "talk", its stderr.

    variables: NAME=VALUE pairs for its environment."""
    with tempfile.TemporaryDirectory() as scratch:
        report, logits = os.path.join(scratch, "report"), os.path.join(scratch, "logits")
        command = [
            *prefix,
            sys.executable,
            os.path.join(ROOT, "tools", "examples", "infer.py"),
            "--model",
            model,
            "--prompt",
            args.prompt,
            "--max-new-tokens",
            str(args.tokens),
            "--min-new-tokens",
            str(args.tokens),
            "--device",
            "cpu",
            "--logits",
            logits,
            "--report",
            report,
        ]
        if args.threads:
            command += ["--threads", str(args.threads)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CODEC_")}
        if budget:
            environment.update(CODEC_VRAM_BUDGET=str(budget), CODEC_STATS="1")
        environment.update(pair.split("=", 1) for pair in variables)
        with open(os.path.join(scratch, "stderr"), "w+b") as stderr:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
            sampler = Sampler(process.pid, getattr(args, "exact_peak", False))
            sampler.start()
            code = process.wait()
            sampler.stop()
            stderr.seek(0)
            talk = stderr.read().decode(errors="replace")
        if code != 0:
            sys.exit(f"bench_infer.py: {' '.join(command)}: exit status {code}\n{talk[-4000:]}")
        with open(report) as file:
            result = json.load(file)
        with open(logits, "rb") as file:
            result["logits"] = file.read()
    rung = re.search(r"^codecllm: paging of this process \((.*)\)$", talk, re.MULTILINE)
    result.update(peak_bytes=sampler.peak_bytes, samples=sampler.samples, stats=parse_stats(talk))
    result["rung"] = rung.group(1) if rung else None
    result["talk"] = talk
    return result


def logical_bytes(command, packed):
    text = subprocess.run([command, "inspect", "--json", packed], check=True, capture_output=True).stdout
    return json.loads(text)["totals"]["logical_bytes"]


def size(count):
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def print_table(rows):
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip(), flush=True)


def main():
    parser = argparse.ArgumentParser(description="Compare infer.py from plain and from packed files.")
    parser.add_argument("--model", required=True, metavar="DIR", help="plain model directory")
    parser.add_argument("--packed", metavar="DIR", help="packed form (default: made for the run, then removed)")
    parser.add_argument("--budgets", default="100,50,25", help="in percent of the logical size (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--prompt", default="ROMEO:")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads of torch")
    parser.add_argument("--cold", action="store_true", help="also run each with the files out of the page cache")
    parser.add_argument("--command", metavar="PATH", help="the codecllm command (default: build/bin, then PATH)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the runs under the shim")
    parser.add_argument("--exact-peak", action="store_true", help="stop the program for each sample of its peak")
    parser.add_argument("--json", metavar="FILE", help="write all results")
    args = parser.parse_args()
    command = find_command(args.command)

    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(args.model))) as scratch:
        packed = args.packed or os.path.join(scratch, "packed")
        if not args.packed:
            subprocess.run([command, "pack", args.model, packed], check=True)
        logical = logical_bytes(command, packed)
        plain = run_infer(args.model, args)
        print(f"{args.model}: {size(logical)} logical, {args.tokens} tokens", flush=True)
        heads = [
            "budget",
            "cache",
            "same",
            "tokens/s",
            "of plain",
            "faults",
            "read",
            "evictions",
            "peak (smaps)",
            "load s",
            "first token s",
        ]
        rows = [
            heads,
            [
                "plain",
                "warm",
                "-",
                f"{plain['tokens_per_s']:.2f}",
                "1.00",
                "-",
                "-",
                "-",
                "-",
                f"{plain['load_s']:.2f}",
                f"{plain['first_token_s']:.2f}",
            ],
        ]
        results, wrong = [{**plain, "logits": None, "budget": None}], 0
        for percent in args.budgets.split(","):
            for cold in (False, True) if args.cold else (False,):
                budget = logical * int(percent) // 100
                if cold:
                    forget_cache(packed)
                run = run_infer(packed, args, (command, "run", "--"), budget, args.env)
                same = run["tokens"] == plain["tokens"] and run["logits"] == plain["logits"]
                wrong += not same
                stats = run["stats"]
                rows.append(
                    [
                        f"{percent} % ({size(budget)})",
                        "cold" if cold else "warm",
                        "yes" if same else "NO",
                        f"{run['tokens_per_s']:.2f}",
                        f"{run['tokens_per_s'] / plain['tokens_per_s']:.2f}",
                        str(stats.get("faults", "-")),
                        size(stats["read_bytes"]) if "read_bytes" in stats else "-",
                        str(stats.get("evictions", "-")),
                        size(run["peak_bytes"]) if run["peak_bytes"] else "not seen",
                        f"{run['load_s']:.2f}",
                        f"{run['first_token_s']:.2f}",
                    ]
                )
                results.append({**run, "logits": None, "budget": budget, "cold": cold, "same": same})
        print_table(rows)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"logical_bytes": logical, "runs": results}, file, indent=1)
    if wrong:
        sys.exit(f"bench_infer.py: {wrong} run(s) differ from the plain one")


if __name__ == "__main__":
    main()
