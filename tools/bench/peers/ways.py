"""How a contender holds a model's weights. Each way takes `load`, which gives the plain model on the host, the device
and a budget in bytes (None where the way takes none), and returns a model to call."""

import os

import torch


def plain(load, device, budget):
    """All on the device; under the shim, this is also how CodecLLM is used."""
    return load().to(device)


def accelerate(load, device, budget):
    from accelerate import cpu_offload

    return cpu_offload(load(), execution_device=device)


def group_offload(model, device, kind):
    """With the fastest settings: pinned memory made once, copies through a stream of their own that run ahead, no wait
    where memory is freed."""
    from diffusers.hooks import apply_group_offloading

    stream = device.type == "cuda"
    apply_group_offloading(
        model,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=f"{kind}_level",
        num_blocks_per_group=1 if kind == "block" else None,
        use_stream=stream,
        non_blocking=stream,
        record_stream=stream,
    )
    return model


def leaves(load, device, budget):
    return group_offload(load(), device, "leaf")


def blocks(load, device, budget):
    """A Llama's embedding and head stay on the device: diffusers would move them, as what is no block, for each token,
    and wait."""
    model = load()
    if not hasattr(model, "lm_head"):
        return group_offload(model, device, "block")
    inner, embedding = model.model, model.model.embed_tokens
    inner.embed_tokens = torch.nn.Identity()
    group_offload(inner, device, "block")
    inner.embed_tokens = embedding.to(device)
    model.lm_head.to(device)
    return model


def aimdo(load, device, budget):
    import aimdo

    return aimdo.wrap(load(), device, budget)


def dfloat11(load, device, budget):
    """From its own files (df11.py). The model that it fills has no values: it drops the weights that it has codes for,
    and reads the rest."""
    from dfloat11 import DFloat11Model

    with torch.device("meta"):
        model = load.empty()
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffer is in no file
    return DFloat11Model.from_pretrained(
        os.fspath(load.directory), bfloat16_model=model, device=str(device), cpu_offload=True
    ).eval()


WAYS = {way.__name__: way for way in (plain, accelerate, leaves, blocks, aimdo, dfloat11)}
ONLY_GPU = {"aimdo", "dfloat11"}
