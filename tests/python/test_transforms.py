"""CompressedLinear beside nn.Linear, to the bit, under everything that differentiates, batches, records or copies a
module."""

import copy
import io
import os
import pickle
import sys

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.func import (  # noqa: E402
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)
from torch.utils.checkpoint import checkpoint  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def codecllm(build_dir):
    before = os.environ.get("CWS_LIBRARY")
    os.environ["CWS_LIBRARY"] = str(build_dir / "lib" / "libcws.so")
    sys.path.insert(0, str(ROOT / "shim" / "python"))
    import codecllm

    yield codecllm
    sys.path.remove(str(ROOT / "shim" / "python"))
    if before is None:
        del os.environ["CWS_LIBRARY"]
    else:
        os.environ["CWS_LIBRARY"] = before


def square(m):
    return lambda z: m(z).pow(2).sum()


def with_bias(m, x):
    return lambda p: functional_call(m, p, (x,)).pow(2).sum()


def forward_ad(m, x):
    with torch.autograd.forward_ad.dual_level():
        return tuple(
            torch.autograd.forward_ad.unpack_dual(m(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))))
        )


def backward(call):
    def go(m, x):
        x = x.clone().requires_grad_()
        m.bias.grad = None
        call(m, x).float().pow(2).sum().backward()
        return x.grad, m.bias.grad

    return go


def double_backward(m, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(m(x).pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(g.pow(2).sum(), x)


def batched_grads(m, x):
    x = x.clone().requires_grad_()
    y = m(x)
    return torch.autograd.grad(y, x, torch.ones(3, *y.shape, dtype=y.dtype), is_grads_batched=True)


def autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m(x)


def autocast_jacrev(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return jacrev(m)(x)


def saved(m, x):
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)(x)


def call_twice(f, x):
    """A recorded function must decode again: what the memory of the first call holds now is nobody's weight."""
    first = f(x)
    garbage = [torch.full_like(first, 7) for _ in range(8)]
    return first, f(x * 2), len(garbage)


def make_fx(mode):
    from torch.fx.experimental.proxy_tensor import make_fx as make

    return lambda m, x: call_twice(make(m, tracing_mode=mode, _allow_non_fake_inputs=True)(x), x)


CASES = {
    "jacrev of a vector": lambda m, x: jacrev(m)(x[0]),
    "jacrev": lambda m, x: jacrev(m)(x),
    "jacfwd": lambda m, x: jacfwd(m)(x),
    "hessian": lambda m, x: hessian(square(m))(x[0]),
    "grad": lambda m, x: grad(square(m))(x),
    "grad_and_value": lambda m, x: grad_and_value(square(m))(x),
    "grad of grad": lambda m, x: grad(lambda z: grad(square(m))(z).pow(3).sum())(x),
    "vjp": lambda m, x: vjp(m, x)[1](torch.ones(5, 16, dtype=x.dtype)),
    "jvp": lambda m, x: jvp(m, (x,), (torch.ones_like(x),)),
    "linearize": lambda m, x: linearize(m, x)[1](torch.ones_like(x)),
    "vmap": lambda m, x: vmap(m)(x),
    "vmap of another dimension": lambda m, x: vmap(m, in_dims=1, out_dims=1)(x.t().contiguous()),
    "vmap of something else": lambda m, x: vmap(lambda s: m(x) * s)(torch.ones(3, dtype=x.dtype)),
    "vmap of grad": lambda m, x: vmap(grad(square(m)))(x),
    "grad of vmap": lambda m, x: grad(lambda z: vmap(m)(z).pow(2).sum())(x),
    "vmap of vmap": lambda m, x: vmap(vmap(m))(torch.stack([x, x + 1])),
    "grad of the bias": lambda m, x: grad(with_bias(m, x))({"bias": m.bias}),
    "grad of the bias for each sample": lambda m, x: vmap(lambda z: grad(with_bias(m, z))({"bias": m.bias}))(x),
    "vmap over biases": lambda m, x: vmap(lambda b: functional_call(m, {"bias": b}, (x,)))(
        torch.stack([m.bias, m.bias + 1])
    ),
    "jvp of the bias": lambda m, x: jvp(
        lambda b: functional_call(m, {"bias": b}, (x,)), (m.bias,), (torch.ones_like(m.bias),)
    ),
    "a copy in a transform": lambda m, x: jacrev(copy.deepcopy(m))(x),
    "autograd's jacobian": lambda m, x: torch.autograd.functional.jacobian(m, x),
    "autograd's jacobian, vectorized": lambda m, x: torch.autograd.functional.jacobian(m, x, vectorize=True),
    "autograd's hessian": lambda m, x: torch.autograd.functional.hessian(square(m), x[0]),
    "forward mode": forward_ad,
    "backward": backward(lambda m, x: m(x)),
    "double backward": double_backward,
    "batched gradients": batched_grads,
    "checkpoint": backward(lambda m, x: checkpoint(m, x, use_reentrant=False)),
    "checkpoint, reentrant": backward(lambda m, x: checkpoint(m, x, use_reentrant=True)),
    "autocast": autocast,
    "autocast and backward": backward(autocast),
    "autocast and jacrev": autocast_jacrev,
    "deepcopy": lambda m, x: copy.deepcopy(m)(x),
    "pickle": lambda m, x: pickle.loads(pickle.dumps(m))(x),
    "torch.save": saved,
    "symbolic_trace": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "make_fx": make_fx("real"),
    "make_fx with fake tensors": make_fx("fake"),
    "jit.trace": lambda m, x: call_twice(torch.jit.trace(m, x, check_trace=False), x),
    "export": lambda m, x: call_twice(torch.export.export(m, (x,)).module(), x),
    "compile": lambda m, x: call_twice(torch.compile(m, backend="aot_eager"), x),
    "meta": lambda m, x: list(m.to("meta")(x.to("meta")).shape),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a, b))
    return a == b


def layers(codecllm, dtype):
    torch.manual_seed(1)
    linear = nn.Linear(24, 16).to(dtype)
    linear.weight.requires_grad_(False)  # as a compressed weight's gradient is not asked for
    compressed = codecllm.CompressedLinear.from_linear(linear)
    compressed.bias = nn.Parameter(linear.bias.detach().clone())
    return linear, compressed, torch.randn(5, 24).to(dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_compressed_linear_does_what_a_linear_does(codecllm, case, dtype):
    linear, compressed, x = layers(codecllm, dtype)
    expected = CASES[case](linear, x)
    assert same(expected, CASES[case](compressed, x))


@pytest.mark.filterwarnings("ignore")
def test_a_program_without_gradients_compiles_in_one_graph(codecllm):
    linear, compressed, x = layers(codecllm, torch.float32)
    with torch.no_grad():
        assert torch.equal(torch.compile(compressed, backend="aot_eager", fullgraph=True)(x), linear(x))


def test_gradients_of_transforms_keep_no_decoded_weight(codecllm):
    """One layer's weight at a time, as in an ordinary backward."""
    import gc
    import weakref

    from codecllm.tensor import CompressedTensor

    torch.manual_seed(1)
    model = nn.Sequential(*[codecllm.CompressedLinear.from_linear(nn.Linear(64, 64, bias=False)) for _ in range(4)])
    alive, most, original = [], [0], CompressedTensor._decoded

    def watched(self, out, jobs):
        gc.collect()
        most[0] = max(most[0], sum(t() is not None for t in alive))
        w = original(self, out, jobs)
        alive.append(weakref.ref(w))
        return w

    CompressedTensor._decoded = watched
    try:
        grad(lambda x: model(x).sum())(torch.randn(3, 64))
    finally:
        CompressedTensor._decoded = original
    assert len(alive) == 8 and most[0] <= 1


def test_an_embedding_under_transforms(codecllm):
    embedding = nn.Embedding(500, 8)
    compressed = codecllm.CompressedEmbedding.from_embedding(embedding)
    ids = torch.randint(0, 500, (4, 6))
    embedding.weight.requires_grad_(False)
    for f in (
        lambda m: vmap(m)(ids),
        lambda m: grad(lambda s: (m(ids) * s).sum())(torch.tensor(2.0)),
        lambda m: call_twice(torch.jit.trace(m, ids, check_trace=False), ids % 250),
        lambda m: list(m.to("meta")(ids.to("meta")).shape),
    ):
        assert same(f(embedding), f(compressed))


def test_a_compressed_tensor_is_decoded_anew_by_what_was_recorded(codecllm):
    t = torch.randn(30, 20)
    compressed = codecllm.CompressedTensor.compress(t)
    traced = torch.jit.trace(lambda x: compressed.decompress() + x, torch.zeros(30, 20), check_trace=False)
    garbage = [torch.full((30, 20), 7.0) for _ in range(8)]
    assert torch.equal(traced(torch.zeros(30, 20)), t) and len(garbage) == 8
    out = vmap(lambda s: compressed.decompress() * s)(torch.ones(2))
    assert torch.equal(out, torch.stack([t, t]))
