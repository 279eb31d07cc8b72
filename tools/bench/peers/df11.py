#!/usr/bin/env python3
"""DFloat11's files of a Llama, written by its own compress_model, which decodes each layer on the GPU and compares.

python df11.py DIR OUT

Its encoder is a loop of Python over a list of symbols, too slow for a model of 8 G weights. encode() here gives the
same bytes (which is checked against the loop first, on a small tensor) with operations of torch on many symbols at
once."""

import argparse
import json
import os

import numpy as np
import torch

GROUP = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
PATTERNS = {  # what is compressed together, as in the published files of Llama-3.1-8B
    r"model\.embed_tokens": [],
    r"lm_head": [],
    r"model\.layers\.\d+": [*GROUP, "mlp.down_proj"],
}
PIECE = 8 << 20  # symbols at once
END = 256  # stands for the end mark, which is no byte


def encode(symbols, codec, bytes_per_thread, threads_per_block):
    """A uint8 tensor -> (the codes one after the other, where the first code of each thread begins in its bytes, the
    first symbol of each block of threads), as numpy arrays."""
    device = symbols.device
    bits, codes = torch.zeros(257, dtype=torch.int64), torch.zeros(257, dtype=torch.int64)
    for symbol, (length, code) in codec.get_code_table().items():
        at = symbol if isinstance(symbol, int) else END
        bits[at], codes[at] = length, code
    bits, codes = bits.to(device), codes.to(device)
    thread_bits = 8 * bytes_per_thread
    total = int((torch.bincount(symbols, minlength=257) * bits).sum())
    out = torch.zeros(total // 8 + 16, dtype=torch.int32, device=device)  # a byte each; codes share no bit
    gaps, positions, begin, done, before = [], [], 0, 0, torch.tensor([-1], device=device)
    pieces = [symbols[i : i + PIECE] for i in range(0, symbols.numel(), PIECE)]
    if total % 8:
        pieces.append(torch.tensor([END], device=device))
    for piece in pieces:
        piece = piece.long()
        ends = begin + bits[piece].cumsum(0)
        starts = ends - bits[piece]
        values = codes[piece] << (40 - starts % 8 - bits[piece])  # five bytes hold a code of 32 bits wherever it begins
        for k in range(5):
            out.index_add_(0, starts // 8 + k, (values >> (32 - 8 * k) & 255).int())
        threads = torch.cat((before, starts // thread_bits))
        gaps.append(starts[threads[1:] != threads[:-1]] % thread_bits)
        blocks = torch.div(threads, threads_per_block, rounding_mode="floor")
        positions.append((blocks[1:] != blocks[:-1]).nonzero().flatten() + done)
        begin, done, before = int(ends[-1]), done + piece.numel(), threads[-1:]
    used = (total + 7) // 8
    threads = -(-used // (threads_per_block * bytes_per_thread)) * threads_per_block
    gaps = torch.cat(gaps).byte().cpu().numpy()
    gaps = np.concatenate((gaps, np.zeros(max(0, threads - gaps.size), np.uint8)))
    five = np.unpackbits(gaps[:, None], axis=1)[:, 3:]  # bits of each
    positions = torch.cat(positions).tolist() + [symbols.numel()]
    return out[:used].byte().cpu().numpy(), np.packbits(five.reshape(-1)), np.array(positions, np.uint32)


def split(weights):
    """(exponents, signs and mantissas) of bf16 tensors, one after the other; on the GPU, where there is one."""
    values = torch.cat(weights).to("cuda" if torch.cuda.is_available() else "cpu").view(torch.int16)
    return (values >> 7 & 0xFF).byte(), (values >> 8 & 0x80 | values & 0x7F).byte()


def get_codec(weight):
    from dahuffman import HuffmanCodec

    counts = torch.bincount(split([weight])[0], minlength=256).tolist()
    counts = {symbol: count for symbol, count in enumerate(counts) if count}
    return HuffmanCodec.from_frequencies(counts), counts


def encode_weights(weights, codec, bytes_per_thread, threads_per_block):
    exponents, others = split(weights)
    codes, gaps, positions = map(torch.from_numpy, encode(exponents, codec, bytes_per_thread, threads_per_block))
    return codes, others.cpu(), positions, gaps, torch.tensor([w.numel() for w in weights]).cumsum(0)[:-1]


def check(theirs):
    """Raises ValueError unless the two functions give what those of the package `theirs` do."""
    weights = [torch.randn(n, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (70001, 5, 4097)]
    weights[1] *= 1e-30
    codec, counts = get_codec(torch.cat(weights))
    if counts != theirs.get_codec(torch.cat(weights))[1]:
        raise ValueError("dfloat11 counts otherwise than df11.py")
    arguments = weights, codec, 8, 512
    for ours, wanted in zip(encode_weights(*arguments), theirs.encode_weights(*arguments)):
        if not torch.equal(ours, wanted):
            raise ValueError("dfloat11 encodes otherwise than df11.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("out")
    arguments = parser.parse_args()
    from dfloat11 import dfloat11 as package
    from transformers import AutoModelForCausalLM

    check(package)
    package.get_codec, package.encode_weights = get_codec, encode_weights
    model = AutoModelForCausalLM.from_pretrained(arguments.directory, dtype="auto")
    there, part = torch.cuda.is_available(), arguments.out + ".part"
    package.compress_model(model, PATTERNS, part, save_single_file=False, check_correctness=there)
    with open(os.path.join(part, "config.json")) as file:
        if "dfloat11_config" not in json.load(file):
            raise ValueError("dfloat11 wrote no configuration")
    os.rename(part, arguments.out)


if __name__ == "__main__":
    main()
