"""What tools that run a program plain and paged, each in a process of its own, have in common: the packed model, the
process, the counters that it reads of the shim, and the table of what it said."""

import argparse
import contextlib
import ctypes
import json
import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODES = ("lossless", "q8", "q6")
UNITS = {"K": 10, "M": 20, "G": 30}


def parser(document):
    """Of a tool's command line: its help is the document, and it takes what all of them do."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("out")
    made.add_argument("--build", default=os.path.join(ROOT, "build"))
    made.add_argument("--work", default="/tmp/codecllm-check")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return made


def make_directories(arguments):
    """Where a tool writes, and where its models are."""
    for directory in (arguments.out, arguments.work):
        os.makedirs(directory, exist_ok=True)


def size_of(text):
    """Bytes of a size as CODEC_VRAM_BUDGET takes it. ValueError: it is none."""
    unit = UNITS.get(text[-1:].upper(), 0)
    return int(float(text[:-1] if unit else text) * 2**unit)


def packed(arguments, directory):
    """The packed form of a model, beside it; made if it is not there."""
    if not os.path.isdir(directory + ".packed"):
        command = [os.path.join(arguments.build, "bin", "codecllm"), "pack", directory, directory + ".packed"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return directory + ".packed"


def modes(text):
    """Of --modes: in which ways models are packed."""
    chosen = text.split(",")
    if wrong := set(chosen) - set(MODES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(wrong))}: use {', '.join(MODES)}")
    return chosen


def stores(arguments, directory, mode):
    """(the model that the plain program reads, the packed one). Of a lossy mode the plain program reads the unpacked
    store: the values that the packed one decodes to, as ordinary files."""
    if mode == "lossless":
        return directory, packed(arguments, directory)
    command = [os.path.join(arguments.build, "bin", "codecllm")]
    store, values = f"{directory}.{mode}.packed", f"{directory}.{mode}.unpacked"
    if not os.path.isdir(store):
        subprocess.run([*command, "pack", "--mode", mode, directory, store], check=True, stderr=subprocess.DEVNULL)
    if not os.path.isdir(values):
        subprocess.run([*command, "unpack", store, values], check=True, stderr=subprocess.DEVNULL)
    return values, store


def named(name, mode):
    """Of a run: lossless is not said."""
    return name if mode == "lossless" else f"{name} {mode}"


def ask_shim(function):
    """In the process of a program: what a function of the shim tells; None: there is no shim."""
    with contextlib.suppress(AttributeError):
        tell = getattr(ctypes.CDLL(None), function)
        tell.restype, tell.argtypes = ctypes.c_size_t, (ctypes.c_char_p, ctypes.c_size_t)
        text = ctypes.create_string_buffer(1 << 16)
        tell(text, len(text))
        return json.loads(text.value)
    return None


def counters():
    """In the process of a program. Of the shim's first GPU; {}: there is no shim, or no GPU."""
    devices = ask_shim("codecllm_gpu_stats_json")
    return devices[0] if devices else {}


def host_counters():
    """In the process of a program. Of paging in host memory; {}: there is no shim."""
    return ask_shim("codecllm_stats_json") or {}


def run(arguments, stem, command, environment, why="what it said is in {log}".format, timeout=None):
    """What the program printed in its last line, JSON, and on a GPU the peak that was seen from outside, in MiB, and
    what was taken before; {"failed": words}: it did not end well, and why(log=PATH). Its output is in STEM.json and
    STEM.log, in OUTDIR."""
    stem = os.path.join(arguments.out, stem)
    log, watch = stem + ".log", contextlib.nullcontext()
    if arguments.device == "cuda":
        import check

        watch = check.DeviceMemory()
    with watch, open(log, "w") as said:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"FAILED: not done in {timeout:.0f} s; {why(log=log)}"}
    if done.returncode:
        return {"failed": f"FAILED with {done.returncode}; {why(log=log)}"}
    with open(stem + ".json", "w") as file:
        file.write(done.stdout)
    result = json.loads(done.stdout.splitlines()[-1])
    if arguments.device == "cuda":
        result["peak_mib"], result["before_mib"] = watch.peak, watch.before
    return result


@contextlib.contextmanager
def table(arguments):
    """A function that prints a line, and writes it to OUTDIR/table.txt."""
    with open(os.path.join(arguments.out, "table.txt"), "w") as file:

        def say(words):
            print(words, flush=True)
            print(words, file=file, flush=True)

        yield say


def say_link(arguments, say):
    """The speed of the link, which what is paged is to be compared with."""
    if arguments.device == "cuda":
        import check

        say(f"link, pinned memory to the device: {check.link_speed()} GB/s")
