#!/usr/bin/env python3
"""Makes a Llama model directory with random weights (normal, deviation 0.02, bf16) in the shape of a known model, to
measure with when the real weights may not be downloaded. The tokenizer is that of the small model under tests/models.

    python tools/examples/make_model.py --shape tinyllama-1.1b /tmp/TinyLlama          # 2.2 GB
    python tools/examples/make_model.py --shape llama-3.1-8b --shard-gb 4 /tmp/Llama8B # 16 GB in shards
"""

import argparse
import json
import os
import shutil
import struct
import sys

SHAPES = {  # layers, hidden, intermediate, heads, key-value heads, vocabulary, tied embeddings
    "tinyllama-1.1b": (22, 2048, 5632, 32, 4, 32000, False),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128256, False),
    "llama-2-13b": (40, 5120, 13824, 40, 40, 32000, False),
    "llama-90m": (8, 1024, 2816, 16, 4, 2048, True),
    "tiny": (2, 64, 160, 4, 2, 2048, True),
}


def tensor_shapes(shape):
    layers, hidden, intermediate, heads, kv_heads, vocabulary, tied = shape
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "mlp.down_proj.weight", (hidden, intermediate)
        yield layer + "mlp.gate_proj.weight", (intermediate, hidden)
        yield layer + "mlp.up_proj.weight", (intermediate, hidden)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "self_attn.k_proj.weight", (kv, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, hidden)
        yield layer + "self_attn.q_proj.weight", (hidden, hidden)
        yield layer + "self_attn.v_proj.weight", (kv, hidden)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocabulary, hidden)


def byte_count(shape):
    count = 2
    for n in shape:
        count *= n
    return count


def cut_into_shards(tensors, shard_bytes):
    shards, size = [[]], 0
    for name, shape in tensors:
        if shards[-1] and size + byte_count(shape) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += byte_count(shape)
    return shards


def write_shard(path, tensors, generator):
    """A safetensors file, written tensor by tensor: one tensor is in memory at a time, drawn on the generator's
    device."""
    import torch

    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + byte_count(shape)]}
        offset += byte_count(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            if len(shape) == 1:
                values = torch.ones(shape, dtype=torch.bfloat16)
            else:
                values = torch.empty(shape, dtype=torch.float32, device=generator.device)
                values = values.normal_(0, 0.02, generator=generator).to(torch.bfloat16).cpu()
            file.write(memoryview(values.view(torch.uint8).numpy()).cast("B"))


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def config(shape, tokenizer):
    layers, hidden, intermediate, heads, kv_heads, vocabulary, tied = shape
    with open(os.path.join(tokenizer, "config.json")) as file:
        value = json.load(file)
    value.update(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=2048,
    )
    return value


def main():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(description="Make a model directory with random weights.")
    parser.add_argument("out", metavar="DIR")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b", help="default: %(default)s")
    parser.add_argument(
        "--shard-gb", type=float, default=0, metavar="N", help="shards of at most N GB (default: one file)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="where values are drawn; others on a GPU than on the CPU")
    parser.add_argument("--tokenizer", default=os.path.join(root, "tests", "models", "bard"), metavar="DIR")
    args = parser.parse_args()
    import torch

    shape = SHAPES[args.shape]
    tensors = list(tensor_shapes(shape))
    total = sum(byte_count(s) for _, s in tensors)
    shards = cut_into_shards(tensors, args.shard_gb * 1e9) if args.shard_gb else [tensors]
    try:
        os.makedirs(args.out)
    except FileExistsError:
        sys.exit(f"make_model.py: {args.out}: exists already; nothing is overwritten")
    if shutil.disk_usage(args.out).free < total * 1.01:
        os.rmdir(args.out)
        sys.exit(f"make_model.py: {args.out}: needs {total / 1e9:.1f} GB of free space")
    generator = torch.Generator(args.device).manual_seed(args.seed)
    weight_map = {}
    for i, shard in enumerate(shards):
        one = len(shards) == 1
        name = "model.safetensors" if one else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(os.path.join(args.out, name), shard, generator)
        weight_map.update((tensor, name) for tensor, _ in shard)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(os.path.join(args.out, "model.safetensors.index.json"), index)
    write_json(os.path.join(args.out, "config.json"), config(shape, args.tokenizer))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(args.tokenizer, name), os.path.join(args.out, name))
    print(
        f"{args.out}: {args.shape}, {total / 2e9:.2f} G parameters, {total / 1e9:.2f} GB, {len(shards)} file(s)",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
