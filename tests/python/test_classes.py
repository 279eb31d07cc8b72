"""codecllm's classes for programs that do touch their code: CompressedTensor, CompressedLinear, compress_model, the
safetensors API."""

import copy
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, run

torch = pytest.importorskip("torch")
F = torch.nn.functional

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FLOATS += [getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]
OTHERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
SHAPES = [(), (1,), (0,), (0, 5), (7, 0), (31,), (33, 65), (3, 5, 7), (65, 128), (200, 700)]


@pytest.fixture(scope="module", autouse=True)
def library(build_dir):
    """The package of this tree, with the library of the build under test."""
    before = os.environ.get("CWS_LIBRARY")
    os.environ["CWS_LIBRARY"] = str(build_dir / "lib" / "libcws.so")
    sys.path.insert(0, str(ROOT / "shim" / "python"))
    yield
    sys.path.remove(str(ROOT / "shim" / "python"))
    os.environ.pop("CWS_LIBRARY")
    if before is not None:
        os.environ["CWS_LIBRARY"] = before


@pytest.fixture()
def codecllm(library):
    import codecllm

    assert str(ROOT / "shim" / "python") in codecllm.__file__
    return codecllm


def weights(*shape, dtype=torch.bfloat16, seed=0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def same(a, b):
    """Bit for bit, NaNs and signs of zeros included."""
    bytes_of = [t.contiguous().view(-1).view(torch.uint8).tolist() for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=str)
def test_lossless_gives_back_every_bit(codecllm, dtype):
    for i, shape in enumerate(SHAPES):
        t = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) * 3).to(dtype)
        c = codecllm.CompressedTensor.compress(t)
        assert c.shape == t.shape and c.dtype == dtype and c.mode == "lossless" and c.device == t.device
        assert same(c.decompress(), t)
        assert c.logical_nbytes == t.nbytes and c.nbytes == c.packed.numel() and c.numel() == t.numel()
        assert c.ratio == t.nbytes / c.nbytes
        assert c.bits_per_weight == (8 * c.nbytes / t.numel() if t.numel() else 0.0)
        c.verify()


def test_special_values_survive(codecllm):
    for dtype in FLOATS[:4]:
        t = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 1.0] * 1000, dtype=dtype)
        t[5] = torch.finfo(dtype).max
        for mode in ("lossless", "q8", "q6"):  # with a NaN nothing is quantised
            c = codecllm.CompressedTensor.compress(t.reshape(80, 100), mode)
            assert c.mode == "lossless" and same(c.decompress(), t.reshape(80, 100))


def test_tensors_that_are_not_contiguous(codecllm):
    base = weights(120, 90, 2)
    for t in (
        base[:, :, 0],
        base.transpose(0, 1),
        base[::3, 5:50:2],
        base[0, 0].expand(40, 2),
        base.permute(2, 0, 1)[1],
    ):
        assert not t.is_contiguous()
        c = codecllm.CompressedTensor.compress(t)
        assert same(c.decompress(), t.contiguous()) and c.decompress().is_contiguous()
    c = codecllm.CompressedTensor.compress(torch.nn.Parameter(weights(64, 64)))
    assert not c.decompress().requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_quantised_modes(codecllm, dtype):
    t = weights(512, 512, dtype=torch.float32)
    for mode, most_bits, most_error in (("q8", 7.6, 0.009), ("q6", 6.1, 0.025)):
        c = codecllm.CompressedTensor.compress(t.to(dtype), mode)
        assert c.mode == mode and c.dtype == dtype
        assert c.bits_per_weight < most_bits
        assert c.entropy_bound() < c.bits_per_weight < 1.03 * c.entropy_bound()
        d = c.decompress()
        assert d.dtype == dtype and ((d.float() - t).norm() / t.norm()).item() < most_error
        assert same(d, c.decompress()), "decoding is deterministic"
    assert codecllm.CompressedTensor.compress(weights(10, 10), "q8").mode == "lossless", (
        "small tensors are left as they are"
    )


def test_decompress_to_dtype_device_and_out(codecllm):
    t = weights(100, 64)
    c = codecllm.CompressedTensor.compress(t)
    assert same(c.decompress(dtype=torch.float32), t.float())
    assert same(c.decompress(device="cpu"), t)
    assert c.decompress(device="meta").device.type == "meta"
    out = torch.full((100, 64), 7.0, dtype=torch.bfloat16)
    assert c.decompress(out=out) is out and same(out, t)
    wide = torch.zeros(100, 128, dtype=torch.float64)
    assert same(c.decompress(out=wide[:, ::2]).contiguous(), t.double()) and not wide[:, 1::2].any()
    for wrong in (dict(out=torch.empty(64, 100)), dict(out=out, dtype=torch.float32), dict(out=out, device="meta")):
        with pytest.raises(codecllm.Error):
            c.decompress(**wrong)
    assert same(c.rows(10, 13), t[10:13]) and c.rows(5, 5).shape == (0, 64)
    with pytest.raises(codecllm.Error):
        c.rows(99, 101)


def test_pickle_save_and_deepcopy_stay_compressed(codecllm):
    t = weights(300, 200)
    c = codecllm.CompressedTensor.compress(t, "q8")
    want = c.decompress()
    data = pickle.dumps(c)
    assert len(data) < c.nbytes + 4096 < t.nbytes
    buffer = io.BytesIO()
    torch.save({"w": c, "n": 3}, buffer)
    assert buffer.tell() < c.nbytes + 8192
    buffer.seek(0)
    for again in (pickle.loads(data), torch.load(buffer, weights_only=True)["w"], copy.deepcopy(c), copy.copy(c)):
        assert same(again.decompress(), want) and again.mode == "q8" and again.nbytes == c.nbytes
    assert copy.deepcopy(c).packed.data_ptr() != c.packed.data_ptr()
    assert "ratio=" in repr(c) and "q8" in repr(c)


def test_damage_is_an_error_never_a_weight(codecllm):
    t = weights(256, 256)
    c = codecllm.CompressedTensor.compress(t)
    raised = 0
    for at in range(0, c.nbytes, c.nbytes // 200):
        bad = c.packed.clone()
        bad[at] ^= 0x10
        try:
            assert same(codecllm.CompressedTensor(bad).decompress(), t), f"byte {at}"
        except codecllm.Error as why:
            raised += 1
            assert "\n" not in str(why)
    assert raised > 195, "only bytes between the parts may go unseen"
    for wrong in (
        torch.zeros(0, dtype=torch.uint8),
        torch.zeros(500, dtype=torch.uint8),
        c.packed[:-1],
        torch.zeros(10),
    ):
        with pytest.raises(codecllm.Error):
            codecllm.CompressedTensor(wrong)


def test_what_cannot_be_compressed_is_said(codecllm):
    for wrong in (torch.zeros(4, dtype=torch.complex128), torch.zeros(4, device="meta"), torch.zeros(4, 4).to_sparse()):
        with pytest.raises(codecllm.Error) as why:
            codecllm.CompressedTensor.compress(wrong)
        assert "\n" not in str(why.value)
    with pytest.raises(codecllm.Error, match="lossless, q8 or q6"):
        codecllm.CompressedTensor.compress(torch.zeros(4), "q4")


def test_threads_decode_one_tensor(codecllm):
    t = weights(700, 512)
    c = codecllm.CompressedTensor.compress(t)
    wrong = []

    def work():
        for _ in range(5):
            if not torch.equal(c.decompress(), t):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    [x.start() for x in threads]
    [x.join() for x in threads]
    assert not wrong


# --- layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["lossless", "q8", "q6"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_f_linear_bit_for_bit(codecllm, mode, bias):
    linear = torch.nn.Linear(192, 130, bias=bias)
    layer = codecllm.CompressedLinear.from_linear(linear, mode)
    weight = layer.weight
    if mode == "lossless":
        assert same(weight, linear.weight.detach())
    for shape in ((192,), (5, 192), (2, 3, 192), (0, 192)):
        x = torch.randn(shape)
        want = F.linear(x, weight, linear.bias)
        with torch.no_grad():
            assert same(layer(x), want.detach())
        with torch.inference_mode():
            assert torch.equal(layer(x), want)
        assert same(layer(x).detach(), want.detach())


def test_linear_gradients(codecllm):
    layer = codecllm.CompressedLinear.from_linear(torch.nn.Linear(100, 50), "q8")
    weight = layer.weight
    kept = []
    for shape in ((4, 100), (2, 3, 100)):
        x = torch.randn(shape, requires_grad=True)
        x2 = x.detach().clone().requires_grad_()
        y, y2 = layer(x), F.linear(x2, weight, layer.bias)
        bias2 = torch.autograd.grad(y2.square().sum(), [x2, layer.bias])
        bias1 = torch.autograd.grad(y.square().sum(), [x, layer.bias])
        assert same(bias1[0], bias2[0]) and same(bias1[1], bias2[1])
    x = torch.randn(3, 100, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert not any(t.numel() == 5000 for t in kept), "autograd must not keep the decoded weight"
    assert not layer.compressed.decompress().requires_grad


def test_linear_state_dict_round_trip(codecllm):
    a = codecllm.CompressedLinear.from_linear(torch.nn.Linear(128, 96), "q8")
    b = codecllm.CompressedLinear.from_linear(torch.nn.Linear(128, 96), "lossless")
    state = a.state_dict()
    assert set(state) == {"weight_packed", "bias"} and state["weight_packed"].dtype == torch.uint8
    assert not b.load_state_dict(state).missing_keys
    x = torch.randn(4, 128)
    assert torch.equal(a(x), b(x)) and b.compressed.mode == "q8"
    buffer = io.BytesIO()
    torch.save(torch.nn.Sequential(a).state_dict(), buffer)
    buffer.seek(0)
    c = torch.nn.Sequential(codecllm.CompressedLinear.from_linear(torch.nn.Linear(128, 96)))
    c.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(c(x), a(x))
    linear = torch.nn.Linear(128, 96)
    b.load_state_dict(linear.state_dict())  # a plain checkpoint is compressed as it is loaded
    assert torch.equal(b(x), linear(x))
    bad = {**state, "weight_packed": state["weight_packed"][:-5]}
    with pytest.raises(RuntimeError, match="weight_packed"):
        b.load_state_dict(bad)
    other = codecllm.CompressedLinear.from_linear(torch.nn.Linear(64, 96))
    with pytest.raises(RuntimeError, match="shape"):
        other.load_state_dict(state)
    assert torch.equal(b(x), linear(x)), "a refused load leaves the layer as it was"
    whole = pickle.loads(pickle.dumps(a))
    assert torch.equal(whole(x), a(x)) and torch.equal(copy.deepcopy(a)(x), a(x))


def test_linear_moves_and_casts(codecllm):
    layer = codecllm.CompressedLinear.from_linear(torch.nn.Linear(64, 32).bfloat16())
    stored = layer.compressed.nbytes
    exact = layer.weight
    assert layer.to("cpu") is layer
    layer.float()
    assert (
        layer.bias.dtype == torch.float32 and layer.weight.dtype == torch.float32 and layer.compressed.nbytes == stored
    )
    assert torch.equal(layer.weight, exact.float())
    x = torch.randn(3, 64)
    assert torch.equal(layer(x), F.linear(x, exact.float(), layer.bias))
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, exact.float(), layer.bias))
    meta = copy.deepcopy(layer).to("meta")
    assert meta.weight_packed.device.type == "meta"
    text = repr(layer)
    assert "in_features=64" in text and "ratio=" in text and f"bytes={stored}" in text


def test_embedding(codecllm):
    embedding = torch.nn.Embedding(3000, 64).bfloat16()
    layer = codecllm.CompressedEmbedding.from_embedding(embedding)
    for indices in (
        torch.tensor([3, 2999, 3]),
        torch.tensor([[0], [7]]),
        torch.arange(3000),
        torch.empty(0, dtype=torch.long),
    ):
        assert torch.equal(layer(indices), embedding(indices))
    for wrong in (torch.tensor([3000]), torch.tensor([-1]), torch.arange(3001)):
        with pytest.raises(IndexError):
            layer(wrong)
    with pytest.raises(codecllm.Error, match="max_norm"):
        codecllm.CompressedEmbedding.from_embedding(torch.nn.Embedding(9, 9, max_norm=1.0))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 96)
        self.first = torch.nn.Linear(96, 96)
        self.again = self.first  # the same module
        self.tied = torch.nn.Linear(96, 96, bias=False)
        self.tied.weight = self.first.weight  # the same weight
        self.attention = torch.nn.MultiheadAttention(96, 4, batch_first=True)
        self.lm_head = torch.nn.Linear(96, 50)

    def forward(self, ids):
        x = self.again(self.first(self.embed(ids))) + self.tied(self.embed(ids))
        return self.lm_head(self.attention(x, x, x)[0])


def test_compress_model(codecllm, capfd):
    net = Net().eval()
    ids = torch.arange(20).view(2, 10)
    want = net(ids)
    before = sum(p.nbytes for p in net.parameters())
    report = codecllm.compress_model(net, embeddings=True, progress=False)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(net(ids), want)
    assert (
        isinstance(net.first, codecllm.CompressedLinear)
        and net.again is net.first
        and type(net.lm_head) is torch.nn.Linear
    )
    assert net.tied.weight_packed is net.first.weight_packed, "a shared weight is kept once"
    assert isinstance(net.embed, codecllm.CompressedEmbedding)
    assert (
        set(report.kept) == {"lm_head", "attention.out_proj"}
        and "NonDynamicallyQuantizableLinear" in report.kept["attention.out_proj"]
    )
    assert report.model_bytes_before == before > report.model_bytes_after
    parsed = json.loads(report.to_json())
    assert parsed["stored_bytes"] == report.stored_bytes and len(parsed["layers"]) == len(report.layers) == 3
    assert "first" in str(report) and "kept: lm_head: in skip" in str(report)
    assert codecllm.compress_model(net, progress=True).layers == [], "a second call finds nothing to do"
    net2 = Net()
    codecllm.compress_model(net2, "q8", skip=("first", "t*"), progress=True)
    assert "Compressing" in capfd.readouterr().err
    assert type(net2.first) is torch.nn.Linear and type(net2.tied) is torch.nn.Linear
    assert isinstance(net2.lm_head, codecllm.CompressedLinear)
    with pytest.raises(codecllm.Error, match="q8"):
        codecllm.compress_model(net2, "q5")
    with pytest.raises(codecllm.Error, match="meta"):
        codecllm.compress_model(torch.nn.Sequential(torch.nn.Linear(9, 9, device="meta")))


def test_compress_model_gives_memory_back(codecllm):
    code = """
import torch, codecllm
def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/smaps_rollup") if line.startswith("Rss"))
net = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False).bfloat16() for _ in range(16)])
codecllm.CompressedTensor.compress(torch.zeros(64, 64))
before = resident()
report = codecllm.compress_model(net, "q8", progress=False)
print(before - resident(), report.model_bytes_before - report.model_bytes_after)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "shim" / "python")}
    fell, saved = map(int, run(sys.executable, "-c", code, env=env).stdout.split())
    assert saved > 60 << 20 and fell > 0.9 * saved


def test_a_compressed_model_lets_go_of_its_file(codecllm, bard):
    pytest.importorskip("transformers")
    code = """
import sys, codecllm
from transformers import AutoModelForCausalLM
mapped = lambda: "model.safetensors" in open("/proc/self/maps").read()
load = AutoModelForCausalLM.from_pretrained
model = load(sys.argv[1], dtype="auto")
tied = model.lm_head.weight is model.model.embed_tokens.weight
before, held = model.model.norm.weight.clone(), mapped()
codecllm.compress_model(model, progress=False)
still_tied = model.lm_head.weight is model.model.embed_tokens.weight
print(held, mapped(), bool((before == model.model.norm.weight).all()), tied == still_tied)
del model
model = load(sys.argv[1], dtype="auto", quantization_config=codecllm.CodecConfig())
print(mapped())
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "shim" / "python"), "HF_HUB_OFFLINE": "1"}
    lines = run(sys.executable, "-c", code, bard, env=env).stdout.splitlines()
    assert lines == ["True False True True", "False"]


# --- files ----------------------------------------------------------------------------------------------


def test_files_in_the_safetensors_api(codecllm, command, tmp_path):
    import safetensors.torch

    tensors = {
        "a.weight": weights(300, 40),
        "b": torch.arange(7),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }
    plain, packed = tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    safetensors.torch.save_file(tensors, plain, {"who": "me"})
    codecllm.save_file(tensors, packed, {"who": "me"})
    run(command, "verify", packed)
    unpacked = tmp_path / "unpacked.safetensors"
    run(command, "unpack", packed, unpacked)
    for path in (plain, packed, unpacked):
        loaded = codecllm.load_file(path)
        assert set(loaded) == set(tensors) and all(same(loaded[k], tensors[k]) for k in tensors)
        with (
            codecllm.safe_open(path, framework="pt") as file,
            safetensors.safe_open(plain, framework="pt") as reference,
        ):
            assert sorted(file.keys()) == sorted(reference.keys()) and file.metadata() == {"who": "me"}
            a, b = file.get_slice("a.weight"), reference.get_slice("a.weight")
            assert a.get_shape() == b.get_shape() and a.get_dtype() == b.get_dtype()
            for index in (
                ...,
                slice(None),
                slice(10, 20),
                (slice(5, 200), slice(3, 9)),
                slice(-3, None),
                (slice(None), slice(1, 2)),
            ):
                assert same(a[index], b[index]), index
    with codecllm.safe_open(packed) as file:
        assert file.offset_keys()[0] == "b", "largest elements first, as safetensors orders them"
        a = file.get_slice("a.weight")
        w = tensors["a.weight"]
        assert (
            same(a[7], w[7])
            and same(a[-1], w[-1])
            and same(a[3, 5:9], w[3, 5:9])
            and same(a[::50], w[::50])
            and same(a[20:10], w[20:10])
        )
        assert same(file.get_slice("scalar")[...], tensors["scalar"])
        with pytest.raises(IndexError):
            a[300]
        with pytest.raises(codecllm.Error, match="nothing"):
            file.get_tensor("nothing")
        c = file.get_compressed("a.weight")
        assert same(c.decompress(), w)
    with pytest.raises(codecllm.Error, match="closed"):
        file.get_tensor("b")


def outcome(call):
    """What a call gives, or the exception."""
    try:
        return call()
    except Exception as why:
        return why


NUMPY_INDEXES = (
    0,
    -1,
    3,
    (2, 1),
    (slice(None), 2),
    ...,
    (1, ...),
    slice(0, 2),
    slice(0, 6, 2),
    (slice(1, 3), slice(0, 2)),
    (),
    9,
    (0, 0, 0),
)


@pytest.mark.parametrize("framework", ["np", "numpy", "pt", "torch"])
def test_safe_open_gives_what_safetensors_gives(codecllm, tmp_path, framework):
    """The same values, types and errors, by every method of safetensors' own safe_open."""
    import safetensors.torch

    numpy = pytest.importorskip("numpy")
    tensors = {
        "a": weights(7, 5, dtype=torch.float32),
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "c": torch.tensor(2.5),
        "e": torch.zeros(0, 3),
        "i": torch.arange(5),
        "t": torch.tensor([True, False]),
        "z": torch.zeros(3, dtype=torch.complex64),
        "h": torch.ones(4, dtype=torch.float16),
    }
    plain, packed = tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    safetensors.torch.save_file(tensors, plain, {"who": "me"})
    codecllm.save_file(tensors, packed, {"who": "me"})

    def check(what, ours, theirs):
        if isinstance(theirs, Exception):
            assert isinstance(ours, type(theirs)) and isinstance(ours, (codecllm.Error, IndexError)), (
                what,
                ours,
                theirs,
            )
        elif isinstance(theirs, numpy.ndarray):
            assert (
                type(ours) is numpy.ndarray
                and ours.dtype == theirs.dtype
                and ours.shape == theirs.shape
                and ours.tobytes() == theirs.tobytes()
            ), what
        elif isinstance(theirs, torch.Tensor):
            assert same(ours, theirs), what
        else:
            assert ours == theirs, what

    with codecllm.safe_open(packed, framework) as ours, safetensors.safe_open(plain, framework) as theirs:
        check("keys", sorted(ours.keys()), sorted(theirs.keys()))
        check("metadata", ours.metadata(), theirs.metadata())
        for name in (*tensors, "nothing"):
            check(name, outcome(lambda: ours.get_tensor(name)), outcome(lambda: theirs.get_tensor(name)))
            check(
                name,
                outcome(lambda: ours.get_slice(name).get_shape()),
                outcome(lambda: theirs.get_slice(name).get_shape()),
            )
        for index in NUMPY_INDEXES:
            check(index, outcome(lambda: ours.get_slice("a")[index]), outcome(lambda: theirs.get_slice("a")[index]))
        check("bf16 rows", outcome(lambda: ours.get_slice("b")[0:1]), outcome(lambda: theirs.get_slice("b")[0:1]))
        if framework in ("pt", "torch"):
            got = ours.get_tensors()
            assert list(got) == ours.offset_keys() and all(same(got[k], tensors[k]) for k in tensors)
        elif hasattr(theirs, "get_tensors"):  # safetensors 0.8; an error because of b
            check("all", outcome(ours.get_tensors), outcome(theirs.get_tensors))
    check("closed", outcome(lambda: ours.get_tensor("a")), outcome(lambda: theirs.get_tensor("a")))
    for bad in ({"framework": "xx"}, {"framework": framework, "device": "xx"}, {"framework": framework, "device": -1}):
        check(
            bad,
            outcome(lambda: codecllm.safe_open(packed, **bad)),
            outcome(lambda: safetensors.safe_open(plain, **bad)),
        )
    codecllm.save_file({"i": tensors["i"], "a": tensors["a"]}, packed)
    with codecllm.safe_open(packed, framework, device=None) as ours:
        assert {k: v.tolist() for k, v in ours.get_tensors().items()} == {
            "a": tensors["a"].tolist(),
            "i": tensors["i"].tolist(),
        }
    if framework in ("np", "numpy"):
        with pytest.raises(codecllm.Error, match="cuda:0.*not supported"):
            codecllm.safe_open(packed, framework, device="cuda:0")


def test_quantised_once_stays_as_it_is(codecllm, tmp_path):
    c = codecllm.CompressedTensor.compress(weights(256, 256), "q8")
    first, second = tmp_path / "1", tmp_path / "2"
    codecllm.save_file({"w": c, "x": weights(4, 4)}, first, mode="q6")
    with codecllm.safe_open(first) as file:
        again = file.get_compressed("w")
    assert again.mode == "q8" and same(again.decompress(), c.decompress()) and again.nbytes == c.nbytes
    codecllm.save_file({"w": again, "x": weights(4, 4)}, second)
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_save_leaves_the_old_file(codecllm, tmp_path):
    path = tmp_path / "m.safetensors"
    codecllm.save_file({"w": weights(8, 8)}, path)
    before = path.read_bytes()
    bad = codecllm.CompressedTensor.compress(weights(128, 128))
    bad.packed[bad.nbytes // 2] ^= 1
    for tensors in ({"w": torch.zeros(3, dtype=torch.complex128)}, {"__metadata__": torch.zeros(3)}, {"w": bad}):
        with pytest.raises(codecllm.Error):
            codecllm.save_file(tensors, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.safetensors"]


# --- the package ----------------------------------------------------------------------------------------


def test_import_is_light_and_missing_things_have_a_line(codecllm, tmp_path):
    package = str(ROOT / "shim" / "python")
    code = (
        f"import sys; sys.path.insert(0, {package!r}); import codecllm; "
        "print([m for m in ('torch', 'numpy', 'ctypes') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-S", "-c", code], text=True).strip() == "[]"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('broken here')")
    line = "try:\n    codecllm.{}\nexcept codecllm.Error as why:\n    print(why)"
    code = f"import sys; sys.path[:0] = [{package!r}, {str(tmp_path)!r}]; import codecllm\n" + line.format(
        "CompressedTensor"
    )
    said = run(sys.executable, "-c", code).stdout
    assert "needs PyTorch" in said and "broken here" in said and said.count("\n") == 1
    code = f"import sys; sys.path.insert(0, {package!r}); import codecllm\n" + line.format("load_file('x')")
    said = run(sys.executable, "-c", code, env={**os.environ, "CWS_LIBRARY": str(tmp_path / "none.so")}).stdout
    assert "was not built" in said and said.count("\n") == 1
    (tmp_path / "broken.so").write_text("no library")
    said = run(sys.executable, "-c", code, env={**os.environ, "CWS_LIBRARY": str(tmp_path / "broken.so")}).stdout
    assert "cannot be loaded" in said and said.count("\n") == 1


def test_library_exports_only_its_interface(build_dir):
    lines = run("nm", "-D", "--defined-only", build_dir / "lib" / "libcws.so").stdout.split("\n")
    names = {line.split()[-1] for line in lines if line}
    declared = {
        w.split("(")[0]
        for w in (ROOT / "store" / "abi.h").read_text().replace("*", " ").split()
        if w.startswith("codecllm_") and "(" in w
    }
    assert names == declared


# --- Transformers ---------------------------------------------------------------------------------------


@pytest.fixture()
def transformers():
    return pytest.importorskip("transformers")


def generate(transformers, model, directory):
    ids = transformers.AutoTokenizer.from_pretrained(directory)("ROMEO:", return_tensors="pt").input_ids
    return model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()


def test_from_pretrained_without_the_shim(codecllm, transformers, bard, packed_bard):
    plain = transformers.AutoModelForCausalLM.from_pretrained(bard, dtype="auto")
    packed = codecllm.from_pretrained(packed_bard, dtype="auto")
    assert type(packed) is type(plain)
    assert all(same(a, b) for a, b in zip(plain.state_dict().values(), packed.state_dict().values()))
    assert generate(transformers, packed, bard) == generate(transformers, plain, bard)
    base = codecllm.from_pretrained(packed_bard, auto_class=transformers.AutoModel, dtype=torch.float32)
    assert next(base.parameters()).dtype == torch.float32
    with pytest.raises(codecllm.Error, match="not a model directory"):
        codecllm.from_pretrained(packed_bard / "none")


@pytest.mark.parametrize("mode", ["lossless", "q8"])
def test_codec_config(codecllm, transformers, command, bard, packed_bard, tmp_path, mode):
    load = transformers.AutoModelForCausalLM.from_pretrained
    plain = load(bard, dtype="auto")
    model = load(bard, dtype="auto", quantization_config=codecllm.CodecConfig(mode=mode))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, codecllm.CompressedLinear)}
    assert len(layers) == 42 and "lm_head" not in layers and all(m.compressed.mode == mode for m in layers.values())
    assert not any(p.device.type == "meta" for p in model.parameters())
    if mode == "lossless":
        assert generate(transformers, model, bard) == generate(transformers, plain, bard)
    model.save_pretrained(tmp_path / "saved")
    saved = tmp_path / "saved" / "model.safetensors"
    run(command, "verify", saved)
    if mode == "lossless":
        assert saved.read_bytes() == (packed_bard / "model.safetensors").read_bytes()
    again = codecllm.from_pretrained(tmp_path / "saved", dtype="auto")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]["mode"] == mode
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours), "nothing is quantised twice"
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == saved.read_bytes()
    decoded = again.dequantize()
    assert not any(isinstance(m, codecllm.CompressedLinear) for m in decoded.modules())
    assert generate(transformers, decoded, bard) == generate(transformers, model, bard)
    # any program reads it under the library, config and all
    unpacked = tmp_path / "unpacked"
    run(command, "unpack", "--quiet", tmp_path / "saved", unpacked)
    values = codecllm.load_file(unpacked / "model.safetensors")
    assert same(values["model.layers.0.mlp.up_proj.weight"], layers["model.layers.0.mlp.up_proj"].weight)


def test_from_pretrained_of_a_pipeline_folder(codecllm, transformers, command, bard, tmp_path):
    shutil.copytree(bard, tmp_path / "pipe" / "text_encoder")
    (tmp_path / "pipe" / "model_index.json").write_text(
        '{"_class_name": "Pipeline", "text_encoder": ["transformers", "LlamaForCausalLM"]}'
    )
    run(command, "pack", tmp_path / "pipe", tmp_path / "packed")
    model = codecllm.from_pretrained(tmp_path / "packed", subfolder="text_encoder", dtype="auto")
    plain = transformers.AutoModelForCausalLM.from_pretrained(bard, dtype="auto")
    assert type(model) is type(plain)
    assert all(same(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    with codecllm.safe_open(tmp_path / "packed" / "text_encoder" / "model.safetensors", "pt") as f:
        assert all(same(f.get_tensor(k), plain.state_dict()[k]) for k in f.keys() if k in plain.state_dict())


def test_saving_does_not_widen_what_it_replaces(codecllm, transformers, bard, tmp_path):
    before = os.umask(0o022)
    try:
        path = tmp_path / "file"
        codecllm.save_file({"a": weights(40, 50)}, path)
        assert path.stat().st_mode & 0o777 == 0o644
        path.chmod(0o600)
        codecllm.save_file({"a": weights(40, 50)}, path)
        assert path.stat().st_mode & 0o777 == 0o600
        os.umask(0o077)
        path.unlink()
        codecllm.save_file({"a": weights(40, 50)}, path)
        assert path.stat().st_mode & 0o777 == 0o600
        os.umask(0o022)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            bard, dtype="auto", quantization_config=codecllm.CodecConfig(mode="q8")
        )
        model.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "model.safetensors").stat().st_mode & 0o777 == 0o644
        (tmp_path / "saved" / "model.safetensors").chmod(0o600)
        model.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "model.safetensors").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_codec_config_refuses_an_unknown_mode(codecllm, transformers):
    with pytest.raises(codecllm.Error, match="q8"):
        codecllm.CodecConfig(mode="int3")


# --- a GPU, which the stand-in for the driver plays ---------------------------------------------------------

ON_THE_STAND_IN = """
import ctypes, torch
from codecllm import Error, _library
from codecllm.tensor import CompressedTensor

cuda = ctypes.CDLL("libcuda.so.1")
context, u64 = ctypes.c_void_p(), ctypes.c_uint64
assert cuda.cuInit(0) == 0 and cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0


def device(nbytes, data=None):
    at = u64()
    assert cuda.cuMemAlloc_v2(ctypes.byref(at), u64(nbytes)) == 0
    if data is not None:
        assert cuda.cuMemcpyHtoD_v2(at, ctypes.c_void_p(data.data_ptr()), u64(nbytes)) == 0
    return at.value


t = torch.randn(700, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
for mode in ("lossless", "q8", "q6"):
    c = CompressedTensor.compress(t, mode)
    gpu = _library.GpuTensor(c.packed.data_ptr(), c.nbytes)
    packed, scratch, to = device(c.nbytes, c.packed), device(gpu.scratch_nbytes), device(t.nbytes)
    if mode == "lossless":
        assert cuda.cuCtxSetCurrent(None) == 0
        try:
            gpu.decode(packed, scratch, to, None)
        except Error as why:
            print("said:", why)
        assert cuda.cuCtxSetCurrent(context) == 0
    gpu.decode(packed, scratch, to, None)
    back = torch.empty_like(t)
    assert cuda.cuMemcpyDtoH_v2(ctypes.c_void_p(back.data_ptr()), u64(to), u64(t.nbytes)) == 0
    print(mode, torch.equal(back, c.decompress()))
"""


def test_decoding_on_a_gpu(codecllm, build_dir, tmp_path):
    standin = build_dir / "standin"
    if not (standin / "libcuda.so.1").exists():
        pytest.skip("the stand-in for the driver was not built")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "shim" / "python"),
        "LD_LIBRARY_PATH": str(standin),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    lines = run(sys.executable, "-c", ON_THE_STAND_IN, env=env).stdout.splitlines()
    assert lines == ["said: no CUDA context is current in this thread", "lossless True", "q8 True", "q6 True"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(codecllm):
    import warnings

    for mode in ("lossless", "q8", "q6"):
        for dtype in (torch.bfloat16, torch.float32):
            t = weights(1024, 768, dtype=dtype).cuda()
            c = codecllm.CompressedTensor.compress(t, mode)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert c.device.type == "cuda" and torch.equal(c.decompress(), c.to("cpu").decompress().cuda())
            assert torch.equal(c.decompress(dtype=torch.float16), c.decompress().half())
            assert torch.equal(c.rows(3, 9), c.decompress()[3:9])
            out = torch.zeros_like(t)
            assert c.decompress(out=out) is out and torch.equal(out, c.decompress())
    linear = torch.nn.Linear(768, 512).cuda().bfloat16()
    layer = codecllm.CompressedLinear.from_linear(linear)
    x = torch.randn(4, 768, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(layer(x), linear(x)) and layer.weight_packed.is_cuda
    bad = layer.weight_packed.clone()
    bad[bad.numel() // 2] ^= 1
    broken = codecllm.CompressedTensor(layer.weight_packed.clone())
    broken.decompress()
    broken.packed.copy_(bad)
    with pytest.raises(codecllm.Error, match="chunk"):
        broken.decompress()
