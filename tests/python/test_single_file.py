"""One .safetensors file with a diffusion model, a text encoder and a VAE under prefixes, as ComfyUI and the programs
around it have them, packed, and loaded in each way that such programs load it.

What each way computes must be what it computes with the plain file, to the bit."""

import json
import os
import sys

import pytest
from conftest import ROOT, clean_environment, run

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

BUDGET = 3 << 20
COPIED = "codecllm: the program has copied about"


def environment(**more):
    return clean_environment(
        PYTHONPATH=ROOT / "shim" / "python", OMP_NUM_THREADS="1", **more
    )  # the same sums, to the bit


# Three parts; beside weights of bf16: fp16, two kinds of fp8, float32, a scalar, integers, a tensor of nothing.
MAKE = """
import sys, torch
from safetensors.torch import save_file
torch.manual_seed(0)
random = lambda *shape: torch.randn(*shape) * 0.02
sd = {}
for i in range(20):
    sd[f"model.diffusion_model.blocks.{i}.weight"] = random(768, 768).bfloat16()
    sd[f"model.diffusion_model.blocks.{i}.bias"] = random(768).bfloat16()
sd["model.diffusion_model.fp8.weight"] = random(768, 768).to(torch.float8_e4m3fn)
sd["model.diffusion_model.fp8.weight_scale"] = torch.tensor(0.5)
sd["model.diffusion_model.fp8_e5m2.weight"] = random(768, 768).to(torch.float8_e5m2)
for i in range(2):
    sd[f"cond_stage_model.transformer.layers.{i}.weight"] = random(512, 512).half()
sd["cond_stage_model.position_ids"] = torch.arange(77)[None]
sd["cond_stage_model.nothing"] = torch.empty(0, 4)
for i in range(2):
    sd[f"first_stage_model.decoder.conv{i}.weight"] = random(64, 64, 3, 3)
save_file(sd, sys.argv[1], metadata={"modelspec.architecture": "test", "format": "pt"})
torch.save({"state_dict": sd}, sys.argv[1] + ".ckpt")
"""

# How the file becomes a dictionary of tensors: `load`, by name.
LOAD = '''
import ctypes, hashlib, json, math, mmap, os, struct, sys
import safetensors, safetensors.torch, torch

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}

def load_file(path):
    return safetensors.torch.load_file(path, device="cpu")

def get_tensor(path):
    with safetensors.safe_open(path, framework="pt", device="cpu") as f:
        assert f.metadata() == {"modelspec.architecture": "test", "format": "pt"}
        return {name: f.get_tensor(name) for name in f.keys()}

def get_slice(path):
    """Rows in two halves, as programs read that spread a model."""
    out = {}
    with safetensors.safe_open(path, framework="pt") as f:
        for name in f.keys():
            part = f.get_slice(name)
            shape = part.get_shape()
            if len(shape) < 2 or shape[0] < 2:
                out[name] = f.get_tensor(name)
            else:
                half = shape[0] // 2
                rows = [part[:half].view(torch.uint8), part[half:].view(torch.uint8)]  # fp8 cannot be joined as such
                out[name] = torch.cat(rows).view(part[:1].dtype)
    return out

def parse(bytes_, size):
    """A reader of its own: the header, and tensors that are views of the rest."""
    header_bytes = struct.unpack("<Q", bytes_[:8])[0]
    header = json.loads(bytes(bytes_[8 : 8 + header_bytes]))
    data, out = bytes_[8 + header_bytes : size], {}
    assert max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__") == len(data)
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        begin, end = facts["data_offsets"]
        dtype = TYPES[facts["dtype"]]
        assert math.prod(facts["shape"]) * dtype.itemsize == end - begin
        flat = torch.frombuffer(data[begin:end], dtype=dtype) if end > begin else torch.empty(0, dtype=dtype)
        out[name] = flat.view(facts["shape"])
    return out

def python_mmap(path):
    with open(path, "rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    return parse(memoryview(mapped), os.path.getsize(path))

def library_mmap(path):
    """open, fstat and mmap as a C library calls them; the address becomes tensors."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fd = libc.open(os.fsencode(path), os.O_RDONLY)
    size = os.fstat(fd).st_size
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    assert fd >= 0 and address != ctypes.c_void_p(-1).value
    return parse(memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B"), size)

def file_slices(path):
    """Each tensor is read into memory of its own by pread from its offset; half of them by O_DIRECT."""
    fd = os.open(path, os.O_RDONLY)
    direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT)
    header_bytes = struct.unpack("<Q", os.pread(fd, 8, 0))[0]
    header, out = json.loads(os.pread(fd, header_bytes, 8)), {}
    for i, (name, facts) in enumerate(header.items()):
        if name == "__metadata__":
            continue
        begin, end = facts["data_offsets"]
        flat = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            where = memoryview(flat.numpy())
            first, done = 8 + header_bytes + begin, 0
            while done < end - begin:
                done += os.preadv(direct if i % 2 else fd, [where[done:]], first + done)
        out[name] = flat.view(TYPES[facts["dtype"]]).view(facts["shape"])
    return out

def whole(path):
    """Read into memory first, as options without mmap do."""
    with open(path, "rb") as f:
        return safetensors.torch.load(f.read())

def ckpt(path):
    return torch.load(path + ".ckpt", map_location="cpu", weights_only=True, mmap=True)["state_dict"]
'''

# What a program makes of the dictionary: modules on meta, by skip_init, or from values, assigned or copied.
USE = '''
def without_prefix(sd, prefix):
    return {name[len(prefix) :]: sd.pop(name) for name in list(sd) if name.startswith(prefix)}

class Model(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        linear = torch.nn.Linear
        if how == "skip_init":
            linear = lambda *shape, **more: torch.nn.utils.skip_init(torch.nn.Linear, *shape, **more)
        device = {"device": "meta"} if how == "meta" else {}
        self.blocks = torch.nn.ModuleList([linear(768, 768, dtype=torch.bfloat16, **device) for _ in range(20)])

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.nn.functional.silu(block(x))
        return x

def digest(tensor):
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()

def compute(sd, how, assign):
    """What the parts compute, twice, and the bits of all tensors that were in the file."""
    bits = {name: [str(t.dtype), list(t.shape), digest(t)] for name, t in sd.items()}
    unet, clip = without_prefix(sd, "model.diffusion_model."), without_prefix(sd, "cond_stage_model.")
    vae = without_prefix(sd, "first_stage_model.")
    assert not sd
    scaled = unet.pop("fp8.weight").to(torch.bfloat16) * unet.pop("fp8.weight_scale").to(torch.bfloat16)
    other = unet.pop("fp8_e5m2.weight")
    model = Model(how).requires_grad_(False)
    model.load_state_dict(unet, assign=assign)
    del unet
    torch.manual_seed(1)
    x, out = torch.randn(2, 768).bfloat16(), []
    for _ in range(2):
        y = torch.nn.functional.linear(model(x), scaled) + torch.nn.functional.linear(x, other.to(torch.bfloat16))
        z = y[:, :512].half()
        for i in range(2):
            z = torch.nn.functional.linear(z, clip[f"transformer.layers.{i}.weight"])
        image = z.float().view(1, 64, 4, 4)
        for i in range(2):
            image = torch.nn.functional.conv2d(image, vae[f"decoder.conv{i}.weight"], padding=1)
        out.append([digest(y), digest(z), digest(image)])
    return [bits, out]

# Each way one after the other; what the pager has decoded for each.
path, out = sys.argv[1], {}
paged = "CODEC_VRAM_BUDGET" in os.environ
for case in sys.argv[2:]:
    way, how, assign = case.split(",")
    result, stats = compute(globals()[way](path), how, assign == "assign"), None
    if paged:
        import codecllm
        stats = codecllm.stats()
    out[case] = [hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest(), stats]
print(json.dumps(out))
'''

PAGED = [f"{way},meta,assign" for way in ("load_file", "get_tensor", "get_slice", "python_mmap", "library_mmap")]
PAGED += ["get_tensor,skip_init,assign", "get_tensor,plain,assign"]
READ = [f"{way},meta,assign" for way in ("file_slices", "whole", "ckpt")]  # no mapping: each into memory of its own


@pytest.fixture(scope="module")
def files(command, tmp_path_factory):
    """The file, packed, with an ordinary .ckpt beside it, and the digest of what the plain one computes."""
    directory = tmp_path_factory.mktemp("checkpoint")
    plain, packed = directory / "sd.safetensors", directory / "packed.safetensors"
    done = run(sys.executable, "-c", MAKE + LOAD + USE, plain, "load_file,plain,copy", env=environment())
    run(command, "pack", "--quiet", plain, packed)
    os.link(f"{plain}.ckpt", f"{packed}.ckpt")
    assert packed.stat().st_size < 0.8 * plain.stat().st_size
    return packed, json.loads(done.stdout)["load_file,plain,copy"][0], plain.stat().st_size


@pytest.fixture()
def use(files, shim):
    """Loads the packed file under the library, in each of these ways: the counters after each, and stderr."""

    def go(*cases):
        packed, plain, _ = files
        env = environment(LD_PRELOAD=shim, CODEC_VRAM_BUDGET=BUDGET)
        done = run(sys.executable, "-c", LOAD + USE, packed, *cases, env=env)
        out = json.loads(done.stdout)
        assert {case: digest for case, (digest, _) in out.items()} == dict.fromkeys(cases, plain)
        counters = [stats for _, stats in out.values()]
        if counters[-1]["rung"] == "eager":
            pytest.skip("nothing is paged on this machine")
        return counters, done.stderr

    return go


def test_what_is_mapped_is_paged(use, files):
    """All weights are used twice, and read once more for their digest, in less than a fifth of their size."""
    counters, _ = use(*PAGED)
    decoded = [0] + [stats["decoded_bytes"] for stats in counters]
    assert min(after - before for before, after in zip(decoded, decoded[1:], strict=False)) > 0.9 * files[2]
    assert files[2] > 5 * BUDGET and max(stats["peak_bytes"] for stats in counters) <= BUDGET
    assert counters[-1]["errors"] == counters[-1]["written_bytes"] == 0


def test_what_is_copied_is_told_once_and_what_is_read_is_right(use):
    """load_state_dict without assign, as ComfyUI loads without its dynamic VRAM; and readers that map nothing."""
    counters, stderr = use("get_tensor,skip_init,copy", *READ)
    assert stderr.count(COPIED) == 1 and stderr.count("\n") == 1
    assert counters[0]["copied_bytes"] > 16 << 20 and counters[0]["peak_bytes"] <= BUDGET
    assert {stats["decoded_bytes"] for stats in counters} == {counters[0]["decoded_bytes"]}
