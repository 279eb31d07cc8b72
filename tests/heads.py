#!/usr/bin/env python3
"""Does each source begin by saying what it is, and does each line fit 120 columns? In store, uvm, shim and tools.

python3 tests/heads.py [ROOT]      a line for each that does not; exit status 1 if there is one
"""

import os
import re
import sys


def main(root):
    wrong = []
    for top in ("store", "uvm", "shim", "tools"):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if not re.search(r"\.(c|h|cu|cuh)$", name):
                    continue
                path = os.path.join(folder, name)
                with open(path, encoding="utf-8") as source:
                    lines = source.read().splitlines()
                shown = os.path.relpath(path, root)
                if not lines or not lines[0].startswith(f"/* {name} - "):
                    wrong.append(f"{shown}: does not begin with '/* {name} - ' and what the file is for")
                wrong += [f"{shown}:{n}: {len(text)} columns" for n, text in enumerate(lines, 1) if len(text) > 120]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
