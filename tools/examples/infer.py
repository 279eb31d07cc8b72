#!/usr/bin/env python3
"""Greedy text generation with plain transformers: the program that is shown running from packed files. Nothing of
CodecLLM is imported here.

    python tools/examples/infer.py --model DIR --prompt "ROMEO:" --max-new-tokens 60
    CODEC_VRAM_BUDGET=4M python tools/examples/infer.py --model DIR.packed --prompt "ROMEO:"

The text goes to stdout, the timings to stderr.
"""

import argparse
import json
import sys
import time

BEGIN = time.perf_counter()


def parse_arguments():
    parser = argparse.ArgumentParser(description="Generate text greedily with a transformers model.")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory (or a name on the hub)")
    parser.add_argument("--prompt", default="ROMEO:", help="text to go on from (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=40, metavar="N", help="default: %(default)s")
    parser.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="go on past an end of text")
    parser.add_argument("--device", default=None, help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads of torch (default: its own choice)"
    )
    parser.add_argument(
        "--attention", default=None, metavar="NAME", help="transformers' attn_implementation (default: the model's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of torch, for models with random parts (default: %(default)s)"
    )
    parser.add_argument("--logits", metavar="FILE", help="write the logits of the prompt as raw bytes, for comparison")
    parser.add_argument("--report", metavar="FILE", help="write tokens and timings as JSON")
    return parser.parse_args()


class Clock:
    """A streamer that notes when each token arrived (the first call brings the prompt)."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def main():
    args = parse_arguments()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    imported = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    options = {"attn_implementation": args.attention} if args.attention else {}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", **options).to(device).eval()
    loaded = time.perf_counter()

    inputs = tokenizer(args.prompt, return_tensors="pt").to(device)
    inputs.pop("token_type_ids", None)
    clock = Clock()
    with torch.inference_mode():
        begin = time.perf_counter()
        output = model.generate(
            **inputs,
            max_new_tokens=args.max_new_tokens,
            min_new_tokens=args.min_new_tokens or None,
            do_sample=False,
            streamer=clock,
        )
        arrivals = clock.times[1:]
        if args.logits:
            logits = model(**inputs).logits.contiguous().cpu()
            with open(args.logits, "wb") as file:
                file.write(logits.view(torch.uint8).numpy().tobytes())

    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    print(tokenizer.decode(output[0], skip_special_tokens=True), flush=True)
    report = {
        "tokens": tokens,
        "import_s": imported - BEGIN,
        "load_s": loaded - imported,
        "first_token_s": arrivals[0] - begin,
        "tokens_per_s": (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]) if len(arrivals) > 1 else 0.0,
    }
    print(
        f"{len(tokens)} tokens; load {report['load_s']:.2f} s, first token {report['first_token_s']:.2f} s, "
        f"then {report['tokens_per_s']:.2f} tokens/s",
        file=sys.stderr,
    )
    if args.report:
        with open(args.report, "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    main()
