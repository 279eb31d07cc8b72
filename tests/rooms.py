#!/usr/bin/env python3
"""Do includes go one way? From each room (a folder) only to rooms below it, and between files in no ring.

python3 tests/rooms.py [ROOT]      a line for each wrong include; exit status 1 if there is one
"""

import os
import re
import sys

STORE = {"store/base", "store/format", "store/codec", "store/read", "store/pack"}
# What a room may include beside itself. A new room gets a line here and a library in its CMakeLists.txt.
BELOW = {
    "store/base": set(),
    "store/format": {"store/base"},
    "store/codec": {"store/base", "store/format"},
    "store/read": {"store/base", "store/format", "store/codec"},
    "store/pack": {"store/base", "store/format", "store/codec", "store/read"},
    "store/cuda": {"store/base", "store/format", "store/codec", "store/read"},
    "store": STORE | {"store/cuda"},  # the C interface of libcws.so
    "uvm/policy": {"store/base"},
    "uvm/host": {"store/base", "store/read", "uvm/policy"},
    "uvm/cuda": {"store/base", "store/format", "store/read", "store/cuda", "uvm/policy"},
    "shim": {"store/base", "uvm/host", "shim/libc", "shim/cuda"},
    "shim/libc": {"store/base", "store/format", "store/read", "uvm/host"},
    "shim/cuda": {"store/base", "store/format", "store/read", "store/cuda", "uvm/host", "uvm/cuda", "shim/libc"},
    "tools": STORE | {"store/cuda", "uvm/host"},
    # uvm/cuda: size_class.h, for the simulation of the manager
    "tools/bench": STORE | {"uvm/host", "uvm/policy", "uvm/cuda", "shim/cuda", "tools"},
    "tools/gpu": STORE | {"store/cuda", "tests/store"},
}
# Files at the top of shim/ that its rooms share; they include no room of it.
BASE_OF_SHIM = {"shim/say", "shim/state"}
# Two halves of one thing: files of one module that share a private header.
HALVES = [
    {"store/base/trace", "store/base/trace_ring"},  # trace_ring.h: the ring between who records and who writes
    {"store/read/reader", "store/read/engine"},  # engine.h: what an engine implements
    {"store/read/store", "store/read/internal"},  # internal.h: the open store, for the files that read it
    {"store/codec/quant", "store/codec/quant_body"},  # quant_body.h: compiled once per instruction set
    # history.h, plan.h: the parts of an order that remember rounds, and plan one
    {"uvm/policy/order", "uvm/policy/history", "uvm/policy/plan"},
    {"uvm/host/view", "uvm/host/pager", "uvm/host/channel"},  # pager.h: the inside of the views
    # gpu.h: the manager of a device as a whole, for the files that work across its modules
    {
        f"uvm/cuda/{name}"
        for name in ("gpu", "adopt", "range", "reserve", "resize", "use", "loader", "look", "prove", "trace")
    },
]


def sources(root):
    for top in ("store", "uvm", "shim", "tools"):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in names:
                if re.search(r"\.(c|h|cu|cuh)$", name):
                    yield os.path.relpath(os.path.join(folder, name), root)


def includes_of(root, file):
    with open(os.path.join(root, file), encoding="utf-8") as source:
        for line in source:
            found = re.match(r'\s*#\s*include "([^"]+)"', line)
            if found:
                beside = os.path.normpath(os.path.join(os.path.dirname(file), found.group(1)))
                yield beside if os.path.exists(os.path.join(root, beside)) else found.group(1)


def module(file):
    return os.path.splitext(file)[0]


def ring_through(edges, start):
    """The modules from which start is reached and which it reaches, start among them; empty: it is in no ring."""

    def reach(graph):
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    back = {}
    for one, others in edges.items():
        for other in others:
            back.setdefault(other, set()).add(one)
    ring = reach(edges) & reach(back)
    return ring if start in ring else set()


def main(root):
    wrong, edges = [], {}
    for file in sorted(sources(root)):
        room = os.path.dirname(file)
        if room not in BELOW:
            wrong.append(f"{file}: its folder is no room; give it a line in tests/rooms.py")
            continue
        for target in includes_of(root, file):
            other = os.path.dirname(target)
            allowed = other == room or other in BELOW[room] or module(target) in BASE_OF_SHIM or target.endswith(".def")
            if module(file) in BASE_OF_SHIM and other.startswith("shim/"):
                allowed = False
            if not allowed:
                wrong.append(f"{file}: includes {target}, which lies in no room below {room}")
            if module(target) != module(file):
                edges.setdefault(module(file), set()).add(module(target))
    seen = set()
    for start in sorted(edges):
        ring = ring_through(edges, start)
        if ring and not ring & seen and not any(ring <= halves for halves in HALVES):
            wrong.append(f"ring of includes: {', '.join(sorted(ring))}")
        seen |= ring
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
