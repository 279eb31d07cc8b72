"""tools/examples/infer.py, plain transformers, on the packed model inside a budget: the same tokens, the same bits of
the logits, and a peak that the kernel confirms."""

import argparse
import json
import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import bench_infer
from conftest import run

BLOCKS_IN_FLIGHT = 1 << 20  # more than the pager has in flight, far less than the model's 9 MiB


def infer(model, **options):
    args = argparse.Namespace(prompt="ROMEO:\nWhat light", tokens=24, threads=0)
    return bench_infer.run_infer(str(model), args, **options)


@pytest.fixture(scope="module")
def plain(bard):
    return infer(bard)


@pytest.fixture(scope="module")
def logical_bytes(command, packed_bard):
    return json.loads(run(command, "inspect", "--json", packed_bard).stdout)["totals"]["logical_bytes"]


def test_plain_run_is_a_fair_reference(plain):
    assert len(plain["tokens"]) == 24
    assert len(set(plain["tokens"])) > 5, "a model that repeats one token would hide faults"
    assert len(plain["logits"]) > 2048
    assert plain["peak_bytes"] == 0, "nothing of ours is in a plain run"


@pytest.mark.parametrize("percent, variables", [(100, []), (50, []), (25, []), (25, ["CODEC_PAGER=sigsegv"])])
def test_same_tokens_and_bits_within_a_budget(command, packed_bard, plain, logical_bytes, percent, variables):
    budget = logical_bytes * percent // 100
    packed = infer(packed_bard, prefix=(str(command), "run", "--"), budget=budget, variables=variables)
    assert packed["tokens"] == plain["tokens"]
    assert packed["logits"] == plain["logits"]
    assert packed["stats"]["faults"] > 0, "the views were not used"
    assert packed["stats"]["peak_bytes"] <= budget + BLOCKS_IN_FLIGHT, "by our own count"
    if packed["rung"] != "eager":
        assert 0 < packed["peak_bytes"] <= budget + BLOCKS_IN_FLIGHT, "by the kernel's"
    if percent < 100:
        assert packed["stats"]["evictions"] > 0, "the budget did not bind"


def test_with_the_system_calls_of_a_container(command, build_dir, packed_bard, plain, logical_bytes):
    """Docker leaves neither userfaultfd nor io_uring: pages come by SIGSEGV, read by pread, and no line is needed."""
    prefix = (str(build_dir / "bin" / "in_container"), str(command), "run", "--")
    packed = infer(packed_bard, prefix=prefix, budget=logical_bytes // 2)
    assert packed["rung"] == "sigsegv"
    assert packed["tokens"] == plain["tokens"] and packed["logits"] == plain["logits"]
    assert packed["stats"]["evictions"] > 0, "the budget did not bind"
    assert not re.findall(r"^codecllm: (?! |paging of this process).*", packed["talk"], re.MULTILINE)


def test_without_the_shim_a_packed_model_is_refused(packed_bard, tmp_path):
    """A program that reads a packed file as if it were plain must fail, not compute with compressed bytes."""
    import sys

    done = run(
        sys.executable,
        bench_infer.ROOT + "/tools/examples/infer.py",
        "--model",
        packed_bard,
        "--device",
        "cpu",
        check=False,
    )
    assert done.returncode != 0
    assert "Error" in done.stderr


def test_sharded_model(command, tmp_path):
    """An index, several shards, a tensor that no page boundary fits: made by tools/examples/make_model.py."""
    import sys

    model, packed = tmp_path / "model", tmp_path / "packed"
    run(
        sys.executable,
        bench_infer.ROOT + "/tools/examples/make_model.py",
        "--shape",
        "tiny",
        "--shard-gb",
        "0.0001",
        model,
    )
    run(command, "pack", model, packed)
    assert len(list(packed.glob("model-*-of-00003.safetensors"))) == 3
    expected = infer(model)
    seen = infer(packed, prefix=(str(command), "run", "--"), budget=4 << 20)
    assert seen["tokens"] == expected["tokens"] and seen["logits"] == expected["logits"]
    assert seen["stats"]["faults"] > 0
