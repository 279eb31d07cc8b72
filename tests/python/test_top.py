"""codecllm top on processes that page on the CPU: what it says of them, and how it ends."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HANG_SECONDS, clean_environment, run

LOOP = """
import mmap, sys
with open(sys.argv[1], "rb") as f:
    view = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
def read():
    sum(view[i] for i in range(0, len(view), 4096))
read()
print("ready", flush=True)
while True:
    read()
"""


@pytest.fixture
def paged(shim, packed_bard):
    """A program that reads the small model again and again."""
    env = clean_environment(CODEC_VRAM_BUDGET="4M", LD_PRELOAD=shim)
    program = [sys.executable, "-c", LOOP, str(packed_bard / "model.safetensors")]
    with subprocess.Popen(program, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def process_in(line, pid):
    found = [p for p in json.loads(line)["processes"] if p["pid"] == pid]
    return found[0] if found else None


def test_json_of_one_process(command, paged):
    first, second = [
        process_in(run(command, "top", "--once", "--json", "--interval", "0.1", paged.pid).stdout, paged.pid)
        for _ in range(2)
    ]
    for seen in first, second:
        (host,) = seen["devices"]
        assert seen["answered"] and seen["program"].startswith("python")
        assert (host["device"], host["budget"]) == ("host", 4 << 20)
        assert 0 < host["weights"] <= 4 << 20 < host["weights_in_all"]
        assert host["link_busy"] is None and host["waited"] is None

    def rose():
        before, now = [seen["devices"][0]["counters"] for seen in (first, second)]
        return all(now[name] > before[name] for name in ("faults", "decoded_bytes", "evictions", "reads"))

    deadline = time.monotonic() + HANG_SECONDS
    while not rose() and time.monotonic() < deadline:
        second = process_in(run(command, "top", "--once", "--json", paged.pid).stdout, paged.pid)
    assert rose()


def test_rates_are_differences_over_time(command, paged):
    watch = [str(command), "top", "--json", "--interval", "0.2", str(paged.pid)]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
        before, now = [process_in(top.stdout.readline(), paged.pid) for _ in range(2)]
        seconds = (now["clock_ns"] - before["clock_ns"]) / 1e9
        (host,) = now["devices"]
        old, new = before["devices"][0]["counters"], host["counters"]

        def rate(name):
            return (new[name] - old[name]) / seconds

        assert host["decoded_per_s"] == pytest.approx(rate("decoded_bytes"))
        assert host["read_per_s"] == pytest.approx(rate("read_bytes"))
        assert host["loads_per_s"] == pytest.approx(rate("faults") + rate("prefetched_blocks"))
        assert host["drops_per_s"] == pytest.approx(rate("evictions"))
        paged.kill()
        paged.wait()
        rest, said = top.communicate(timeout=HANG_SECONDS)
    assert said == f"codecllm: {paged.pid}: it has ended\n" and top.returncode == 0
    assert all(process_in(line, paged.pid) for line in rest.splitlines())


def test_text(command, paged):
    row, deadline = ["", "", "no"], time.monotonic() + HANG_SECONDS
    while row[2] == "no" and time.monotonic() < deadline:  # no answer: beside other work it may be late
        rows = run(command, "top", "--interval", "0.1").stdout.splitlines()
        assert rows[0].split()[:5] == ["PID", "program", "device", "budget", "weights"]
        (row,) = [row.split() for row in rows[1:] if row.split()[0] == str(paged.pid)]
    assert row[1].startswith("python") and row[2:5] == ["host", "4.00", "MiB"] and row[-2:] == ["-", "-"]
    lines = run(command, "top", "--interval", "0.1", paged.pid).stdout.splitlines()
    assert lines[0].startswith(f"{paged.pid}  {sys.executable} -c ")
    # how wide the column is depends on the other values
    assert ["budget", "4.00", "MiB"] in [line.split() for line in lines] and not any("link" in line for line in lines)


def test_a_process_that_is_stopped(command, paged):
    paged.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{paged.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    done = run(command, "top", "--once", paged.pid, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"codecllm: {paged.pid}: no answer in 5 s; is it stopped?\n"
    seen = process_in(run(command, "top", "--once", "--json", "--interval", "0.1").stdout, paged.pid)
    assert not seen["answered"] and seen["devices"] == []
    paged.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("key", [b"\x03", None])
def test_a_terminal_is_left_as_it_was(command, paged, key):
    """Ctrl-C, or the end of the process, after something was drawn twice."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command, ["codecllm", "top", "--interval", "0.1", str(paged.pid)])
    drawn, deadline = b"", time.monotonic() + HANG_SECONDS
    acted = False
    while time.monotonic() < deadline:
        if not acted and drawn.count(b"\x1b[J") >= 2:
            if key:
                os.write(terminal, key)
            else:
                paged.kill()
                paged.wait()
            acted = True
        if select.select([terminal], [], [], 1)[0]:
            try:
                drawn += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert drawn.startswith(b"\x1b[?25l\x1b[H\x1b[2J\x1b[H") and drawn.count(b"\x1b[?25h") == 1
    after = drawn.split(b"\x1b[?25h")[1].decode()
    assert after == ("" if key else f"codecllm: {paged.pid}: it has ended\r\n")
