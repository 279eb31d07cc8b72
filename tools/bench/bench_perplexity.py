#!/usr/bin/env python3
"""What q8 and q6 cost: bits per weight, relative error of each tensor, and perplexity on text the model was not trained
on, beside the original's.

    python tools/bench/bench_perplexity.py [--model DIR] [--text FILE] [--modes lossless,q8,q6] [--tensors]
        [--json FILE]

Packs the model with the codecllm command, as any user would, and reads it back without the shim. The perplexity is exp
of the mean cross-entropy over all tokens but the first of each window. Exit status 1 when q8 is more than 0.2 % or q6
more than 1 % from the original."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BARD = os.path.join(ROOT, "tests", "models", "bard")
BUILD = os.environ.get("CWS_BUILD_DIR", os.path.join(ROOT, "build"))
MOST_CHANGE = {"lossless": 0.0, "q8": 0.002, "q6": 0.01}

if os.path.exists(os.path.join(BUILD, "lib", "libcws.so")):  # the build of this tree, else the installed package
    os.environ.setdefault("CWS_LIBRARY", os.path.join(BUILD, "lib", "libcws.so"))
    sys.path.insert(0, os.path.join(ROOT, "shim", "python"))


def find_command():
    for path in (
        os.path.join(BUILD, "bin", "codecllm"),
        os.path.join(os.path.dirname(sys.executable), "codecllm"),
        shutil.which("codecllm"),
    ):
        if path and os.access(path, os.X_OK):
            return path
    sys.exit("bench_perplexity.py: the codecllm command was not found; build it, or pip install .")


def perplexity(model, tokens, window):
    """Over non-overlapping windows of that many tokens."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, tokens.numel() - 1, window):
            ids = tokens[begin : begin + window + 1]
            logits = model(ids[None, :-1]).logits[0].float()
            total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
            count += ids.numel() - 1
    return math.exp(total / count), count


def errors(original, packed):
    """[(name, mode, relative L2)] of the tensors, and the relative L2 of all that were quantised."""
    import codecllm

    rows, error, norm = [], 0.0, 0.0
    with codecllm.safe_open(original) as a, codecllm.safe_open(packed) as b:
        for name in a.keys():
            x, y = a.get_tensor(name).double(), b.get_tensor(name).double()
            mode = b.get_compressed(name).mode
            e, n = (y - x).square().sum().item(), x.square().sum().item()
            rows.append((name, mode, math.sqrt(e / n) if n else 0.0))
            if mode != "lossless":
                error, norm = error + e, norm + n
    return rows, math.sqrt(error / norm) if norm else 0.0


def main():
    parser = argparse.ArgumentParser(description="Perplexity of a model packed in each mode, beside the original's.")
    parser.add_argument("--model", default=BARD, metavar="DIR", help="default: the small model of this repository")
    parser.add_argument("--text", metavar="FILE", help="default: heldback.txt beside the model")
    parser.add_argument("--modes", default="lossless,q8,q6")
    parser.add_argument("--window", type=int, default=256, metavar="TOKENS", help="default: %(default)s")
    parser.add_argument("--tensors", action="store_true", help="print the relative L2 error of each tensor")
    parser.add_argument("--json", metavar="FILE", help="write all results")
    args = parser.parse_args()
    import codecllm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with open(args.text or os.path.join(args.model, "heldback.txt"), encoding="utf-8") as file:
        tokens = AutoTokenizer.from_pretrained(args.model)(file.read(), return_tensors="pt").input_ids[0]
    plain, count = perplexity(AutoModelForCausalLM.from_pretrained(args.model, dtype="auto"), tokens, args.window)
    weights = os.path.join(args.model, "model.safetensors")
    results = [{"mode": "original", "perplexity": plain, "tokens": count}]
    print(f"{count} tokens, windows of {args.window}")
    print(f"{'mode':<9} {'bits/weight':>11} {'relative L2':>11} {'worst tensor':>12} {'perplexity':>10} {'change':>9}")
    print(f"{'original':<9} {16:>11.3f} {0:>11.5f} {'':>12} {plain:>10.4f}")
    wrong = 0
    for mode in args.modes.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            packed = os.path.join(scratch, "packed")
            subprocess.run([find_command(), "pack", "--quiet", "--mode", mode, args.model, packed], check=True)
            file = os.path.join(packed, "model.safetensors")
            rows, total = errors(weights, file)
            value, _ = perplexity(codecllm.from_pretrained(packed, dtype="auto"), tokens, args.window)
            with codecllm.safe_open(file) as opened:
                elems = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
            bits = 8 * os.path.getsize(file) / elems
        change, worst = value / plain - 1, max(e for _, _, e in rows)
        fine = abs(change) <= MOST_CHANGE.get(mode, 0.0)
        wrong += not fine
        print(
            f"{mode:<9} {bits:>11.3f} {total:>11.5f} {worst:>12.5f} {value:>10.4f} {100 * change:>+8.3f} "
            f"%{'' if fine else '  TOO MUCH'}"
        )
        if args.tensors:
            for name, used, e in rows:
                print(f"    {name:<48} {used:<9} {e:.5f}")
        results.append(
            {
                "mode": mode,
                "perplexity": value,
                "change": change,
                "bits_per_weight": bits,
                "relative_l2": total,
                "tensors": [{"name": n, "mode": m, "relative_l2": e} for n, m, e in rows],
            }
        )
    if args.json:
        with open(args.json, "w") as out:
            json.dump(results, out, indent=1)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
