#!/usr/bin/env python3
"""The models that the contenders run: random weights in bf16, in the shape of a known model.

python models.py MODEL DIR [--device cuda] [--tiny]"""

import argparse
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
LLAMAS = {"8b": "llama-3.1-8b", "tinyllama": "tinyllama-1.1b"}  # of make_model.py
SIZES = {"flux": 23.8e9, "8b": 16.1e9, "tinyllama": 2.2e9}  # bytes of the weights
FLUX = {  # the configuration of FLUX.1-dev's transformer
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip
FLUX_TINY = dict(
    FLUX, num_layers=2, num_single_layers=3, attention_head_dim=32, num_attention_heads=8, joint_attention_dim=64,
    pooled_projection_dim=32, axes_dims_rope=(8, 12, 12),
)  # fmt: skip


def fill(module, device, random):
    """Normal values with a deviation of 0.02 for linear layers, drawn on the device, ones for norms."""
    import torch

    for part in module.modules():
        for p in part.parameters(recurse=False):
            if isinstance(part, torch.nn.Linear):
                p.data.copy_(torch.empty(p.shape, dtype=p.dtype, device=device).normal_(0, 0.02, generator=random))
            else:
                p.data.fill_(1)


def make_flux(directory, device, tiny):
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(**(FLUX_TINY if tiny else FLUX)).to(torch.bfloat16)
    model.to_empty(device="cpu")
    fill(model, device, torch.Generator(device).manual_seed(1))
    model.save_pretrained(directory, max_shard_size="1MB" if tiny else "4GB")


def make_llama(directory, shape, device):
    tool = os.path.join(ROOT, "tools", "examples", "make_model.py")
    command = [sys.executable, tool, "--shape", shape, "--device", device, "--shard-gb", "4", directory]
    subprocess.run(command, check=True)


def make(name, directory, device, tiny):
    """The directory is there when the model in it is complete."""
    if name == "flux":
        make_flux(directory + ".part", device, tiny)
    else:
        make_llama(directory + ".part", "llama-90m" if tiny else LLAMAS[name], device)
    os.rename(directory + ".part", directory)


def is_flux(directory):
    with open(os.path.join(directory, "config.json")) as file:
        return json.load(file).get("_class_name") == "FluxTransformer2DModel"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SIZES)
    parser.add_argument("directory")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where random values are drawn")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make(arguments.model, arguments.directory, arguments.device, arguments.tiny)


if __name__ == "__main__":
    main()
