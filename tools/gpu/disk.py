#!/usr/bin/env python3
"""A language model whose compressed weights come from the disk for each token: how near to the disk's speed, how much
pinned memory, the same bits?

    python tools/gpu/disk.py OUTDIR [--build BUILD] [--work DIR] [--shape llama-3.1-8b] [--budget 4G] [--host-budget 1G]
        [--tokens 6] [--readers uring,preadv] [--least-share 0.85] [--device cuda|cpu]

Makes the model with random weights and packs it. Measures the disk on the packed files, out of the page cache: 8
reads of 4 MiB in flight, direct and through the page cache. Then infer.py runs plain, and paged with
CODEC_HOST_BUDGET and each reader of CODEC_IO. The files are dropped from the page cache before each run, and again
and again while it runs, twice in the time that the disk takes for all of them: so each token is from the disk. A row
for each run: are tokens and logits those of the plain program; tokens/s; GB that the kernel read from the device for
a token (/proc/PID/io) and that crossed the link; GB/s of the former, and as a share of the faster of the two speeds
of the disk; the peak of pinned memory as counted, and of what the kernel says is resident. Exit status 1 if bits
differ, a program fails, more is pinned than --host-budget, or the share is below --least-share, where that is given
(the aim is 0.85). --device cpu with a small shape tries it everywhere: the host's pager reads the files then, and
nothing is pinned."""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import mmap
import os
import subprocess
import sys
import threading
import time

import scenarios
import workers

INFER = os.path.join(scenarios.ROOT, "tools", "examples", "infer.py")
READ_BYTES, IN_FLIGHT, MEASURED_BYTES = 4 << 20, 8, 8 << 30
COLUMNS = {
    "bits": 6, "tokens/s": 8, "load s": 7, "read GB": 8, "link GB": 8, "GB/s": 6, "of disk": 8, "pinned MiB": 10,
    "RSS MiB": 8,
}  # fmt: skip


# --- the disk -------------------------------------------------------------------------------------------------


def drop(paths):
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_from_device(pid="self"):
    """Bytes that the kernel read from the device for a process; None: it is gone, or the kernel does not say."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/io") as file:
        return int(next(line.split()[1] for line in file if line.startswith("read_bytes:")))
    return None


def disk_speed(paths, direct):
    """GB/s of several large reads in flight, the files out of the page cache; 0: refused."""
    drop(paths)
    os.sync()
    drop(paths)
    todo, left = [], MEASURED_BYTES
    for path in paths:
        size = min(os.path.getsize(path), left)
        todo += [(path, at) for at in range(0, size, READ_BYTES)]
        left -= size
    try:
        descriptors = {path: os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0)) for path in paths}
    except OSError:
        return 0.0
    local = threading.local()

    def read(item):
        if not hasattr(local, "buffer"):
            local.buffer = mmap.mmap(-1, READ_BYTES)  # begins at a page, as direct reads want it
        return os.preadv(descriptors[item[0]], [local.buffer], item[1])

    begin = time.perf_counter()
    try:
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
            got = sum(pool.map(read, todo))
    except OSError:
        got = 0
    seconds = time.perf_counter() - begin
    for descriptor in descriptors.values():
        os.close(descriptor)
    return got / seconds / 1e9


# --- in a process of its own -----------------------------------------------------------------------------------


class Peak(threading.Thread):
    """The most that is pinned, asked for every 10 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self):
        while True:
            self.bytes = max(self.bytes, workers.counters().get("compressed", 0))
            time.sleep(0.01)


def work(arguments):
    """infer.py with its own arguments; what it read for each token goes to a file."""
    spec = importlib.util.spec_from_file_location("infer", INFER)
    infer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(infer)
    marks, peak = [], Peak()

    class Clock(infer.Clock):
        def put(self, value):
            super().put(value)
            counters = workers.counters()
            marks.append((time.perf_counter(), read_from_device() or 0, counters.get("link_bytes", 0)))

    infer.Clock = Clock
    sys.argv = [INFER, *arguments.infer]
    peak.start()
    infer.main()
    peak.bytes = max(peak.bytes, workers.counters().get("compressed", 0))
    with open(arguments.marks, "w") as file:
        json.dump({"marks": marks, "pinned": peak.bytes}, file)


# --- runs -------------------------------------------------------------------------------------------------------


class Beside(threading.Thread):
    """While a process runs: drops its files from the page cache every `every` seconds (0: never), and notes the most
    that is resident."""

    def __init__(self, pid, paths, every):
        super().__init__(daemon=True)
        self.pid, self.paths, self.every = pid, paths, every
        self.over, self.resident_kib = threading.Event(), 0

    def run(self):
        due = time.monotonic() + self.every
        while not self.over.wait(0.05):
            with contextlib.suppress(OSError, StopIteration), open(f"/proc/{self.pid}/status") as file:
                kib = int(next(line.split()[1] for line in file if line.startswith("VmRSS:")))
                self.resident_kib = max(self.resident_kib, kib)
            if self.every and time.monotonic() >= due:
                drop(self.paths)
                due = time.monotonic() + self.every


def run(arguments, name, model, environment, paths=(), every=0):
    """What infer.py reported, its logits, marks and peaks; {"failed": words}."""
    stem = os.path.join(arguments.work, "disk-" + name)
    log = os.path.join(arguments.out, name + ".log")
    command = [sys.executable, os.path.abspath(__file__), arguments.out, "--marks", stem + ".marks", "--infer"]
    command += ["--model", model, "--device", arguments.device, "--prompt", "ROMEO: what is it that you want?"]
    command += ["--max-new-tokens", str(arguments.tokens), "--min-new-tokens", str(arguments.tokens)]
    command += ["--attention", "eager", "--logits", stem + ".logits", "--report", stem + ".report"]
    drop(paths)
    with open(log, "w") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        beside = Beside(process.pid, paths, every)
        beside.start()
        try:
            code = process.wait(arguments.limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"no end in {arguments.limit:.0f} s"
        beside.over.set()
        beside.join()
    if code:
        return {"failed": f"FAILED with {code}; what it said is in {log}"}
    result = {"resident": beside.resident_kib << 10}
    for ending in ("report", "marks"):
        with open(f"{stem}.{ending}") as file:
            result.update(json.load(file))
    with open(stem + ".logits", "rb") as file:
        result["logits"] = file.read()
    for ending in ("report", "marks", "logits"):
        os.unlink(f"{stem}.{ending}")
    return result


def judge(arguments, result, plain, speed):
    """(cells of the row after the name, what is wrong)"""
    first, last, wrong = result["marks"][1], result["marks"][-1], []
    tokens = len(result["marks"]) - 2  # the prompt has a mark, and the time of the first token is not counted
    seconds, read, link = (b - a for a, b in zip(first, last))
    rate = read / seconds / 1e9
    same = all(result[key] == plain[key] for key in ("tokens", "logits"))
    if not same:
        wrong.append("OTHER BITS")
    cells = ["-" if result is plain else "same" if same else "OTHER", f"{tokens / seconds:.3f}"]
    cells += [f"{result['load_s']:.1f}", f"{read / tokens / 1e9:.2f}", f"{link / tokens / 1e9:.2f}"]
    cells += [f"{rate:.2f}", f"{rate / speed:.2f}" if result is not plain else "-"]
    cells += [f"{result['pinned'] / 2**20:.0f}", f"{result['resident'] / 2**20:.0f}"]
    if result["pinned"] > workers.size_of(arguments.host_budget):
        wrong.append(f"MORE PINNED THAN {arguments.host_budget}")
    if result is not plain and arguments.least_share and rate / speed < arguments.least_share:
        wrong.append(f"LESS THAN {arguments.least_share:g} OF THE DISK")
    return cells, wrong


def line(cells):
    return f"{cells[0]:<14}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def prepare(arguments):
    """(plain directory, packed directory, the packed files)"""
    plain = os.path.join(arguments.work, arguments.shape)
    if arguments.shape == "bard":
        plain = scenarios.make_model(arguments, "bard")[0]
    elif not os.path.isdir(plain):
        maker = os.path.join(scenarios.ROOT, "tools", "examples", "make_model.py")
        command = [sys.executable, maker, "--shape", arguments.shape, "--device", arguments.device, plain]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    packed = workers.packed(arguments, plain)
    names = sorted(name for name in os.listdir(packed) if name.endswith(".safetensors"))
    return plain, packed, [os.path.join(packed, name) for name in names]


def rows(arguments, say):
    """Says all; True: something is wrong."""
    plain_directory, packed, paths = prepare(arguments)
    total = sum(os.path.getsize(path) for path in paths)
    speeds = [disk_speed(paths, direct) for direct in (True, False)]
    speed = max(speeds)
    say(f"{total / 1e9:.2f} GB packed; disk, 8 reads of 4 MiB in flight: direct {speeds[0]:.2f} GB/s, through the page "
        f"cache {speeds[1]:.2f} GB/s")  # fmt: skip
    if speed == 0:
        say("FAIL: the packed files cannot be read")
        return True
    say(f"budget {arguments.budget}, pinned {arguments.host_budget}; read, link: GB for a token")
    say(line([f"{arguments.tokens} tokens", *COLUMNS]))
    plain = run(arguments, "plain", plain_directory, scenarios.environment(arguments, None))
    if "failed" in plain:
        say(f"plain          {plain['failed']}")
        return True
    say(line(["plain", *judge(arguments, plain, plain, speed)[0]]))
    bad = False
    for reader in arguments.readers:
        environment = scenarios.environment(arguments, arguments.budget)
        environment.update(CODEC_IO=reader, CODEC_HOST_BUDGET=arguments.host_budget)
        result = run(arguments, reader, packed, environment, paths, total / speed / 2e9)
        if "failed" in result:
            say(f"{reader:<14} {result['failed']}")
            bad = True
            continue
        cells, wrong = judge(arguments, result, plain, speed)
        say(line([reader, *cells]) + "".join(f" {words}" for words in wrong))
        bad |= bool(wrong)
    return bad


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--shape", default="llama-3.1-8b", help="of tools/examples/make_model.py, or bard")
    parser.add_argument("--budget", default="4G")
    parser.add_argument("--host-budget", default="1G")
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--readers", default="uring,preadv", type=lambda text: text.split(","))
    parser.add_argument("--least-share", type=float, default=0, help="of the disk's speed; 0: any will do")
    parser.add_argument("--limit", type=float, default=240, help="seconds that a program may take (%(default)s)")
    parser.add_argument("--marks", help=argparse.SUPPRESS)  # these two in the processes that this one starts
    parser.add_argument("--infer", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tokens < 3:
        parser.error("--tokens is at least 3: the first one is not counted")
    if arguments.marks:
        work(arguments)
        return
    workers.make_directories(arguments)
    with workers.table(arguments) as say:
        bad = rows(arguments, say)
    sys.exit(bad)


if __name__ == "__main__":
    main()
