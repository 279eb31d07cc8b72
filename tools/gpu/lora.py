"""Programs that adapt a model by LoRA, for tools/gpu/adapters.py: plain torch, PEFT and diffusers, nothing of CodecLLM.
Each takes a Source and says what it computed, a label and a digest of the bits at a time; it gives its model."""

import glob
import hashlib
import json
import os

STEPS = 3  # of an optimizer
RANK, ALPHA = 8, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROGRAMS = {}


def program(*needs):
    """Of the modules that it needs, beside torch and safetensors; its name has a - where the function's has a _."""

    def add(function):
        function.needs = needs
        PROGRAMS[function.__name__.replace("_", "-")] = function
        return function

    return add


def digest(tensors):
    import torch

    content = b"".join(t.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    return hashlib.sha256(content).hexdigest()[:20]


class Source:
    """Where a program finds its model and its adapters, and whom it tells what it computed."""

    def __init__(self, directory, adapters, device):
        self.directory, self.adapters, self.device = directory, adapters, device
        self.title, self.said, self.finite = "", [], True

    def say(self, label, *tensors):
        self.said.append([f"{self.title}: {label}", digest(tensors)])
        self.finite &= all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())

    def adapter(self, name):
        return os.path.join(self.adapters, name)

    def ids(self, seed, rows=2, columns=24):
        import torch

        return torch.randint(3, 2000, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(self.device)


def tensors_of(directory):
    """(name, shape, dtype) of all tensors in the files of a directory."""
    from safetensors import safe_open

    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                piece = file.get_slice(name)
                yield name, piece.get_shape(), piece.get_dtype()


def make_adapter(model, directory, seed, prefix, targets):
    """An adapter of random values for the matrices of a model's directory whose names end with one of the targets, as
    PEFT and diffusers read it: a file of safetensors, and PEFT's settings beside it."""
    import torch
    from safetensors.torch import save_file

    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape, _ in tensors_of(model):
        module = name.removesuffix(".weight")
        if len(shape) == 2 and module.endswith(tuple(targets)):
            for part, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                tensors[f"{prefix}{module}.lora_{part}.weight"] = torch.randn(size, generator=random) / 24
    os.makedirs(directory)
    diffusers = prefix.startswith("transformer")
    name = "pytorch_lora_weights.safetensors" if diffusers else "adapter_model.safetensors"
    save_file(tensors, os.path.join(directory, name), {"format": "pt"})
    if not diffusers:
        settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA}
        with open(os.path.join(directory, "adapter_config.json"), "w") as file:
            json.dump({**settings, "target_modules": targets, "base_model_name_or_path": "base"}, file)


# --- plain torch ---------------------------------------------------------------------------------------------------


class Llama:
    """A Llama's layers without positions, in plain torch, with low-rank matrices beside frozen weights."""

    def __init__(self, s):
        import torch
        from safetensors import safe_open

        with open(os.path.join(s.directory, "config.json")) as file:
            self.config = json.load(file)
        self.weights, self.low, self.checkpointed = {}, {}, False
        for path in sorted(glob.glob(os.path.join(s.directory, "*.safetensors"))):
            with safe_open(path, framework="pt") as file:
                self.weights.update({name: file.get_tensor(name).to(s.device) for name in file.keys()})  # noqa: SIM118
        random = torch.Generator().manual_seed(5)
        for name, weight in self.weights.items():
            if name.removesuffix(".weight").endswith(tuple(TARGETS)):
                sizes = (RANK, weight.shape[1]), (weight.shape[0], RANK)
                self.low[name] = [(torch.randn(size, generator=random) / 24).to(s.device) for size in sizes]

    def linear(self, x, name):
        from torch.nn import functional

        y = functional.linear(x, self.weights[name])
        if name in self.low:
            a, b = self.low[name]
            y = y + functional.linear(functional.linear(x.float(), a), b).to(y.dtype) * (ALPHA / RANK)
        return y

    def norm(self, x, name):
        from torch.nn import functional

        return functional.rms_norm(x, x.shape[-1:], self.weights[name], self.config["rms_norm_eps"])

    def layer(self, x, i):
        from torch.nn import functional

        at, count = f"model.layers.{i}.", self.config["num_attention_heads"]
        y = self.norm(x, at + "input_layernorm.weight")
        q, k, v = (
            self.linear(y, f"{at}self_attn.{part}_proj.weight").unflatten(-1, (-1, self.config["head_dim"]))
            for part in "qkv"
        )
        k, v = (t.repeat_interleave(count // t.shape[-2], -2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2)).float() / self.config["head_dim"] ** 0.5
        attended = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(-2)
        x = x + self.linear(attended, at + "self_attn.o_proj.weight")
        y = self.norm(x, at + "post_attention_layernorm.weight")
        inner = functional.silu(self.linear(y, at + "mlp.gate_proj.weight")) * self.linear(y, at + "mlp.up_proj.weight")
        return x + self.linear(inner, at + "mlp.down_proj.weight")

    def logits(self, ids):
        from torch.nn import functional
        from torch.utils.checkpoint import checkpoint

        embeddings = self.weights["model.embed_tokens.weight"]
        x = functional.embedding(ids, embeddings)
        for i in range(self.config["num_hidden_layers"]):
            x = checkpoint(self.layer, x, i, use_reentrant=False) if self.checkpointed else self.layer(x, i)
        return functional.linear(self.norm(x, "model.norm.weight"), self.weights.get("lm_head.weight", embeddings))


def optimizers(parameters):
    """(name, optimizer) of all that are tried."""
    import torch

    yield "AdamW", torch.optim.AdamW(parameters, lr=1e-3)
    yield "SGD", torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def train(s, loss_of, parameters):
    """Some steps with each optimizer; says each loss, and the parameters in the end."""
    for name, optimizer in optimizers(parameters):
        for step in range(STEPS):
            loss = loss_of(s.ids(100 + step))
            loss.backward()
            s.say(f"{name} loss {step}", loss)
            optimizer.step()
            optimizer.zero_grad()
        s.say(f"{name} adapter", *parameters)


def train_plain(s, checkpointed):
    from torch.nn import functional

    model = Llama(s)
    model.checkpointed = checkpointed
    parameters = [part.requires_grad_() for pair in model.low.values() for part in pair]

    def loss_of(ids):
        return functional.cross_entropy(model.logits(ids)[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    train(s, loss_of, parameters)
    s.say("base", *model.weights.values())
    return model


@program()
def torch_train(s):
    """plain torch: low-rank matrices trained beside frozen weights"""
    return train_plain(s, checkpointed=False)


@program()
def torch_checkpoint(s):
    """the same, and each layer computed again for its gradients"""
    return train_plain(s, checkpointed=True)


@program()
def torch_merge(s):
    """plain torch: low-rank matrices added to the weights in place, and subtracted again"""
    import torch

    model = Llama(s)
    with torch.no_grad():
        s.say("beside", model.logits(s.ids(1)))
        low, model.low = model.low, {}
        s.say("without", model.logits(s.ids(1)))
        for sign in (1, -1):
            for name, (a, b) in low.items():
                model.weights[name] += sign * (ALPHA / RANK) * (b @ a).to(model.weights[name].dtype)
            s.say("merged" if sign > 0 else "unmerged", model.logits(s.ids(1)))
        s.say("weights", *model.weights.values())
    return model


# --- PEFT ----------------------------------------------------------------------------------------------------------


def load(s):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(s.directory, dtype=torch.bfloat16, attn_implementation="eager")
    return model.to(s.device).eval()


def logits(s, model):
    import torch

    with torch.no_grad():
        return model(input_ids=s.ids(1)).logits


def tokens(s, model):
    ids = s.ids(2, columns=8)
    return model.generate(
        input_ids=ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )


@program("transformers", "peft")
def peft_load(s):
    """PEFT: an adapter loaded beside the weights, switched off, and unloaded"""
    from peft import PeftModel

    model = load(s)
    s.say("base", logits(s, model))
    model = PeftModel.from_pretrained(model, s.adapter("one"))
    s.say("one", logits(s, model), tokens(s, model))
    with model.disable_adapter():
        s.say("disabled", logits(s, model))
    model = model.unload()
    s.say("unloaded", logits(s, model))
    return model


def transformers_refuses_peft():
    """Why transformers' own calls cannot be made, in words; None: they can."""
    from transformers.integrations import peft
    from transformers.utils.peft_utils import check_peft_version

    try:
        check_peft_version(min_version=peft.MIN_PEFT_VERSION)
    except ValueError as error:
        return f"transformers refuses this PEFT: {error}"
    return None


@program("transformers", "peft")
def transformers_load(s):
    """transformers' own calls: load_adapter(), disable_adapters(), enable_adapters(), delete_adapter()"""
    model = load(s)
    s.say("base", logits(s, model))
    model.load_adapter(s.adapter("one"), adapter_name="one")
    s.say("one", logits(s, model), tokens(s, model))
    model.disable_adapters()
    s.say("disabled", logits(s, model))
    model.enable_adapters()
    s.say("enabled", logits(s, model))
    model.delete_adapter("one")
    s.say("deleted", logits(s, model))
    return model


@program("transformers", "peft")
def peft_switch(s):
    """PEFT: two adapters in turn, and none, in place; unload()"""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load(s), s.adapter("one"), adapter_name="one")
    model.load_adapter(s.adapter("two"), adapter_name="two")
    for turn, name in enumerate(["one", "two", "one", "two"]):
        model.set_adapter(name)
        s.say(f"{turn} {name}", logits(s, model), tokens(s, model))
    with model.disable_adapter():
        s.say("disabled", logits(s, model))
    model.delete_adapter("two")
    s.say("one left", logits(s, model))
    model = model.unload()
    s.say("unloaded", logits(s, model))
    return model


@program("transformers", "peft")
def peft_merge(s):
    """PEFT: merge_adapter(), unmerge_adapter(), another one, merge_and_unload()"""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load(s), s.adapter("one"), adapter_name="one")
    model.load_adapter(s.adapter("two"), adapter_name="two")
    s.say("beside", logits(s, model))
    for name in ("one", "two"):
        model.set_adapter(name)
        model.merge_adapter()
        s.say(f"merged {name}", logits(s, model), tokens(s, model))
        model.unmerge_adapter()
        s.say(f"unmerged {name}", logits(s, model))
    model.set_adapter("one")
    model = model.merge_and_unload(safe_merge=True)
    s.say("merged for good", logits(s, model), tokens(s, model))
    s.say("weights", *model.state_dict().values())
    return model


def adapted(model):
    """A new adapter for all matrices."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"))


def train_peft(s, checkpointed):
    model = load(s)
    if checkpointed:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model = adapted(model)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    train(s, lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss, parameters)
    model.eval()
    s.say("trained", logits(s, model))
    s.say("base", *(p for p in model.parameters() if not p.requires_grad))
    return model


@program("transformers", "peft")
def peft_train(s):
    """PEFT: an adapter trained over the frozen model"""
    return train_peft(s, checkpointed=False)


@program("transformers", "peft")
def peft_checkpoint(s):
    """the same with gradient checkpointing"""
    return train_peft(s, checkpointed=True)


@program("transformers", "peft", "accelerate")
def peft_trainer(s):
    """transformers' Trainer: an adapter trained with gradient checkpointing, saved, and loaded again"""
    import tempfile

    from peft import PeftModel
    from transformers import Trainer, TrainingArguments

    model = adapted(load(s))
    rows = [{"input_ids": row, "labels": row} for row in s.ids(100, rows=2 * STEPS).cpu()]
    with tempfile.TemporaryDirectory() as directory:
        settings = TrainingArguments(
            directory, max_steps=STEPS, per_device_train_batch_size=2, gradient_checkpointing=True, save_steps=2,
            logging_steps=1, report_to=[], disable_tqdm=True, seed=7, use_cpu=s.device == "cpu",
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=rows)
        trainer.train()
        trainer.save_model(os.path.join(directory, "trained"))
        with open(os.path.join(directory, "trained", "adapter_model.safetensors"), "rb") as file:
            s.said.append([f"{s.title}: saved", hashlib.sha256(file.read()).hexdigest()[:20]])
        s.said += [[f"{s.title}: loss", str(entry["loss"])] for entry in trainer.state.log_history if "loss" in entry]
        base = model.unload()
        del model, trainer
        again = PeftModel.from_pretrained(base, os.path.join(directory, "trained"))
        s.say("loaded again", logits(s, again.eval()))
    return again


# --- diffusers -----------------------------------------------------------------------------------------------------

FLUX_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "net.0.proj", "net.2"]
NOT_THERE = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])


def make_flux(directory, small, device):
    """A pipeline with a transformer of random values, and nothing else: it takes encoded prompts and gives latents."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    head, heads, axes = (32, 8, (8, 12, 12)) if small else (128, 16, (16, 56, 56))
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            in_channels=64, joint_attention_dim=128, pooled_projection_dim=32, axes_dims_rope=axes,
            num_layers=1 if small else 3, num_single_layers=2 if small else 8, attention_head_dim=head,
            num_attention_heads=heads,
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    FluxPipeline(FlowMatchEulerDiscreteScheduler(), transformer=transformer, **NOT_THERE).save_pretrained(directory)


def latents(s, pipeline):
    import torch

    random = torch.Generator().manual_seed(3)
    prompt, pooled = (torch.randn(size, generator=random).bfloat16().to(s.device) for size in ((1, 16, 128), (1, 32)))
    return pipeline(
        prompt_embeds=prompt, pooled_prompt_embeds=pooled, height=64, width=64, num_inference_steps=2,
        generator=torch.Generator().manual_seed(4), output_type="latent",
    ).images  # fmt: skip


@program("transformers", "peft", "diffusers")
def diffusers_lora(s):
    """diffusers: load_lora_weights(), set_adapters(), fuse_lora(), unfuse_lora(), unload_lora_weights()"""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(s.directory, torch_dtype=torch.bfloat16, **NOT_THERE).to(s.device)
    pipeline.set_progress_bar_config(disable=True)
    s.say("base", latents(s, pipeline))
    for name in ("one", "two"):
        pipeline.load_lora_weights(s.adapter(name), adapter_name=name)
        s.say(f"loaded {name}", latents(s, pipeline))
    for names, weights in ((["one"], [1.0]), (["two"], [0.5]), (["one", "two"], [0.7, 0.4])):
        pipeline.set_adapters(names, adapter_weights=weights)
        s.say(f"set {names}", latents(s, pipeline))
    pipeline.fuse_lora(adapter_names=["one"])
    s.say("fused", latents(s, pipeline))
    pipeline.unfuse_lora()
    s.say("unfused", latents(s, pipeline))
    pipeline.unload_lora_weights()
    s.say("unloaded", latents(s, pipeline))
    s.say("weights", *pipeline.transformer.state_dict().values())
    return pipeline
