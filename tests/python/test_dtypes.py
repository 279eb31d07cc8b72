"""One tensor of every dtype that torch and safetensors can save: packed, unpacked, listed, and loaded bit for bit, by
codecllm's functions and by plain safetensors under the preloaded library on every rung."""

import json
import os
import subprocess
import sys

import pytest
from conftest import HANG_SECONDS, ROOT, clean_environment, run

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

RUNGS = ["uffd-dev", "uffd", "uffd-user", "sigsegv", "eager"]
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip


def raw(t):
    return bytes(t.contiguous().view(-1).view(torch.uint8).tolist())


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def sample(dtype, rows=6, row_bytes=2048):
    """Any bytes are a tensor, but of BOOL; of weights for those that have a normal distribution, and with NaNs."""
    g = torch.Generator().manual_seed(1)
    if dtype == torch.bool:
        return torch.rand(rows, row_bytes, generator=g) < 0.1
    if dtype.itemsize == 1:
        t = (torch.randn(rows, row_bytes, generator=g).clamp(-7, 7) * 9 + 120).to(torch.uint8)
    elif dtype.is_floating_point or dtype.is_complex:
        real = torch.float32 if dtype.is_complex else dtype
        t = (torch.randn(rows, row_bytes // real.itemsize, generator=g) * 0.02).to(real).view(torch.uint8)
    else:
        t = torch.randint(0, 255, (rows, row_bytes), generator=g, dtype=torch.uint8)
    t[0, :64] = 255
    return t.view(dtype)


@pytest.fixture(scope="module", autouse=True)
def library(build_dir):
    before = os.environ.get("CWS_LIBRARY")
    os.environ["CWS_LIBRARY"] = str(build_dir / "lib" / "libcws.so")
    sys.path.insert(0, str(ROOT / "shim" / "python"))
    yield
    sys.path.remove(str(ROOT / "shim" / "python"))
    os.environ.pop("CWS_LIBRARY")
    if before is not None:
        os.environ["CWS_LIBRARY"] = before


def torch_dtype(name):
    if not hasattr(torch, DTYPES[name]):
        pytest.skip(f"torch {torch.__version__} has no {DTYPES[name]}")
    return getattr(torch, DTYPES[name])


def saved(tensors, path, name):
    try:
        save_file(tensors, path)
        with safe_open(path, "pt") as f:
            for key in tensors:
                f.get_tensor(key)
    except Exception as why:  # noqa: BLE001  whatever this safetensors says
        pytest.skip(f"this safetensors cannot save and load {name}: {why}")


@pytest.fixture(scope="module")
def files(command, tmp_path_factory):
    """By dtype: a plain file and its packed one, made once."""
    made = {}

    def of(name):
        if name not in made:
            t = sample(torch_dtype(name))
            where = tmp_path_factory.mktemp(name)
            saved({"w": t, "a.row": t[1].clone(), "none": t[:0].clone()}, where / "plain.safetensors", name)
            run(command, "pack", "--quiet", where / "plain.safetensors", where / "packed.safetensors")
            made[name] = (
                where / "plain.safetensors",
                where / "packed.safetensors",
                {"w": t, "a.row": t[1].clone(), "none": t[:0].clone()},
            )
        return made[name]

    return of


@pytest.mark.parametrize("name", DTYPES)
def test_packs_shows_verifies_and_unpacks(files, command, tmp_path, name):
    plain, packed, _ = files(name)
    shown = json.loads(run(command, "inspect", "--json", packed).stdout)["files"][0]["tensors"]
    assert {t["dtype"] for t in shown} == {name}
    assert name in run(command, "inspect", packed).stdout
    run(command, "verify", packed)
    run(command, "unpack", "--quiet", packed, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("name", DTYPES)
def test_loads_without_the_shim(files, name, tmp_path):
    import codecllm

    _, packed, tensors = files(name)
    loaded = codecllm.load_file(packed)
    assert loaded.keys() == tensors.keys() and all(same(loaded[k], tensors[k]) for k in tensors)
    with codecllm.safe_open(packed) as f:
        rows = f.get_slice("w")
        assert rows.get_dtype() == name
        assert same(rows[2:5], tensors["w"][2:5]) and same(rows[1], tensors["w"][1])
        c = f.get_compressed("w")
        assert c.shape == tensors["w"].shape and c.dtype == tensors["w"].dtype and same(c.decompress(), tensors["w"])
        assert same(c.rows(3, 6), tensors["w"][3:6])
    codecllm.save_file({"plain": tensors["w"], "packed": c}, tmp_path / "again")
    again = codecllm.load_file(tmp_path / "again")
    assert same(again["plain"], tensors["w"]) and same(again["packed"], tensors["w"])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("mode", ["lossless", "q8"])
def test_compresses_in_memory(name, mode):
    import codecllm

    t = sample(torch_dtype(name))
    c = codecllm.CompressedTensor.compress(t, mode)
    back = c.decompress()
    assert (
        back.dtype == t.dtype and back.shape == t.shape == c.shape and c.logical_nbytes == t.numel() * t.dtype.itemsize
    )
    if c.mode == "lossless":
        assert same(back, t)
    else:
        assert name in ("F16", "BF16", "F32")
    if c.stored_codec == "split":
        assert 0 < c.entropy_bound() < 8 * t.dtype.itemsize


def test_what_is_conjugated_or_negated_lazily():
    """A conjugate's memory holds the original: neither may it be packed, nor may the decoded bytes be written there."""
    import codecllm

    t = sample(torch.complex64)[1:]
    for lazy in (t.conj(), t.conj().imag):
        assert lazy.is_conj() or lazy.is_neg()
        c = codecllm.CompressedTensor.compress(lazy)
        assert same(c.decompress(), lazy.resolve_conj().resolve_neg())
    out = torch.zeros_like(t).conj()
    assert out.is_conj()
    codecllm.CompressedTensor.compress(t).decompress(out=out)
    assert torch.equal(out.resolve_conj(), t)


def test_half_an_element_of_torch():
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no float4_e2m1fn_x2")
    import codecllm

    with pytest.raises(codecllm.Error, match="scalar of float4"):
        codecllm.CompressedTensor.compress(torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


def header_file(path, dtype, shape, data):
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(
    ("dtype", "shape", "says"),
    [
        ("I4", [10], "no dtype for I4"),
        ("F6_E2M3", [8], "no dtype for F6_E2M3"),
        ("F4", [2, 5], "last dimension must be even"),
    ],
)
def test_what_torch_cannot_hold_is_packed_and_says_so_when_loaded(command, tmp_path, dtype, shape, says):
    import codecllm

    data = os.urandom({"I4": 7, "F6_E2M3": 6, "F4": 5}[dtype])
    header_file(tmp_path / "plain", dtype, shape, data)
    done = run(command, "pack", "--quiet", tmp_path / "plain", tmp_path / "packed")
    assert ("a type that this build does not know (I4)" in done.stderr) == (dtype == "I4")
    run(command, "unpack", "--quiet", tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "plain").read_bytes()
    with codecllm.safe_open(tmp_path / "packed") as f:
        assert f.keys() == ["w"]
        with pytest.raises(codecllm.Error, match=says):
            f.get_tensor("w")


SHIM = """
import sys, torch
from safetensors.torch import load_file
from safetensors import safe_open
for plain, packed in zip(sys.argv[1::2], sys.argv[2::2]):
    assert open(plain, "rb").read() == open(packed, "rb").read(), packed
    a, b = load_file(plain), load_file(packed)
    with safe_open(packed, "pt") as f:
        for k in a:
            for t in (b[k], f.get_tensor(k)):
                assert t.dtype == a[k].dtype and t.shape == a[k].shape, (packed, k)
                ours, theirs = (x.contiguous().view(-1).view(torch.uint8) for x in (t, a[k]))
                assert torch.equal(ours, theirs), (packed, k)
"""


@pytest.mark.parametrize("rung", RUNGS)
def test_plain_safetensors_under_the_shim(files, shim, rung):
    """All dtypes in one program: starting torch takes longer than all the rest."""
    paths = []
    for name in DTYPES:
        try:
            paths += files(name)[:2]
        except pytest.skip.Exception:
            pass  # shown by the other tests
    assert len(paths) > 20
    environment = clean_environment(LD_PRELOAD=shim, CODEC_VRAM_BUDGET="1M", CODEC_PAGER=rung)
    done = subprocess.run(
        [sys.executable, "-c", SHIM, *map(str, paths)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=HANG_SECONDS,
    )
    if "does not work here" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
