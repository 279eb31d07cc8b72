#!/usr/bin/env python3
"""Does the CUDA manager keep to its own rules (uvm/cuda/README.md)?

- A module's fields are written by its own files only.
- A function that may drop the manager's lock has a name that ends in _drops_lock, and one that calls such a function
  without taking the lock itself has, too.
- No function is longer than 70 lines.

python3 tests/modules.py [ROOT]      a line for each breach; exit status 1 if there is one
"""

import os
import re
import sys

ROOM = "uvm/cuda"
LONGEST = 70
# Member of struct cws_gpu, and type of its struct: the files that may write its fields.
OWNERS = {
    "core": ("cws_gpu_core", {"core.h", "core.c", "gpu.c"}),  # gpu.c: context, dead
    "budget": ("cws_gpu_budget", {"budget.c"}),
    "pools": ("cws_gpu_pools", {"pools.c"}),
    "frames": ("cws_gpu_frames", {"frames.c"}),
    "streams": ("cws_gpu_streams", {"streams.h", "streams.c"}),
    "sources": ("cws_gpu_sources", {"sources.c"}),
    "staging": ("cws_gpu_staging", {"staging.c"}),
    "ranges": ("cws_gpu_ranges", {"range.c"}),
    "reserve": ("cws_gpu_reserve", {"reserve.c"}),
    "sets": ("cws_gpu_sets", {"sets.c", "gpu.c"}),  # gpu.c: ranges, once
    "order": ("cws_gpu_order", {"order_use.c"}),
    "uses": ("cws_gpu_uses", {"use.c"}),
    "strict": ("cws_gpu_strict", {"strict.c", "use.c"}),  # use.c: init
    "loads": ("cws_gpu_loads", {"load.c"}),
    "drops": ("cws_gpu_drops", {"drop.c"}),
    "spills": ("cws_gpu_spills", {"spill.c"}),
    "adopts": ("cws_gpu_adopts", {"adopt.c"}),
    "proofs": ("cws_gpu_proofs", {"prove.c"}),
    "looks": ("cws_gpu_looks", {"look.c"}),
    "loader": ("cws_gpu_loader", {"loader.c"}),
    "resize": ("cws_gpu_resize", {"resize.h", "resize.c"}),
    "trace": ("cws_gpu_trace", {"trace.c"}),
}
# Fields of an extent and of a range that one file alone writes (extent.h names the owners of all).
FIELDS = {
    "state": {"extent.c", "sources.c"},  # sources.c: those of a source
    "holds": {"use.c"},
    "used": {"use.c", "range.c", "streams.c"},  # range.c: a new allocation; streams.c: a stream's
    "named": {"range.h", "range.c"},
    "freed": {"range.c"},
    "pinned": {"range.c"},
    "sets": {"sets.c"},
    "spill": {"spill.c"},
    "adoptable": {"adopt.c", "range.c"},  # range.c: a new allocation
    "proof": {"prove.c"},
    "look": {"look.c"},
}
WRITE = r"(?:\s*(?:[-+|&^]|<<|>>)?=(?!=)|\+\+|--)"

PATH = r"[\w.]+(?:\[[^\]\n]*\][\w.]*)*"


def functions(text):
    """Each function of a C file: its name, the line it begins in, its body."""
    several = r"^[A-Za-z][^;{}=#]*?\b(\w+)\([^;{}]*\)\n\{\n(.*?)^\}"
    one = r"^[A-Za-z][^;{}=#\n]*?\b(\w+)\([^;{}\n]*\) \{(.*)\}$"
    for found in [*re.finditer(several, text, re.M | re.S), *re.finditer(one, text, re.M)]:
        yield found.group(1), text.count("\n", 0, found.start()) + 1, found.group(2)


def variables_of(text, kind):
    """Names that a function or a struct of this file gives a pointer to this type."""
    return set(re.findall(rf"\bstruct {kind} \*(?:const )?(\w+)", text))


def writes(name, text):
    for member, (kind, owners) in OWNERS.items():
        if name in owners:
            continue
        path = rf"\bgpu->{member}\.{PATH}{WRITE}"
        for variable in variables_of(text, kind):
            path += rf"|(?<![\w>.]){variable}->{PATH}{WRITE}"
        for found in re.finditer(path, text):
            yield found.start(), f"writes a field of {member}: {found.group(0).strip()}"
    for field, owners in FIELDS.items():
        if name in owners:
            continue
        for found in re.finditer(rf"\b(?:x|r|range|extents\[i\])(?:->|\.){field}(?:\.\w+)?{WRITE}", text):
            yield found.start(), f"writes {found.group(0).strip()}, which belongs to {', '.join(sorted(owners))}"


def drops(name, body):
    """Does a function that is called with the lock drop it?"""
    first = re.search(r"cws_gpu_(un)?lock\(", body)
    if first and not first.group(1):
        return False  # it takes the lock itself
    return bool(first) or bool(re.search(r"\w+_drops_lock\(", body))


def main(root):
    wrong = []
    folder = os.path.join(root, ROOM)
    for name in sorted(os.listdir(folder)):
        if not name.endswith((".c", ".h")):
            continue
        with open(os.path.join(folder, name), encoding="utf-8") as source:
            text = source.read()
        bare = re.sub(r"/\*.*?\*/", lambda found: re.sub(r"[^\n]", " ", found.group(0)), text, flags=re.S)
        for at, what in writes(name, bare):
            wrong.append(f"{ROOM}/{name}:{bare.count(chr(10), 0, at) + 1}: {what}")
        for function, line, body in functions(bare):
            if body.count("\n") > LONGEST:
                wrong.append(f"{ROOM}/{name}:{line}: {function} has {body.count(chr(10))} lines")
            if drops(function, body) and not function.endswith("_drops_lock"):
                wrong.append(f"{ROOM}/{name}:{line}: {function} drops the lock, and its name does not say so")
            if function.endswith("_drops_lock") and not drops(function, body) and "cws_cond_wait" not in body:
                wrong.append(f"{ROOM}/{name}:{line}: {function} does not drop the lock, though its name says so")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
