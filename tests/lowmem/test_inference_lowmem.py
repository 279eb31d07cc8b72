#!/usr/bin/env python3
"""A model, plain and paged from packed files inside a memory budget: the same text, less memory, at what speed?

    python tests/lowmem/test_inference_lowmem.py [--model NAME_OR_DIR] [--budget 1.2G] [--mode lossless|q8|q6]
        [--skip-baseline] [--json] [--least-reduction 2] [--most-slowdown 5]

Five steps (codec, libraries, model, baseline inference, compressed low-memory inference), then a table. The default
model is TinyLlama/TinyLlama-1.1B-Chat-v1.0 from the hub, and where that cannot be reached the small model of this
repository. The default budget, 30 % of the weights, is meant to halve what the whole process takes of a GPU. Exit
status: 0 fine, 1 the outputs differ where they must not, or a bound that was asked for is not met, 2 it could not be
run, with one line that says why. Runs under pytest with the small model."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from find_package import ROOT, Stop, find_command, need, use_package  # noqa: E402
from measure import Peak, device_bytes  # noqa: E402

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
SMALL = os.path.join(ROOT, "tests", "models", "bard")
LEAST_BUDGET = 1 << 20
DEFAULT_SHARE = 30  # percent of the weights
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Generate text from a model, plain and paged from packed files, and compare."
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        help=f"on the hub, or a directory (default: {TINYLLAMA}, else the small model here)",
    )
    parser.add_argument(
        "--budget", metavar="SIZE", help="memory for decoded weights: 1.2G, 300M (default: 30 %% of the weights)"
    )
    parser.add_argument(
        "--mode", choices=("lossless", "q8", "q6"), default="lossless", help="how to pack (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt",
        help='text to go on from (default: "The capital of France is"; of the small model here, "ROMEO:")',
    )
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="to generate (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--skip-baseline", action="store_true", help="do not run the full model, where it does not fit")
    parser.add_argument(
        "--least-reduction", type=float, metavar="X", help="exit 1 if the peak is not so many times less"
    )
    parser.add_argument("--most-slowdown", type=float, metavar="X", help="exit 1 if it is more times slower")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, the steps on stderr")
    return parser.parse_args(arguments)


def parse_size(text):
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise Stop(f"--budget {text}: not a size; use 1.2G or 300M")
    return int(float(found.group(1)) * UNITS[found.group(2).upper()])


def size(count):
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.2f} MiB"


# --- the steps ------------------------------------------------------------------------------------------


def step_codec(say):
    use_package()
    command = find_command()
    torch = need("torch", "pip install torch")
    import codecllm

    try:
        weights = torch.randn(256, 256).bfloat16()
        for mode in ("lossless", "q8", "q6"):
            c = codecllm.CompressedTensor.compress(weights, mode)
            if mode == "lossless" and not torch.equal(c.decompress(), weights):
                raise Stop("the codec does not give back what was put in: this is a bug, please report it")
    except codecllm.Error as why:
        raise Stop(str(why)) from None
    say(f"[1/5] codec: works ({command})")
    return command


def step_libraries(args, say):
    torch = need("torch", "pip install torch")
    transformers = need("transformers", "pip install transformers")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise Stop("--device cuda: torch sees no GPU here; use --device cpu")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    say(f"[2/5] libraries: torch {torch.__version__}, transformers {transformers.__version__}, on {device}")
    return device


def explain_download(name, why):
    """One line for what the hub says."""
    kind = type(why).__name__
    if kind in ("GatedRepoError", "RepositoryNotFoundError") or "401" in str(why) or "403" in str(why):
        return f"{name}: the hub refuses it: it does not exist, or needs a token: hf auth login (or HF_TOKEN=...)"
    return f"{name}: the hub cannot be reached ({kind}); give a model directory: --model DIR"


def download(name):
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "tokenizer*", "*.model"])
    except Exception as why:  # noqa: BLE001  the hub's libraries raise errors of several packages
        raise Stop(explain_download(name, why)) from None


def step_model(args, say):
    name, note = args.model, ""
    if name is None:
        try:
            name, directory = TINYLLAMA, download(TINYLLAMA)
        except Stop as why:
            note = f" (the default, {TINYLLAMA}, is not there: {str(why).split(': ', 1)[1].split(';')[0]})"
            name = directory = SMALL
    else:
        directory = name if os.path.isdir(name) else download(name)
    files = [f for f in os.listdir(directory) if f.endswith(".safetensors")]
    if not files:
        raise Stop(f"{directory}: no .safetensors files; give the directory of a model that has them: --model DIR")
    original = sum(os.path.getsize(os.path.join(directory, f)) for f in files)
    shown = "the small model of this repository" if directory == SMALL else name
    if args.prompt is None:
        args.prompt = "ROMEO:" if os.path.realpath(directory) == os.path.realpath(SMALL) else "The capital of France is"
    say(f"[3/5] model: {shown}, {size(original)} of weights{note}")
    return directory, shown, original


def run_worker(directory, device, args, prefix=(), budget=None):
    """One run of worker.py. Returns (report or None, Peak, exit status, what it said)."""
    with tempfile.TemporaryDirectory() as scratch:
        report = os.path.join(scratch, "report")
        command = [
            *prefix,
            sys.executable,
            os.path.join(HERE, "worker.py"),
            directory,
            device,
            str(args.tokens),
            args.prompt,
            report,
        ]
        env = {k: v for k, v in os.environ.items() if not k.startswith("CODEC_")}
        env.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        if budget is not None:
            env.update(CODEC_STATS="1")
        if budget is not None and device == "cuda":  # the allocator that pages
            env.update(PYTORCH_ALLOC_CONF="backend:cudaMallocAsync", PYTORCH_CUDA_ALLOC_CONF="backend:cudaMallocAsync")
        with open(os.path.join(scratch, "talk"), "w+b") as talk:
            before = device_bytes() if device == "cuda" else None
            process = subprocess.Popen(command, env=env, stdout=talk, stderr=talk)
            peak = Peak(process.pid, before)
            peak.start()
            status = process.wait()
            peak.stop()
            talk.seek(0)
            said = talk.read().decode(errors="replace")
        if status != 0 or not os.path.exists(report):
            return None, peak, status, said
        with open(report) as file:
            return json.load(file), peak, status, said


def last_line(said):
    lines = [line for line in said.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("codecllm:")]
    return (ours or lines or ["nothing was said"])[-1].strip()


def out_of_memory(status, said):
    return (
        status in (-9, 137)
        or "out of memory" in said.lower()
        or "MemoryError" in said
        or "can't allocate memory" in said
    )


def explain_baseline(status, said):
    if out_of_memory(status, said):
        return "the full model does not fit the memory here; run again with --skip-baseline"
    return f"the baseline failed (exit status {status}): {last_line(said)}"


def explain_paged(status, said, budget):
    least = re.findall(
        r"least budget that would have done is (\d+) MiB|give it at least (\d+) MiB|least that would do is (\d+) MiB",
        said,
    )
    if least:
        return f"--budget {size(budget)} is too small; the least that works is {''.join(least[-1])}M"
    if out_of_memory(status, said):
        return (
            f"the packed model failed with --budget {size(budget)}: no memory left for what is not weights; "
            "give a smaller budget, or free memory"
        )
    return f"the packed model failed (exit status {status}): {last_line(said)}"


def step_baseline(directory, device, args, say):
    if args.skip_baseline:
        say("[4/5] baseline inference: skipped")
        return None
    report, peak, status, said = run_worker(directory, device, args)
    if report is None:
        raise Stop(explain_baseline(status, said))
    say(f"[4/5] baseline inference: {len(report['tokens'])} tokens at {report['tokens_per_s']:.2f} tokens/s")
    return {**report, "ram_bytes": peak.ram, "weights_bytes": peak.weights, "vram_bytes": peak.device}


def step_paged(directory, device, args, command, original, scratch, say):
    budget = parse_size(args.budget) if args.budget else max(original * DEFAULT_SHARE // 100, 4 * LEAST_BUDGET)
    if budget < LEAST_BUDGET:
        raise Stop(f"--budget {args.budget} is too small; the least that works is {LEAST_BUDGET >> 20}M")
    packed = os.path.join(scratch, "packed")
    done = subprocess.run(
        [command, "pack", "--quiet", "--mode", args.mode, directory, packed], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Stop(f"packing failed: {last_line(done.stderr)}")
    stored = sum(os.path.getsize(os.path.join(packed, f)) for f in os.listdir(packed) if f.endswith(".safetensors"))
    prefix = (command, "run", "--budget", str(budget), "--")
    report, peak, status, said = run_worker(packed, device, args, prefix, budget)
    if report is None:
        raise Stop(explain_paged(status, said, budget))
    say(
        f"[5/5] compressed low-memory inference: budget {size(budget)}, {len(report['tokens'])} tokens at "
        f"{report['tokens_per_s']:.2f} tokens/s"
    )
    counted = re.search(r"^codecllm: +peak +([0-9.]+) MiB$", said, re.MULTILINE)
    return {
        **report,
        "ram_bytes": peak.ram,
        "weights_bytes": peak.weights,
        "vram_bytes": peak.device,
        "budget_bytes": budget,
        "stored_bytes": stored,
        "counted_bytes": round(float(counted.group(1)) * (1 << 20)) if counted else None,
    }


# --- the verdict ----------------------------------------------------------------------------------------


def compare(baseline, paged, mode):
    """(line, is it fine) for the two lists of tokens."""
    a, b = baseline["tokens"], paged["tokens"]
    if a == b:
        return "OUTPUTS MATCH", True
    first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    one, other = (tokens[first] if first < len(tokens) else "end" for tokens in (a, b))
    line = f"OUTPUTS DIFFER from token {first} on ({one}, {other})"
    if mode == "lossless":
        return f"{line}: the mode is lossless, so this is a bug: please report it with this output", False
    return f"{line}: expected of {mode}, which changes the weights a little", True


def reduction(result, context=True):
    """How many times less memory the paged run took at its peak. context=False: both without what the driver takes of a
    GPU's in the plain run before there is a tensor; 0: that is not known."""
    key = "vram_bytes" if result["device"] == "cuda" else "ram_bytes"
    less = 0 if context else result["baseline"].get("context_bytes")
    return 0 if less is None else (result["baseline"][key] - less) / max(result["paged"][key] - less, 1)


def slowdown(result):
    return result["baseline"]["tokens_per_s"] / max(result["paged"]["tokens_per_s"], 1e-9)


def missed(result, args):
    """Lines: bounds that were asked for and are not met."""
    lines = []
    if result["baseline"] and args.least_reduction and reduction(result) < args.least_reduction:
        lines.append(f"THE PEAK IS {reduction(result):.2f} TIMES LESS, NOT {args.least_reduction:g}")
    if result["baseline"] and args.most_slowdown and slowdown(result) > args.most_slowdown:
        lines.append(f"IT IS {slowdown(result):.2f} TIMES SLOWER, MORE THAN {args.most_slowdown:g}")
    return lines


def table(result):
    base, paged, rows = result["baseline"], result["paged"], []

    def row(what, value, more=""):
        rows.append((what, value, more))

    def both(what, key, show):
        row(what, show(base[key]) if base else "skipped", show(paged[key]))

    row("original size", size(result["original_bytes"]))
    row("compressed size", size(paged["stored_bytes"]))
    row("ratio", f"{result['original_bytes'] / paged['stored_bytes']:.3f}")
    row("space saved", f"{100 * (1 - paged['stored_bytes'] / result['original_bytes']):.1f} %")
    row("budget", size(paged["budget_bytes"]))
    row("", "baseline", "compressed")
    key = "vram_bytes" if result["device"] == "cuda" else "ram_bytes"
    both("peak VRAM (driver)" if key == "vram_bytes" else "peak RAM (smaps)", key, size)
    if key == "ram_bytes":
        both("  of which weights", "weights_bytes", size)
        if paged["counted_bytes"] is not None:
            row("  as the pager counts", "", size(paged["counted_bytes"]))
    if base:
        row("reduction", "", f"{reduction(result):.2f} x")
        if key == "vram_bytes" and reduction(result, context=False):
            row("  without the context", "", f"{reduction(result, context=False):.2f} x")
        if key == "ram_bytes" and paged["weights_bytes"]:
            row("  of the weights", "", f"{base['weights_bytes'] / paged['weights_bytes']:.2f} x")
    both("tokens/s", "tokens_per_s", lambda v: f"{v:.2f}")
    if base:
        row("slowdown", "", f"{slowdown(result):.2f} x")
    lines = [f"{what:<22} {value:>12} {more:>12}".rstrip() for what, value, more in rows]
    for name, run in (("baseline", base), ("compressed", paged)):
        if run:
            lines.append(f"text, {name}: {run['text']!r}")
    return "\n".join(lines)


def measure_all(args, say):
    command = step_codec(say)
    device = step_libraries(args, say)
    directory, shown, original = step_model(args, say)
    result = {"model": shown, "device": device, "mode": args.mode, "original_bytes": original}
    result["baseline"] = step_baseline(directory, device, args, say)
    with tempfile.TemporaryDirectory() as scratch:
        result["paged"] = step_paged(directory, device, args, command, original, scratch, say)
    result["verdict"], result["fine"] = ("no baseline to compare with", True)
    if result["baseline"]:
        result["verdict"], result["fine"] = compare(result["baseline"], result["paged"], args.mode)
    for line in missed(result, args):
        result["verdict"], result["fine"] = f"{result['verdict']}\n{line}", False
    return result


def main():
    args = parse_arguments()
    out = sys.stderr if args.json else sys.stdout
    try:
        result = measure_all(args, lambda line: print(line, file=out, flush=True))
    except Stop as why:
        print(f"test_inference_lowmem.py: {why}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result) if args.json else f"\n{table(result)}\n{result['verdict']}")
    sys.exit(0 if result["fine"] else 1)


# --- under pytest ---------------------------------------------------------------------------------------


def small(*more):
    return parse_arguments(["--model", SMALL, "--device", "cpu", "--tokens", "12", *more])


def test_the_small_model_gives_the_same_text_in_less_memory():
    result = measure_all(small("--budget", "4M"), print)
    print(table(result))
    assert result["verdict"] == "OUTPUTS MATCH" and result["fine"]
    assert result["baseline"]["weights_bytes"] > 9 << 20
    assert 0 < result["paged"]["counted_bytes"] <= 4 << 20
    assert 1 << 20 < result["paged"]["weights_bytes"] < 5 << 20, "a block that moves while smaps looks may count twice"
    assert result["original_bytes"] / result["paged"]["stored_bytes"] > 1.49
    assert "OUTPUTS" not in table(result) and "slowdown" in table(result)


def test_bounds_and_prompts():
    """Of made-up runs."""
    run = {"vram_bytes": 3000 << 20, "tokens_per_s": 30.0, "context_bytes": 700 << 20, "text": "", "ram_bytes": 0}
    paged = {**run, "vram_bytes": 1400 << 20, "tokens_per_s": 10.0, "budget_bytes": 1 << 20, "stored_bytes": 1}
    result = {"device": "cuda", "baseline": run, "paged": paged, "original_bytes": 1}
    assert f"{reduction(result):.2f}" == "2.14" and f"{reduction(result, context=False):.2f}" == "3.29"
    assert "3.29 x" in table(result) and "3.00 x" in table(result)
    assert missed(result, small("--least-reduction", "2", "--most-slowdown", "5")) == []
    lines = missed(result, small("--least-reduction", "2.5", "--most-slowdown", "2.9"))
    assert len(lines) == 2 and "2.14 TIMES LESS, NOT 2.5" in lines[0] and "3.00 TIMES SLOWER" in lines[1]
    assert "without the context" not in table({**result, "baseline": {**run, "context_bytes": None}})
    args = small()
    step_model(args, print)
    assert args.prompt == "ROMEO:"


def test_without_a_baseline():
    result = measure_all(small("--skip-baseline", "--mode", "q8"), print)
    assert result["baseline"] is None and result["fine"] and "skipped" in table(result)


def program(*arguments, **env):
    command = [sys.executable, os.path.abspath(__file__), *arguments]
    inherited = dict(os.environ)
    if "CWS_BUILD_DIR" in env:
        inherited.pop("CWS_LIBRARY", None)  # of the build that this process found
    return subprocess.run(command, env={**inherited, **env}, capture_output=True, text=True, timeout=900)


def one_line(done):
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("test_inference_lowmem.py: "), done.stderr
    return done.stderr


def test_what_is_missing_is_said_in_one_line(tmp_path):
    assert "was not built" in one_line(program("--model", SMALL, CWS_BUILD_DIR=str(tmp_path)))
    (tmp_path / "none").mkdir()
    assert "no .safetensors files" in one_line(program("--model", str(tmp_path / "none")))
    assert "the least that works is 1M" in one_line(
        program("--model", SMALL, "--skip-baseline", "--budget", "100K", "--device", "cpu")
    )
    (tmp_path / "torch.py").write_text("raise ImportError('broken here')")
    said = one_line(program("--model", SMALL, PYTHONPATH=str(tmp_path)))
    assert "torch cannot be imported (broken here)" in said and "pip install torch" in said


def test_an_unreachable_hub_is_said_in_one_line(tmp_path):
    said = one_line(
        program(
            "--model", "someone/some-model", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path)
        )
    )
    assert "the hub cannot be reached" in said and "--model DIR" in said


def test_lines_for_what_cannot_be_made_to_happen_here():
    assert "--skip-baseline" in explain_baseline(-9, "")
    assert "--skip-baseline" in explain_baseline(1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate")
    assert "boom" in explain_baseline(1, "Traceback\nValueError: boom")
    assert "is 700M" in explain_paged(
        1, "codecllm: the least budget that would have done is 700 MiB\nRuntimeError: x", 1 << 28
    )
    assert "token" in explain_download("m", type("GatedRepoError", (Exception,), {})("403"))
    same = {"tokens": [1, 2, 3]}
    other = {"tokens": [1, 7]}
    assert compare(same, same, "lossless") == ("OUTPUTS MATCH", True)
    line, fine = compare(same, other, "lossless")
    assert not fine and "token 1 on (2, 7)" in line and "bug" in line
    line, fine = compare(same, other, "q8")
    assert fine and "expected of q8" in line


if __name__ == "__main__":
    main()
