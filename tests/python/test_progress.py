"""The progress bar: on a terminal it moves and is taken away at the end; anywhere else there is none."""

import json
import os
import pty
import re
import struct
import subprocess

import pytest
from conftest import HANG_SECONDS, clean_environment


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 400 MB in a few blocks of the disk: long enough to see the bar."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    header = json.dumps({"a": {"dtype": "BF16", "shape": [200, 1000000], "data_offsets": [0, 400000000]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 400000000)
    return path


def on_terminal(*command, columns=120, term="xterm"):
    """Runs a command with stderr on a terminal; returns what went there."""
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=clean_environment(TERM=term))
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            piece = b""
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait(timeout=HANG_SECONDS) == 0, seen
    return seen.decode()


def screen(text):
    """The lines that stay after carriage returns and erased lines."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        lines.append(line.split("\r")[-1].split("\033[K")[-1])
    return [line for line in lines if line]


def test_bar_moves_and_goes_away(command, large, tmp_path):
    text = on_terminal(command, "pack", large, tmp_path / "out")
    frames = re.findall(
        r"pack \[([#.]{24})\] +(\d+)%  [^\r]* of 381\.5 MiB  (\d+) MB/s  [\d:-]+ left  model\.safetensors", text
    )
    assert len(frames) >= 2, text[-2000:]
    percents = [int(f[1]) for f in frames]
    assert percents == sorted(percents) and percents[-1] > percents[0]
    assert all(
        bar.count("#") == int(percent) * 24 // 100 or abs(bar.count("#") - int(percent) * 0.24) <= 1
        for bar, percent, _ in frames
    )
    left = screen(text)
    assert len(left) == 1 and left[0].startswith("codecllm: "), left


def test_bar_fits_a_narrow_terminal(command, large, tmp_path):
    text = on_terminal(command, "pack", large, tmp_path / "out", columns=40)
    frames = [f for f in re.findall(r"\r([^\r\n]*?)\033\[K", text) if f]
    assert frames and all(len(frame) < 40 for frame in frames)


def test_no_bar_where_it_would_do_harm(command, large, tmp_path):
    assert "\r" not in on_terminal(command, "pack", large, tmp_path / "dumb", term="dumb").replace("\r\n", "\n")
    done = subprocess.run(
        [command, "pack", large, tmp_path / "piped"], capture_output=True, env=clean_environment(TERM="xterm")
    )
    assert done.returncode == 0 and b"\r" not in done.stderr and done.stderr.count(b"\n") == 1
