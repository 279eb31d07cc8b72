"""Peak memory of a process, seen from outside while it runs: RAM from /proc/PID/smaps, device memory from
nvidia-smi."""

import subprocess
import threading
import time

INTERVAL_S = 0.05
SHARE = 0.1  # of the time, at most, is spent looking: the process stands still meanwhile


def smaps(pid):
    """(bytes resident, of these bytes of model weights) of a process now: weights are mappings of .safetensors files
    and views of packed ones."""
    total = weights = rss = 0
    weight = False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if line.startswith(b"VmFlags:"):  # the last line of a mapping
                    flags = line.split()
                    total += rss
                    weights += (
                        rss if weight or b"um" in flags or b"uw" in flags else 0
                    )  # registered with userfaultfd: a view
                elif line.startswith(b"Rss:"):
                    rss = int(line.split()[1]) * 1024
                elif line[:1] in b"0123456789abcdef":  # the first line of a mapping
                    rss, weight = 0, line.endswith((b".safetensors\n", b" /dev/zero\n")) or b"codecllm view" in line
    except OSError:
        return 0, 0
    return total, weights


def device_bytes():
    """Device memory in use on GPU 0, all processes, as the driver says; None without nvidia-smi."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        return int(done.stdout.split()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


class Peak(threading.Thread):
    """Samples a process until stop(): .ram, .weights and .device (None without a GPU; less what was in use before),
    peaks in bytes."""

    def __init__(self, pid, device_before=None):
        super().__init__(daemon=True)
        self.pid, self.device_before = pid, device_before
        self.ram = self.weights = 0
        self.device = None if device_before is None else 0
        self.over = threading.Event()

    def run(self):
        took = 0.0
        while not self.over.wait(max(INTERVAL_S, took / SHARE)):
            begin = time.perf_counter()
            ram, weights = smaps(self.pid)
            took = time.perf_counter() - begin
            self.ram, self.weights = max(self.ram, ram), max(self.weights, weights)
            if self.device_before is not None:
                self.device = max(self.device, (device_bytes() or 0) - self.device_before)

    def stop(self):
        self.over.set()
        self.join()
