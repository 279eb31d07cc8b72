#!/usr/bin/env python3
"""Several processes on one GPU, each with a budget of its own: the same bits, within their budgets, though one is
killed?

    python tools/gpu/tenants.py OUTDIR [--build BUILD] [--work DIR] [--shape tinyllama-1.1b] [--processes 2,3]
        [--models same,different] [--budget 1100M] [--tokens 16] [--auto] [--device cuda|cpu]

Makes two models of the shape and packs them. A case for each number of processes: all of one packed model, or the last
of another one (--models). Each process generates the same tokens round after round. The first one does so alone while
the others rest, then all do; the first is killed with SIGKILL in the middle of a round; the others go on; a new one
takes its place. A row for each process: are tokens and logits of all rounds those of the plain program; tokens/s alone,
beside the others, and after the kill (medians of rounds). A line for each case: the peak of device memory that
nvidia-smi shows less what was there before, the sum of the budgets, what the killed one had and what came back. On
every machine what is resident (Rss), and the part of it that belongs to a process if what is shared is divided (Pss),
and how much of the packed files is in the page cache, once for all.

On a GPU, too (--no-auto leaves it out): one process with CODEC_VRAM_BUDGET=auto beside one whose budget is raised by
`codecllm budget`, which then takes as much memory: auto gives way, and nobody fails.

Exit status 1 if bits differ, a process fails, the peak is over the sum of the budgets and a context each, less than
nine tenths of a killed one's memory come back within 10 s, or auto does not give way by half of what the other one
took. --device cpu tries it everywhere: budgets bound host memory then (a shape of `bard` is the small model of the
tests), and no device memory is measured."""

import argparse
import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time

import scenarios
import workers

MIB = 2**20
CONTEXT_MIB = 700  # of device memory, for each process
PROMPT = "ROMEO: what is it that you want?"
COLUMNS = {"model": 5, "bits": 7, "rounds": 7, "alone": 7, "beside": 7, "after": 7, "Rss MiB": 8, "Pss MiB": 8}


# --- in a process of its own --------------------------------------------------------------------------------


def tell(**facts):
    print(json.dumps(facts), flush=True)


def play(model, inputs, tokens):
    """Tokens and logits of one round, as a digest."""
    import torch

    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        logits = model(**inputs).logits.contiguous().cpu()
    digest = hashlib.sha256(repr(made.tolist()).encode())
    digest.update(logits.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def serve(arguments):
    """Loads, then does what each line of stdin says: `go` (rounds until the next line), `rest`, `take BYTES` (of device
    memory, kept), `end`. Prints a line of JSON for each thing done."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = queue.SimpleQueue()
    threading.Thread(target=lambda: [lines.put(line.split()) for line in sys.stdin], daemon=True).start()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto", attn_implementation="eager")
    model = model.to(arguments.device).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt").to(arguments.device)
    inputs.pop("token_type_ids", None)
    kept, going = [], False
    tell(did="load")
    while True:
        with contextlib.suppress(queue.Empty):
            words = lines.get(block=not going)
            going = words[0] == "go"
            if words[0] == "end":
                return
            if words[0] == "rest":
                tell(did="rest")
            if words[0] == "take":
                step = 256 * MIB
                kept += [torch.zeros(step, dtype=torch.uint8, device="cuda") for _ in range(int(words[1]) // step)]
                torch.cuda.synchronize()
                tell(did="take")
        if going:
            tell(did="begin")
            begin = time.perf_counter()
            digest = play(model, inputs, arguments.tokens)
            seconds = time.perf_counter() - begin
            tell(did="round", digest=digest, tokens_per_s=arguments.tokens / seconds, gpu=workers.counters())


# --- tenants ------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A line that says what went wrong."""


class Tenant:
    """A process that serves. Its rounds so far, by phase."""

    def __init__(self, arguments, name, which, budget):
        self.arguments, self.name, self.which, self.phase, self.rounds = arguments, name, which, "alone", []
        self.log = os.path.join(arguments.out, name.replace(" ", "-") + ".log")
        packed = arguments.packed[which] if budget else arguments.plain[which]
        command = [sys.executable, os.path.abspath(__file__), arguments.out, "--model", packed]
        command += ["--device", arguments.device, "--tokens", str(arguments.tokens)]
        environment = scenarios.environment(arguments, budget)
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(arguments.processes)))
        with open(self.log, "w") as said:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )
        self.told = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for text in self.process.stdout:
            with contextlib.suppress(ValueError):  # the last line of one that is killed may be cut
                self.told.put(json.loads(text))
        self.told.put(None)

    def say(self, words):
        try:
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failed(f"{self.name}: {error}; what it said is in {self.log}") from None

    def wait(self, did):
        """The next line that says so; rounds before it are noted."""
        end = time.monotonic() + self.arguments.limit
        while True:
            try:
                facts = self.told.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name}: no `{did}` in {self.arguments.limit:.0f} s") from None
            if facts is None:
                code = self.process.wait()
                raise Failed(f"{self.name}: ended with {code}; what it said is in {self.log}")
            if facts["did"] == "round":
                self.rounds.append((self.phase, facts))
            if facts["did"] == did:
                return facts

    def catch_up(self, phase):
        """What it did so far belongs to the phase before."""
        while not self.told.empty():
            facts = self.told.get()
            if facts is None:
                raise Failed(f"{self.name}: ended with {self.process.wait()}; what it said is in {self.log}")
            if facts["did"] == "round":
                self.rounds.append((self.phase, facts))
        self.phase = phase

    def some_rounds(self, phase, count=2):
        """Until it has done so many whole rounds in a new phase: one that has begun before does not count."""
        self.catch_up(phase)
        if self.rounds:
            self.wait("begin")
        for _ in range(count):
            self.wait("round")

    def speed(self, phase):
        counted = self.rounds[1:]  # in the first one the program and the pager are new to each other
        found = [facts["tokens_per_s"] for of, facts in counted if of == phase]
        return f"{statistics.median(found):.2f}" if found else "-"

    def memory(self):
        """(Rss, Pss) in MiB, or dashes."""
        with contextlib.suppress(OSError), open(f"/proc/{self.process.pid}/smaps_rollup") as file:
            values = dict(line.split()[:2] for line in file if line.startswith(("Rss:", "Pss:")))
            return [f"{int(values[key]) / 1024:.0f}" for key in ("Rss:", "Pss:")]
        return ["-", "-"]

    def end(self):
        self.say("end")
        code = self.process.wait(self.arguments.limit)
        if code:
            raise Failed(f"{self.name}: ended with {code}; what it said is in {self.log}")

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def cached_mib(directory):
    """MiB of a directory's packed files that are in the page cache."""
    libc, pages = ctypes.CDLL(None, use_errno=True), 0
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    for name in os.listdir(directory):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(directory, name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            view = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            held = ctypes.c_char.from_buffer(view)
            found = ctypes.create_string_buffer((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE)
            if libc.mincore(ctypes.addressof(held), size, found) == 0:
                pages += sum(byte & 1 for byte in found.raw)
            del held
            view.close()
    return pages * mmap.PAGESIZE / MIB


class Device:
    """MiB of device memory in use, as seen from outside; nothing where there is no GPU."""

    def __init__(self, arguments):
        self.cuda = arguments.device == "cuda"
        self.watch, self.before = contextlib.nullcontext(), 0
        if self.cuda:
            import check

            self.watch = check.DeviceMemory()
            self.before = self.watch.now()

    def used(self):
        return self.watch.now() - self.before if self.cuda else 0

    def wait_for(self, most):
        """Until no more is in use, but 10 s at most; what is."""
        end = time.monotonic() + 10
        while self.used() > most and time.monotonic() < end:
            time.sleep(0.2)
        return self.used()


# --- cases --------------------------------------------------------------------------------------------------


def row(cells):
    return f"{cells[0]:<22}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def judge(tenant, digests, say, memory):
    """Says its row. True: something is wrong."""
    same = bool(tenant.rounds) and all(facts["digest"] == digests[tenant.which] for _, facts in tenant.rounds)
    cells = [tenant.name, "AB"[tenant.which], "same" if same else "OTHER", len(tenant.rounds)]
    say(row([*cells, *(tenant.speed(phase) for phase in ("alone", "beside", "after")), *memory]))
    return not same


def kill(tenant, device):
    """In the middle of a round. (MiB that it had, MiB that came back)"""
    tenant.catch_up(tenant.phase)
    seconds = tenant.arguments.tokens / tenant.rounds[-1][1]["tokens_per_s"]
    tenant.wait("begin")
    time.sleep(seconds / 2)
    had = tenant.rounds[-1][1]["gpu"].get("peak", 0) / MIB
    before = device.used()
    tenant.process.send_signal(signal.SIGKILL)
    tenant.process.wait()
    after = device.wait_for(before - had)
    return had, before - after


def case(arguments, name, whiches, digests, say):
    """True: something is wrong."""
    device, bad = Device(arguments), False
    tenants = [Tenant(arguments, f"{name} {i + 1}", which, arguments.budget) for i, which in enumerate(whiches)]
    everyone = list(tenants)
    try:
        with device.watch:
            for tenant in tenants:
                tenant.wait("load")
            tenants[0].say("go")
            tenants[0].some_rounds("alone")
            for tenant in tenants[1:]:
                tenant.phase = "beside"
                tenant.say("go")
            for tenant in tenants:
                tenant.some_rounds("beside")
            memory = [tenant.memory() for tenant in tenants]
            cached = sum(cached_mib(arguments.packed[which]) for which in set(whiches))
            had, back = kill(tenants[0], device)
            for tenant in tenants[1:]:
                tenant.some_rounds("after")
            new = Tenant(arguments, f"{name} new", whiches[0], arguments.budget)
            everyone.append(new)
            new.wait("load")
            new.phase = "after"
            new.say("go")
            new.some_rounds("after")
            memory.append(new.memory())
            for tenant in everyone[1:]:
                tenant.end()
        for tenant, of_it in zip(everyone, memory):
            bad |= judge(tenant, digests, say, of_it)
        words = f"{name}: {cached:.0f} MiB of the packed files in the page cache, once"
        if device.cuda:
            each = workers.size_of(arguments.budget) // MIB
            words += f"; device: peak {device.watch.peak} MiB, budgets {each} MiB each; "
            words += f"the killed one had {had:.0f} MiB and its context, {back:.0f} MiB came back"
            most = len(whiches) * (workers.size_of(arguments.budget) / MIB + CONTEXT_MIB)
            wrong = ["OVER THE BUDGETS"] * (device.watch.peak > most) + ["NOT ALL CAME BACK"] * (back < 0.9 * had)
            words += "".join(f" {text}" for text in wrong)
            bad |= bool(wrong)
        say(words)
    except Failed as error:
        say(f"{name}: FAILED: {error}")
        bad = True
    finally:
        for tenant in everyone:
            tenant.stop()
    return bad


def auto_case(arguments, digests, say):
    """One with auto beside one that grows. True: something is wrong."""
    import check

    more, bad = 8 << 30, False
    first = Tenant(arguments, "auto", 0, "auto")
    second = Tenant(arguments, "grows", 0, arguments.budget)
    tenants = [first, second]
    try:
        for tenant in tenants:
            tenant.wait("load")
            tenant.phase = "beside"
            tenant.say("go")
        for tenant in tenants:
            tenant.some_rounds("beside")
        before = first.rounds[-1][1]["gpu"]["budget"]
        command = [os.path.join(arguments.build, "bin", "codecllm"), "budget", str(second.process.pid)]
        grown = str(workers.size_of(arguments.budget) + more)
        done = subprocess.run([*command, grown], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"codecllm budget: {done.stderr.strip()}")
        second.say(f"take {more}")
        second.wait("take")
        second.say("go")
        time.sleep(3)  # auto looks once a second
        for tenant in tenants:
            tenant.some_rounds("after")
        after, used = first.rounds[-1][1]["gpu"]["budget"], check.DeviceMemory.now()
        for tenant in tenants:
            memory = tenant.memory()
            tenant.end()
            bad |= judge(tenant, digests, say, memory)
        wrong = before - after < more / 2  # less by what its margin may move
        say(f"auto: {before // MIB} MiB at first, {after // MIB} MiB after the other one took {more // MIB} MiB; "
            f"{used} MiB of the device are in use" + " AUTO DID NOT GIVE WAY" * wrong)  # fmt: skip
        bad |= wrong
    except Failed as error:
        say(f"auto: FAILED: {error}")
        bad = True
    finally:
        for tenant in tenants:
            tenant.stop()
    return bad


# --- all of it ----------------------------------------------------------------------------------------------


def prepare(arguments):
    """Two models, plain and packed."""
    maker = os.path.join(scenarios.ROOT, "tools", "examples", "make_model.py")
    for seed in (1, 2) if "different" in arguments.models else (1,):
        if seed == 1:
            plain, packed, _ = scenarios.make_model(arguments, arguments.shape)
        else:
            shape = "tiny" if arguments.shape == "bard" else arguments.shape
            plain = os.path.join(arguments.work, f"{shape}-seed{seed}")
            if not os.path.isdir(plain):
                command = [sys.executable, maker, "--shape", shape, "--seed", str(seed), plain]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            packed = workers.packed(arguments, plain)
        arguments.plain.append(plain)
        arguments.packed.append(packed)


def reference(arguments, which):
    """The digest of the plain program's rounds."""
    tenant = Tenant(arguments, f"plain {'AB'[which]}", which, None)
    try:
        tenant.wait("load")
        tenant.say("go")
        digest = tenant.wait("round")["digest"]
        tenant.end()
    finally:
        tenant.stop()
    return digest


def rows(arguments, say):
    """True: something is wrong."""
    try:
        digests = [reference(arguments, which) for which in range(len(arguments.packed))]
    except Failed as error:
        say(f"FAILED: {error}")
        return True
    say(f"budget {arguments.budget} each, {arguments.tokens} tokens a round; tokens/s alone, beside, after a kill")
    say(row(["process", *COLUMNS]))
    bad = False
    for count in arguments.processes:
        if "same" in arguments.models:
            bad |= case(arguments, f"{count} same", [0] * count, digests, say)
        if "different" in arguments.models:
            bad |= case(arguments, f"{count} different", [0] * (count - 1) + [1], digests, say)
    if arguments.device == "cuda" and arguments.auto:
        bad |= auto_case(arguments, digests, say)
    return bad


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of tools/examples/make_model.py, or bard")
    parser.add_argument("--processes", default="2,3", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--models", default="same,different", type=lambda text: text.split(","))
    parser.add_argument("--budget", default="1100M")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--auto", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--limit", type=float, default=180, help="seconds that a step may take (%(default)s)")
    parser.add_argument("--model", help=argparse.SUPPRESS)  # in the processes that this one starts
    arguments = parser.parse_args()
    if arguments.model:
        serve(arguments)
        return
    if min(arguments.processes) < 2:
        parser.error("--processes: one is killed, so there have to be two")
    arguments.plain, arguments.packed = [], []
    workers.make_directories(arguments)
    prepare(arguments)
    with workers.table(arguments) as say:
        bad = rows(arguments, say)
        say("SOMETHING IS WRONG" if bad else "all right")
    sys.exit(bad)


if __name__ == "__main__":
    main()
