#!/usr/bin/env python3
"""One contender in a process of its own: loads a model in one way (ways.py), runs steps, and prints what it measured as
a line of JSON, or why it could not: {"failed": words}.

python contender.py WAY DIR [--device cuda] [--budget BYTES] [--steps 8] [--seconds 20] [--tokens 4096,512]

A step is a token of a Llama, batch 1 after a prompt of 24, or a denoising step of a transformer of FLUX's kind with so
many image and text tokens; each ends with a wait for the device. The first two warm up, and are not among `ms`."""

import argparse
import hashlib
import json
import os
import time

import models

WARM = 2


def digest(*tensors):
    """Of their bytes."""
    import torch

    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:20]


class Llama:
    """What the ways call to load the model, and what is timed: token after token."""

    def __init__(self, directory, tokens):
        self.directory = directory
        self.past, self.seen = None, []

    def __call__(self):
        from transformers import AutoModelForCausalLM

        # PyTorch's own attention may plan each new length of the context anew, which hides everything else.
        return AutoModelForCausalLM.from_pretrained(self.directory, dtype="auto", attn_implementation="eager").eval()

    def empty(self):
        """The model without values."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.directory)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")

    def begin(self, model, device):
        import torch

        self.model = model
        self.token = torch.randint(3, 2000, (1, 24), generator=torch.Generator().manual_seed(0)).to(device)
        self.step()
        self.look()

    def step(self):
        out = self.model(self.token, use_cache=True, past_key_values=self.past, logits_to_keep=1)
        self.past, self.logits = out.past_key_values, out.logits
        self.token = self.logits[:, -1:].argmax(-1)
        self.token.item()  # a program that generates looks at each token

    def look(self):
        if len(self.seen) < WARM + 2:
            self.seen.append(self.logits)

    def digest(self):
        """The logits of the prompt, and of the tokens that every run makes."""
        return digest(*self.seen)


class Flux:
    """The same for a transformer of diffusers: the same step again and again."""

    def __init__(self, directory, tokens):
        self.directory, self.tokens = directory, tokens
        self.seen = set()

    def __call__(self):
        import torch
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel.from_pretrained(self.directory, torch_dtype=torch.bfloat16).eval()

    def begin(self, model, device):
        import torch

        self.model, random, (images, words) = model, torch.Generator().manual_seed(5), self.tokens
        side = int(images**0.5)

        def there(x):
            return x.to(torch.bfloat16).to(device)

        def draw(*shape):
            return there(torch.randn(*shape, generator=random))

        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3)
        self.inputs = {
            "hidden_states": draw(1, side * side, model.config.in_channels),
            "encoder_hidden_states": draw(1, words, model.config.joint_attention_dim),
            "pooled_projections": draw(1, model.config.pooled_projection_dim),
            "timestep": there(torch.tensor([0.7])),
            "guidance": there(torch.tensor([3.5])),
            "img_ids": there(places),
            "txt_ids": there(torch.zeros(words, 3)),
            "return_dict": False,
        }

    def step(self):
        (self.out,) = self.model(**self.inputs)

    def look(self):
        self.seen.add(digest(self.out) if self.out.isfinite().all() else "not finite")

    def digest(self):
        """One, unless steps differ."""
        return " ".join(sorted(self.seen))


def measure(arguments):
    if arguments.way == "aimdo":  # its library sees allocations if it comes before torch
        from comfy_aimdo import control

        if not control.init(implementation="cuda"):
            raise RuntimeError("aimdo's library does not load")
    import torch
    from ways import WAYS

    device = torch.device("cuda:0" if arguments.device == "cuda" else "cpu")
    program = (Flux if models.is_flux(arguments.model) else Llama)(arguments.model, arguments.tokens)
    ms, begin = [], time.perf_counter()
    model = WAYS[arguments.way](program, device, arguments.budget)
    loaded = time.perf_counter()
    with torch.no_grad():
        program.begin(model, device)
        while len(ms) <= WARM or (len(ms) < WARM + arguments.steps and sum(ms[WARM:]) < 1e3 * arguments.seconds):
            at = time.perf_counter()
            program.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            ms.append((time.perf_counter() - at) * 1e3)
            program.look()
    return {"load_s": loaded - begin, "ms": ms[WARM:], "warm_ms": ms[:WARM], "digest": program.digest()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way")
    parser.add_argument("model")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--budget", type=int)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20, help="no step begins when the timed ones took that long")
    parser.add_argument("--tokens", type=lambda text: tuple(map(int, text.split(","))), default=(4096, 512))
    arguments = parser.parse_args()
    try:
        facts = measure(arguments)
    except ImportError as error:
        facts = {"failed": f"not installed: {error}"}
    except Exception as error:  # a peer may fail in any way
        import traceback

        traceback.print_exc()
        facts = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    print(json.dumps(facts), flush=True)
    if arguments.way == "aimdo":
        os._exit(0)  # its memory must not outlive its library


if __name__ == "__main__":
    main()
