"""Models whose loader copies weights out of the mapping: a line says so, once, and the counters show it; the remedies
page.

Mixtures of experts are what transformers 5 does it to: a checkpoint that holds each expert by itself is merged while it
is loaded."""

import json
import subprocess
import sys

import pytest
from conftest import HANG_SECONDS, ROOT, clean_environment, run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

BUDGET = 8 << 20
COPIED = "codecllm: the program has copied about"

# Two tokens: a mixture of experts gathers the weights of those that its tokens chose, and 8 tokens took up to 8 MiB so.
LOGITS = """
def logits(model):
    tokens = model.generate(torch.arange(2)[None], max_new_tokens=4, do_sample=False)
    out = model(tokens).logits.double()
    return [tokens.tolist(), [out.sum().item(), out.abs().sum().item()]]
"""

MAKE = (
    """
import json, sys, torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
torch.manual_seed(0)
common = dict(
    vocab_size=512, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256
)
experts = dict(num_experts=16, num_experts_per_tok=2, moe_intermediate_size=512)
moe = Qwen3MoeForCausalLM(Qwen3MoeConfig(num_hidden_layers=4, head_dim=64, **experts, **common))
moe = moe.to(torch.bfloat16)
moe.save_pretrained(sys.argv[1] + "/moe")
moe.save_pretrained(sys.argv[1] + "/merged", save_original_format=False)
dense = LlamaForCausalLM(LlamaConfig(num_hidden_layers=16, intermediate_size=2560, **common))
dense.to(torch.bfloat16).save_pretrained(sys.argv[1] + "/dense")
"""
    + LOGITS
    + """
load = AutoModelForCausalLM.from_pretrained
moe, dense = load(sys.argv[1] + "/moe", dtype="auto"), load(sys.argv[1] + "/dense", dtype="float32")
print(json.dumps({"moe": logits(moe), "dense": logits(dense)}))
"""
)

USE = (
    """
import json, sys, codecllm, torch
from transformers import AutoConfig, AutoModelForCausalLM
"""
    + LOGITS
    + """
# What a first use imports and keeps would be taken for copies, where a slow machine has it happen while weights are
# read.
config = AutoConfig.from_pretrained(sys.argv[1], num_hidden_layers=1)
logits(AutoModelForCausalLM.from_config(config).to(torch.float32 if sys.argv[2] == "float32" else torch.bfloat16))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2])
print(json.dumps([logits(model), codecllm.stats()]))
"""
)


def environment(**more):
    return clean_environment(
        PYTHONPATH=ROOT / "shim" / "python", OMP_NUM_THREADS="1", **more
    )  # the same sums, to the bit


@pytest.fixture(scope="module")
def models(command, tmp_path_factory):
    """Directories, packed, and what the plain models give."""
    directory = tmp_path_factory.mktemp("models")
    plain = json.loads(run(sys.executable, "-c", MAKE, directory, env=environment()).stdout)
    run(command, "pack", "--quiet", directory / "moe", directory / "moe.packed")
    run(command, "pack", "--quiet", directory / "merged", directory / "merged.packed")
    run(command, "pack", "--quiet", directory / "dense", directory / "dense.packed")
    run(command, "pack", "--quiet", "--dtype", "f32", directory / "dense", directory / "dense32.packed")
    return directory, plain


@pytest.fixture()
def use(models, shim):
    """Loads a packed model under the library and generates with it: the counters, and stderr. What it gives must be
    what `plain` gives."""

    def go(name, plain, dtype="auto"):
        directory, results = models
        env = environment(LD_PRELOAD=str(shim), CODEC_VRAM_BUDGET=str(BUDGET))
        done = subprocess.run(
            [sys.executable, "-c", USE, directory / name, dtype],
            env=env,
            text=True,
            capture_output=True,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result, stats = json.loads(done.stdout)
        assert result == results[plain]
        if stats["rung"] == "eager":
            pytest.skip("nothing is paged on this machine")
        return stats, done.stderr

    return go


def test_experts_that_are_merged_while_loading_are_told(use):
    stats, stderr = use("moe.packed", "moe")
    assert stderr.count(COPIED) == 1 and "save_original_format=False" in stderr
    experts = 4 * 16 * 3 * 256 * 512 * 2
    assert stats["copied_bytes"] > 0.8 * experts
    assert stats["outside_bytes"] > experts and stats["mapped_bytes"] > experts


def test_experts_that_are_packed_as_transformers_merges_them_are_paged(use):
    stats, stderr = use("merged.packed", "moe")
    assert COPIED not in stderr
    assert stats["copied_bytes"] < BUDGET and stats["peak_bytes"] <= BUDGET
    assert stats["decoded_bytes"] > stats["mapped_bytes"] / 2


def test_another_dtype_is_told(use):
    stats, stderr = use("dense.packed", "dense", "float32")
    assert stderr.count(COPIED) == 1 and "--dtype" in stderr and stats["copied_bytes"] > 3 * BUDGET


def test_a_model_in_its_own_dtype_is_paged_in_silence(use):
    stats, stderr = use("dense32.packed", "dense")
    assert COPIED not in stderr and stats["copied_bytes"] < BUDGET
    assert stats["decoded_bytes"] > stats["mapped_bytes"] / 2
