#!/usr/bin/env python3
"""A pipeline of diffusers, text encoders, transformer and VAE, from its packed directory in a budget below their sum:
are the images the same to the bit, how long does one take, what does it load?

    python tools/gpu/pipeline.py OUTDIR [--build BUILD] [--work DIR] [--scale large|small] [--shares 60,40]
        [--budgets 3G,2G] [--images 4] [--steps 4] [--device cuda|cpu]

Makes a FluxPipeline with random weights (large: 1.7 GB of text encoders, 3 GB of transformer and 0.2 GB of VAE) and
tokenizers of letters, packs it with one `codecllm pack`, and runs an ordinary program on each, a process each:
DiffusionPipeline.from_pretrained(DIR, torch_dtype=torch.bfloat16).to("cuda"), then images, of which the first is not
timed. Budgets are shares of the weights in percent, or sizes. OUTDIR/NAME.json has the time and the counters of each
image. Exit status 1 if an image differs, or a program fails; 77 where diffusers is not installed. --device cpu --scale
small tries it everywhere (there the budget bounds host memory)."""

import argparse
import hashlib
import json
import os
import statistics
import string
import sys
import time

import denoise
import scenarios
import workers

GIB = 1 << 30
SIZES = {
    "small": {
        "clip": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "t5": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 4, "num_heads": 4},
        "flux": {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 8},
        "axes": (8, 12, 12), "vae": {"block_out_channels": (32, 64), "layers_per_block": 1}, "side": 64, "words": 32,
        "shard": "2MB",
    },
    "large": {
        "clip": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "t5": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 16, "num_heads": 32},
        "flux": {"num_layers": 4, "num_single_layers": 14, "attention_head_dim": 128, "num_attention_heads": 16},
        "axes": (16, 56, 56), "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}, "side": 512,
        "words": 256, "shard": "1GB",
    },
}  # fmt: skip
COLUMNS = {  # after the name: what it is, how wide
    "s an image": 10, "of plain": 8, "peak MiB": 8, "images": 9, "loads": 7, "link GB": 8, "waits, ms": 9, "load s": 7,
}  # fmt: skip


def make_tokenizers(words):
    """Of letters, without any file."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    ends, letters = ["<|startoftext|>", "<|endoftext|>"], string.ascii_lowercase
    pieces = ends + list(letters) + [letter + "</w>" for letter in letters]
    clip = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *letters]
    t5 = T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    t5.model_max_length = words
    return clip, t5


def make_pipeline(arguments, directory):
    """The directory is there when the pipeline in it is complete."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    size = SIZES[arguments.scale]
    clip, t5 = make_tokenizers(size["words"])
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(arguments.device):
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(clip), **ends, **size["clip"])),
            tokenizer=clip,
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(t5), feed_forward_proj="gated-gelu", **size["t5"])),
            tokenizer_2=t5,
            transformer=FluxTransformer2DModel(
                in_channels=64,
                joint_attention_dim=size["t5"]["d_model"],
                pooled_projection_dim=size["clip"]["hidden_size"],
                axes_dims_rope=size["axes"],
                **size["flux"],
            ),
            vae=AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * len(size["vae"]["block_out_channels"]),
                up_block_types=["UpDecoderBlock2D"] * len(size["vae"]["block_out_channels"]),
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.1159,
                scaling_factor=0.3611,
                **size["vae"],
            ),
        )
    torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(directory + ".part", max_shard_size=size["shard"])
    os.rename(directory + ".part", directory)
    del pipeline
    if arguments.device == "cuda":
        torch.cuda.empty_cache()  # the programs to come need it


def weight_bytes(directory):
    files = [os.path.join(at, name) for at, _, names in os.walk(directory) for name in names]
    return sum(os.path.getsize(file) for file in files if file.endswith(".safetensors"))


def work(arguments):
    """In a process of its own: prints what came out as one line of JSON."""
    import torch
    from diffusers import DiffusionPipeline

    size, begin = SIZES[arguments.scale], time.perf_counter()
    pipeline = DiffusionPipeline.from_pretrained(arguments.model, torch_dtype=torch.bfloat16).to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter() - begin
    seconds, digests, told, finite = [], [], [], True
    for i in range(arguments.images):
        told.append(workers.counters())
        begin = time.perf_counter()
        image = pipeline(
            f"a picture of {string.ascii_lowercase[i % 26]}",
            height=size["side"],
            width=size["side"],
            num_inference_steps=arguments.steps,
            max_sequence_length=size["words"],
            generator=torch.Generator().manual_seed(i),
            output_type="pt",
        ).images.cpu()
        seconds.append(time.perf_counter() - begin)
        digests.append(hashlib.sha256(image.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:20])
        finite &= bool(image.isfinite().all())
    told.append(workers.counters())
    rates = [{k: b[k] - a[k] for k in denoise.RATES if k in a} for a, b in zip(told, told[1:])]
    print(json.dumps({"load_s": loaded, "s": seconds, "digests": digests, "finite": finite, "rates": rates}))


def run(arguments, name, model, budget):
    """What work() printed, and the peak; {"failed": words}: the program did not end well."""
    command = [sys.executable, os.path.abspath(__file__), arguments.out, "--model", model]
    for option in ("device", "scale", "images", "steps"):
        command += [f"--{option}", str(getattr(arguments, option))]
    result = workers.run(arguments, name, command, scenarios.environment(arguments, budget))
    result.setdefault("peak_mib", "-")
    return result


def wrong(result, plain):
    """How many images are not the plain program's."""
    return sum(one != other for one, other in zip(result["digests"], plain["digests"]))


def line(cells):
    return f"{cells[0]:<14}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells[1:], COLUMNS.values()))


def row(name, result, plain):
    if "failed" in result:
        return f"{name:<14} {result['failed']}"
    seconds, others = statistics.median(result["s"][1:]), wrong(result, plain)
    cells = [name, f"{seconds:.3f}", f"{seconds / statistics.median(plain['s'][1:]):.2f}", result["peak_mib"]]
    cells.append(f"{others} OTHERS" if others else "same")
    rates = {k: statistics.mean(image[k] for image in result["rates"][1:]) for k in result["rates"][-1]}
    cells.append(f"{rates['loads']:.0f}" if rates else "-")
    cells.append(f"{rates['link_bytes'] / 1e9:.2f}" if rates else "-")
    cells.append(f"{rates['weight_wait_ns'] / 1e6:.0f}" if rates else "-")
    return line([*cells, f"{result['load_s']:.1f}"])


def budgets(arguments, size):
    """(name, bytes or a size) of each."""
    if arguments.budgets:
        return [(budget, budget) for budget in arguments.budgets.split(",")]
    return [(f"{share}-percent", str(size * int(share) // 100)) for share in arguments.shares.split(",")]


def compare(arguments, plain_dir, say):
    """Is anything wrong?"""
    size = weight_bytes(plain_dir)
    say(f"{size / GIB:.2f} GiB of weights, {weight_bytes(plain_dir + '.packed') / GIB:.2f} GiB packed")
    say(line(["", *COLUMNS]))
    plain = run(arguments, "plain", plain_dir, None)
    say(row("plain", plain, plain))
    if "failed" in plain:
        return True
    told = plain["finite"] and len(set(plain["digests"])) == len(plain["digests"])
    if not told:
        say("images are not finite, or the same for all prompts, so that equal bits tell nothing")
    bad = not told
    for name, budget in budgets(arguments, size):
        result = run(arguments, name, plain_dir + ".packed", budget)
        say(row(name, result, plain))
        bad |= "failed" in result or wrong(result, plain) > 0
    return bad


def main():
    parser = workers.parser(__doc__)
    parser.add_argument("--scale", default="large", choices=SIZES)
    parser.add_argument("--shares", default="60,40", help="of the weights, percent")
    parser.add_argument("--budgets", help="sizes, instead of shares")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", help=argparse.SUPPRESS)  # in the processes that this one starts
    arguments = parser.parse_args()
    if arguments.model:
        work(arguments)
        return
    try:
        import diffusers  # noqa: F401
    except ImportError:
        print("pipeline.py: diffusers is not installed: pip install diffusers")
        sys.exit(77)
    workers.make_directories(arguments)
    plain_dir = os.path.join(arguments.work, f"pipeline-{arguments.scale}")
    if not os.path.isdir(plain_dir):
        make_pipeline(arguments, plain_dir)
    workers.packed(arguments, plain_dir)
    with workers.table(arguments) as say:
        workers.say_link(arguments, say)
        bad = compare(arguments, plain_dir, say)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
