#!/usr/bin/env python3
"""CodecLLM's lossless codec beside zipnn's on the CPU: the size of the file, packing and reading, one core, same bytes.

    python tools/bench/peers/codecs.py OUTDIR [--build BUILD] [--work DIR] [--weights 32 | --model FILE.safetensors]
        [--repeat 9] [--wheels DIR] [--no-install]

The input is a safetensors file of bf16 tensors: one with N(0, 0.02) that is made here (so many Mi weights), or that of
--model. The size of CodecLLM's file is that of the store on the disk, everything counted; of zipnn's the sum of what
compress() gives for each tensor. Speeds are decoded bytes a second of processor time: CodecLLM's as bench_codec has
them (checksum and validation included, for each decoder that runs here); zipnn's of decompress() and compress(), the
middle of --repeat. They give back fresh memory at each call, which the kernel has to clear: `user` leaves that time
out, `all` has it. zipnn is installed (with a compiler) into an environment of its own, WORK/venv; where that cannot be
done, its row says why.

Prints a table last, OUTDIR/codecs.txt; exit status 1 if something that was decoded is not what was encoded."""

import argparse
import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time

import install
import models

HERE = os.path.abspath(__file__)
ZIPNN = "zipnn==0.5.4"
MIB = 2**20


def tensors_of(path):
    """The bytes of each tensor of a safetensors file. ValueError: one is not of bf16."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        begin = file.tell()
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise ValueError(f"{path}: {name} is {entry['dtype']}; zipnn is asked for bf16 here")
            file.seek(begin + entry["data_offsets"][0])
            yield file.read(entry["data_offsets"][1] - entry["data_offsets"][0])


def make(path, weights):
    """A file with one tensor of bf16, N(0, 0.02), rows of 4096."""
    import numpy as np

    values = np.random.default_rng(1).standard_normal(weights, dtype=np.float32) * 0.02
    bits = values.view(np.uint32)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    entry = {"dtype": "BF16", "shape": [weights // 4096, 4096], "data_offsets": [0, 2 * weights]}
    header = json.dumps({"weights": entry}).encode()
    header += b" " * (-len(header) % 8)
    with open(path + ".part", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(halves.tobytes())
    os.rename(path + ".part", path)


def timed(function):
    """(what it gives, seconds of the processor for the program, and with the kernel)"""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = function()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user = after.ru_utime - before.ru_utime
    return result, user, user + after.ru_stime - before.ru_stime


def zipnn(path, repeat):
    """In a process of its own: what it measured, as JSON. Seconds are summed over the tensors of each pass."""
    import zipnn as package

    tensors, stored, packs, reads, right = list(tensors_of(path)), 0, [], [], True
    coder = package.ZipNN(bytearray_dtype="bfloat16", threads=1)
    packed = [bytes(coder.compress(bytearray(tensor))) for tensor in tensors]  # it uses what it is given as scratch
    stored = sum(map(len, packed))
    right = all(bytes(coder.decompress(bytes(p))) == tensor for p, tensor in zip(packed, tensors))
    for _ in range(repeat):
        copies = [bytearray(tensor) for tensor in tensors]
        packs.append([sum(t) for t in zip(*(timed(lambda c=c: coder.compress(c))[1:] for c in copies))])
        reads.append([sum(t) for t in zip(*(timed(lambda p=p: coder.decompress(p))[1:] for p in packed))])
    middle = [[statistics.median(run[i] for run in runs) for i in range(2)] for runs in (packs, reads)]
    return {"bytes": stored, "raw": sum(map(len, tensors)), "right": right, "pack": middle[0], "read": middle[1]}


def codecllm(arguments, path):
    """(bytes of the store, MB/s of packing, MB/s of reading by decoder). CalledProcessError: it failed."""
    out = os.path.join(arguments.work, "codecs.packed.safetensors")
    command = os.path.join(arguments.build, "bin", "codecllm")
    for old in (out, out + ".plain"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old)
    subprocess.run([command, "pack", "--quiet", path, out], check=True)
    subprocess.run([command, "verify", "--quiet", out], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([command, "unpack", "--quiet", out, out + ".plain"], check=True)
    same = subprocess.run(["cmp", "-s", path, out + ".plain"]).returncode == 0
    size = os.path.getsize(out)
    os.unlink(out)
    os.unlink(out + ".plain")
    bench = [os.path.join(arguments.build, "bin", "bench_codec"), path, "--lossless", "--no-19"]
    bench += ["--repeat", str(arguments.repeat)]
    said = subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True).stdout
    pack = float(re.search(r"^codecllm lossless +\S+ +(\d+)", said, re.M)[1])
    reads = {name: float(speed) for name, speed in re.findall(r"^ +decoder (\S+) +(\d+) ", said, re.M)}
    return size, pack, reads, same


def theirs(arguments, path):
    """What zipnn() measured, or {"failed": words}."""
    python = sys.executable
    if arguments.install:
        python = install.make(os.path.join(arguments.work, "venv"))
        with open(os.path.join(arguments.out, "install.log"), "w") as log:
            why = install.install(python, [ZIPNN], arguments.wheels, log)
        if why:
            return {"failed": f"not installed: {why}"}
    command = [python, HERE, arguments.out, "--zipnn", path, "--repeat", str(arguments.repeat)]
    log = os.path.join(arguments.out, "zipnn.log")
    with open(log, "w") as said:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=said, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": f"see {log}"}


def table(arguments, path):
    """(lines, is something wrong)"""
    size, pack, reads, same = codecllm(arguments, path)
    peer = theirs(arguments, path)
    raw = sum(map(len, tensors_of(path)))
    lines = [f"{raw / MIB:.0f} MiB of bf16, one core, MB/s of decoded bytes", f"{'':<26} bits/w    pack    read"]
    for name, speed in reads.items():
        lines.append(f"{'CodecLLM, ' + name:<26} {16 * size / raw:6.3f} {pack:7.0f} {speed:7.0f}")
    if "failed" in peer:
        return [*lines, f"{'zipnn':<26} {peer['failed']}"], not same
    for i, words in enumerate(("zipnn, user", "zipnn, all")):
        cells = f"{16 * peer['bytes'] / raw:6.3f} {raw / peer['pack'][i] / 1e6:7.0f} {raw / peer['read'][i] / 1e6:7.0f}"
        lines.append(f"{words:<26} {cells}")
    lines.append(f"CodecLLM's file is {100 * (size / peer['bytes'] - 1):+.2f} % of zipnn's")
    return lines, not (same and peer["right"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--build", default=os.path.join(models.ROOT, "build"))
    parser.add_argument("--work", default="/tmp/codecllm-peers")
    parser.add_argument("--weights", type=float, default=32, help="Mi, of the file that is made")
    parser.add_argument("--model", metavar="FILE", help="a safetensors file of bf16")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--wheels", metavar="DIR", help="zipnn comes from this folder, not from an index")
    parser.add_argument("--no-install", dest="install", action="store_false", help="use the zipnn that is there")
    parser.add_argument("--zipnn", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.zipnn:
        print(json.dumps(zipnn(arguments.zipnn, arguments.repeat)))
        return
    for directory in (arguments.out, arguments.work):
        os.makedirs(directory, exist_ok=True)
    path = arguments.model
    if not path:
        weights = max(1, int(arguments.weights * MIB) // 4096) * 4096
        path = os.path.join(arguments.work, f"normal-{weights}.safetensors")
        if not os.path.exists(path):
            make(path, weights)
    lines, wrong = table(arguments, path)
    text = "\n".join([time.strftime("%Y-%m-%d"), *lines, *["OTHER BYTES CAME BACK"] * wrong]) + "\n"
    with open(os.path.join(arguments.out, "codecs.txt"), "w") as file:
        file.write(text)
    print(text, end="")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
