#!/usr/bin/env python3
"""What CompressedTensor and CompressedLinear do to weights, in some seconds and without a model:

    python tests/lowmem/test_lowmem_simple.py

Ends with ALL TESTS PASSED, or says which failed and exits with status 1. Runs under pytest, too."""

import io
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from find_package import Stop, need, use_package  # noqa: E402

SIZE = 2048
MODES = ("lossless", "q8", "q6")
MOST_OVER_BOUND = 1.015  # bits per weight over the order-0 bound of the symbols
MOST_Q8_ERROR = 0.009
LEAST_Q6_OVER_INT8 = 1.33
LEAST_Q6_OVER_BF16 = 2.66


def load():
    use_package()
    torch = need("torch", "pip install torch")
    import codecllm

    try:
        codecllm.CompressedTensor.compress(torch.zeros(2, 2))
    except codecllm.Error as why:
        raise Stop(str(why)) from None
    return torch, codecllm


def device_of(torch):
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure(torch, codecllm, weights, mode):
    """One row of the table."""
    original = weights.to(torch.bfloat16)
    c = codecllm.CompressedTensor.compress(original, mode)
    decoded = c.decompress()
    error = decoded.double() - original.double()
    return {
        "mode": mode,
        "used": c.mode,
        "bits": c.bits_per_weight,
        "bound": c.entropy_bound(),
        "over_int8": 8 / c.bits_per_weight,
        "over_bf16": c.ratio,
        "relative_l2": (error.norm() / original.double().norm()).item(),
        "max_error": error.abs().max().item(),
        "exact": torch.equal(decoded.view(torch.int16), original.view(torch.int16)),
    }


def check_row(row):
    """What the row must show on Gaussian weights: a list of complaints."""
    wrong, mode = [], row["mode"]
    if row["used"] != mode:
        wrong.append(f"{mode}: the tensor was stored as {row['used']}")
    if row["bits"] > MOST_OVER_BOUND * row["bound"]:
        wrong.append(
            f"{mode}: {row['bits']:.3f} bits per weight is more than {MOST_OVER_BOUND} x the bound of "
            f"{row['bound']:.3f}"
        )
    if mode == "lossless" and not row["exact"]:
        wrong.append("lossless: the decoded tensor is not the original: this is a bug, please report it")
    if mode == "q8" and row["relative_l2"] > MOST_Q8_ERROR:
        wrong.append(f"q8: relative L2 error {row['relative_l2']:.5f} is more than {MOST_Q8_ERROR}")
    if mode == "q6" and (row["over_int8"] < LEAST_Q6_OVER_INT8 or row["over_bf16"] < LEAST_Q6_OVER_BF16):
        wrong.append(f"q6: {row['over_int8']:.3f} x int8 and {row['over_bf16']:.3f} x bf16 are less than 1.33 and 2.66")
    return wrong


def tensor_test(torch, codecllm, say):
    torch.manual_seed(1)
    gauss = torch.randn(SIZE, SIZE, device=device_of(torch)) * 0.02
    say(f"TEST 1: CompressedTensor, {SIZE} x {SIZE}, bf16, N(0, 0.02)")
    say(
        f"  {'mode':<9} {'bits/weight':>11} {'bound':>7} {'x bound':>8} {'over int8':>9} {'over bf16':>9} "
        f"{'rel. L2':>8} {'max error':>10}"
    )
    wrong = []
    for mode in MODES:
        row = measure(torch, codecllm, gauss, mode)
        say(
            f"  {mode:<9} {row['bits']:>11.3f} {row['bound']:>7.3f} {row['bits'] / row['bound']:>8.4f} "
            f"{row['over_int8']:>9.3f} "
            f"{row['over_bf16']:>9.3f} {row['relative_l2']:>8.5f} {row['max_error']:>10.2e}"
            + ("  exact" if row["exact"] else "")
        )
        wrong += check_row(row)
    heavy = torch.distributions.StudentT(3.0).sample((SIZE, SIZE)) * 0.02
    row = measure(torch, codecllm, heavy, "q8")
    say(
        "  bound: order-0 entropy of the coded symbols (exponents, or quantised values) and the bits beside them; "
        "smaller needs another model"
    )
    say(
        f"  q8 does not reach 1.33 x int8 on Gaussian weights; on heavy-tailed ones (Student's t, 3 degrees of "
        f"freedom) it gives {row['over_int8']:.3f}"
    )
    if row["over_int8"] < 1.33:
        wrong.append(f"q8 on heavy tails: {row['over_int8']:.3f} x int8 is less than 1.33")
    return wrong


def linear_test(torch, codecllm, say):
    torch.manual_seed(2)
    linear = torch.nn.Linear(SIZE, SIZE).to(device_of(torch), torch.bfloat16)
    x = torch.randn(4, 16, SIZE, device=device_of(torch), dtype=torch.bfloat16)
    say(f"TEST 2: CompressedLinear, {SIZE} -> {SIZE} with bias, against F.linear on the decoded weight")
    wrong = []

    def check(what, true):
        say(f"  {what:<66} {'yes' if true else 'NO'}")
        if not true:
            wrong.append(what)

    for mode in MODES:
        layer = codecllm.CompressedLinear.from_linear(linear, mode)
        weight = layer.compressed.decompress()
        with torch.no_grad():
            check(
                f"{mode}: forward is the same to the bit",
                torch.equal(layer(x), torch.nn.functional.linear(x, weight, linear.bias)),
            )
        if mode == "lossless":
            with torch.no_grad():
                check("lossless: the same as the nn.Linear it came from", torch.equal(layer(x), linear(x)))
        a, b = (x[:1].clone().requires_grad_() for _ in range(2))
        layer(a).float().square().sum().backward()
        torch.nn.functional.linear(b, weight, linear.bias.detach()).float().square().sum().backward()
        check(f"{mode}: the gradient with respect to the input is the same", torch.equal(a.grad, b.grad))
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        other = codecllm.CompressedLinear.from_linear(
            torch.nn.Linear(SIZE, SIZE).to(x.device, torch.bfloat16), "lossless"
        )
        other.load_state_dict(torch.load(buffer, weights_only=True))
        with torch.no_grad():
            check(f"{mode}: state_dict, saved and loaded, gives the same layer", torch.equal(other(x), layer(x)))
        check(
            f"{mode}: {layer.compressed.nbytes:,} of {linear.weight.nbytes:,} bytes kept",
            layer.weight_packed.nbytes == layer.compressed.nbytes < linear.weight.nbytes,
        )
    return wrong


def test_compressed_tensor():
    assert tensor_test(*load(), print) == []


def test_compressed_linear():
    assert linear_test(*load(), print) == []


def main():
    try:
        torch, codecllm = load()
    except Stop as why:
        sys.exit(f"test_lowmem_simple.py: {why}")
    wrong = tensor_test(torch, codecllm, print) + linear_test(torch, codecllm, print)
    for line in wrong:
        print(f"FAILED: {line}")
    print("ALL TESTS PASSED" if not wrong else f"{len(wrong)} FAILED")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
