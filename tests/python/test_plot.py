"""codecllm plot: what it understands of a trace, and that a picture comes out of a real one."""

import json
import os
import re
import sys

import pytest
from conftest import ROOT, clean_environment, run

sys.path.insert(0, str(ROOT / "shim" / "python"))
from codecllm import Error, plot  # noqa: E402


def event(ph, name, ts, tid=1, **args):
    return {"ph": ph, "name": name, "ts": ts, "pid": 1, "tid": tid, "args": args}


def block(ts, tensor, number, name="fault", tid=1):
    what = dict(bytes=100, tensor=tensor, tensor_bytes=200, block=number)
    return [
        event("B", name, ts, tid, **what),
        event("B", "read", ts + 1, tid, bytes=60, tensor=tensor, chunk=0),
        event("E", "read", ts + 2, tid),
        event("B", "publish", ts + 3, tid, **what),
        event("E", "publish", ts + 4, tid),
        event("E", name, ts + 5, tid),
    ]


HOST = [
    *block(0, "layer.10", 0),
    *block(1e6, "layer.9", 2, "prefetch"),
    *block(1.2e6, "layer.9", 3, "prefetch", tid=2),
    event("C", "views in memory", 1.3e6, weights=300, fixed=0),
    event("B", "evict", 2e6, bytes=100, tensor="layer.10", tensor_bytes=200, block=0),
    event("E", "evict", 2e6 + 10),
    event("i", "lost", 3e6, number=5),
    event("i", "other", 4e6),
]


def test_blocks_of_the_host():
    trace = plot.understand(HOST)
    assert trace.end == 4.0 and trace.tensors == {"layer.10": 200, "layer.9": 200} and trace.lost == 5
    names, rows = plot.residency(trace)
    assert names == ["layer.9", "layer.10"], "in the order of layers"
    at = lambda row, seconds: rows[row][int(seconds / trace.end * plot.BINS)]  # noqa: E731
    assert at(1, 0.5) == 0.5 and at(1, 1.9) == 0.5 and at(1, 2.1) == 0.0
    assert at(0, 0.5) == 0.0 and at(0, 1.1) == 0.5 and at(0, 3.0) == 1.0
    assert sum(size for _, size in trace.read) == 180 and trace.share_ready() == pytest.approx(2 / 3)
    assert trace.memory == [(pytest.approx(1.3), 300, 0)] and trace.tokens == []


def test_ranges_of_a_device():
    what = dict(tensor="w", bytes=50, tensor_bytes=50)
    trace = plot.understand(
        [
            event("i", "cycle", 0, number=1),
            event("i", "use", 1, range=1, why="loading", **what),
            {**event("X", "load", 2, range=1, **what), "dur": 8},
            event("i", "use", 12, range=1, why="hit", **what),
            {**event("X", "copy", 3, bytes=30), "dur": 2},
            {**event("X", "load", 13, range=2, why="failed", **what), "dur": 1},
            {**event("X", "drop", 15, range=1, why="written, kept", **what), "dur": 1},
            {**event("X", "drop", 20, range=1, why="dropped", **what), "dur": 1},
            event("i", "cycle", 30, number=2),
            event("C", "GPU 0 memory", 31, weights=7, fixed=3),
        ]
    )
    assert trace.changes == [(10e-6, "w", 50), (21e-6, "w", -50)]
    assert len(trace.tokens) == 2 and trace.share_ready() == 0.5 and trace.read == [(5e-6, 30)]
    assert trace.memory == [(pytest.approx(31e-6), 7, 3)]


def copy(begin, end, tid=9):
    return {**event("X", "copy", begin, tid, bytes=100), "dur": end - begin}


LOAD = {**event("X", "load", 0, range=1, tensor="w", bytes=50, tensor_bytes=50), "dur": 1}


def test_the_link_of_a_device():
    rounds = [event("i", "cycle", ts, number=1) for ts in (100, 200, 400)]
    copies = [copy(0, 60), copy(90, 120), copy(150, 180), copy(170, 190), copy(390, 450)]  # two of them at once
    trace = plot.understand([LOAD, *rounds, *reversed(copies)])
    seconds = lambda *us: [x / 1e6 for x in us]  # noqa: E731
    assert trace.rounds() == [tuple(seconds(100, 200)), tuple(seconds(200, 400))]
    assert trace.link_busy(*seconds(100, 200)) == pytest.approx(0.6)
    assert trace.link_busy(*seconds(200, 400)) == pytest.approx(0.05)
    assert trace.link_span() == tuple(seconds(100, 400))
    assert trace.link_busy(*trace.link_span()) == pytest.approx(70 / 300)
    assert trace.link_busy(*seconds(0, 60)) == pytest.approx(1) and trace.link_busy(*seconds(60, 90)) == 0
    assert trace.link_busy(*seconds(100, 100)) == 0
    trace = plot.understand([LOAD, rounds[0], *copies])  # no whole round
    assert trace.rounds() == [] and trace.link_span() == tuple(seconds(0, 450))
    trace = plot.understand([LOAD, *rounds, *copies, copy(200, 300, tid=10)])  # two devices
    assert trace.link_busy(*seconds(200, 400)) == pytest.approx((0.05 + 0.5) / 2)
    assert plot.understand(HOST).copies == {}


def test_what_is_said_and_drawn_of_a_device(tmp_path):
    pytest.importorskip("matplotlib")
    events = [LOAD, *(event("i", "cycle", ts, number=1) for ts in (0, 1000, 2000)), copy(0, 800), copy(1000, 1400)]
    (tmp_path / "gpu.json").write_text(json.dumps(events))
    picture = tmp_path / "gpu.svg"
    environment = clean_environment(PYTHONPATH=ROOT / "shim" / "python", MPLCONFIGDIR=tmp_path)
    done = run(sys.executable, "-m", "codecllm.plot", tmp_path / "gpu.json", "-o", picture, env=environment)
    assert ", link busy 60 % of the time (of each round 80, 40 %), " in done.stdout
    text = re.sub(
        r"<!--\s*(.*?)\s*-->", r"\1", picture.read_text()
    )  # matplotlib draws letters, and has the words beside
    for words in ("the link was busy, 60 % of the time of whole rounds", "link busy, %", "80 %", "40 %"):
        assert words in text


def test_a_trace_that_was_cut_short(tmp_path):
    text = "[\n" + ",\n".join(json.dumps(e) for e in HOST)
    path = tmp_path / "t.json"
    for cut in (text, text + "\n", text + "\n]\n", text[:-20], text + ",\n", text + ',\n{"na'):
        path.write_text(cut)
        assert len(plot.read_events(path)) >= len(HOST) - 1, cut[-30:]


@pytest.mark.parametrize("text", ["", "hello", "[1, 2]", "[\n{\n", '{"a": 1}', '[{"ph": "M"}]', "[]"])
def test_what_is_no_trace_is_said_in_one_line(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(Error) as why:
        plot.understand(plot.read_events(path))
    assert "\n" not in str(why.value)


def test_a_picture_of_a_real_run(command, packed_bard, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    trace, picture = tmp_path / "run.json", tmp_path / "run.png"
    code = (
        "import sys\nfrom safetensors import safe_open\nfor _ in range(2):\n with safe_open(sys.argv[1], 'pt') as f:\n"
        "  for k in f.keys(): f.get_tensor(k).double().sum()"
    )
    env = clean_environment(CODEC_TRACE=trace)
    run(command, "run", "--budget", "2M", "--", sys.executable, "-c", code, packed_bard / "model.safetensors", env=env)
    environment = clean_environment(
        PYTHONPATH=ROOT / "shim" / "python",
        MPLCONFIGDIR=tmp_path,
        PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    )
    said = run(command, "plot", trace, "-o", picture, env=environment).stdout
    assert re.fullmatch(
        r".*run\.png: \d+ tensors, [\d.]+ s, [\d.]+ MiB read, [\d.]+ % ready before they were needed\n", said
    )
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 20000
    done = run(command, "plot", trace, "-o", tmp_path / "none" / "x.png", env=environment, check=False)
    assert done.returncode == 2 and done.stderr.startswith("codecllm: ") and done.stderr.count("\n") == 1
    done = run(command, "plot", env=environment, check=False)
    assert done.returncode == 2 and "trace" in done.stderr
