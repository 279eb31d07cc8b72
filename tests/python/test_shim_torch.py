"""Unmodified torch, safetensors and transformers on a packed model, under the preloaded library, on every paging
rung."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import HANG_SECONDS, clean_environment, run

pytest.importorskip("torch")
pytest.importorskip("safetensors")

RUNGS = ["uffd-dev", "uffd-user", "sigsegv", "eager"]
BUDGET = "2M"

HEAD = """
import os, sys, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
packed, plain = sys.argv[1:3]
name = "model.safetensors"
def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k
"""


# Programs that run one after the other in one process for each rung, because starting torch and transformers takes
# longer than all they do. Each has a packed copy of its own, which it may change, and begins in its own folder.
PROGRAMS = {
    "SAFE_OPEN": """
a, b = os.path.join(packed, name), os.path.join(plain, name)
with safe_open(a, "pt") as f, safe_open(b, "pt") as g:
    assert sorted(f.keys()) == sorted(g.keys()) and f.metadata() == g.metadata()
    same({k: f.get_tensor(k) for k in f.keys()}, {k: g.get_tensor(k) for k in g.keys()})
    key = max(g.keys(), key=lambda k: g.get_tensor(k).numel())
    assert torch.equal(f.get_slice(key)[3:9], g.get_slice(key)[3:9])
same(load_file(a), load_file(b))
size = os.path.getsize(a)
assert size == os.path.getsize(b)
storages = [torch.UntypedStorage.from_file(p, False, size) for p in (a, b)]
tensors = [torch.empty(0, dtype=torch.uint8).set_(s) for s in storages]
assert torch.equal(*tensors)
tensors[0][1000:2000] += 1
assert not torch.equal(*tensors)
assert open(a, "rb").read() == open(b, "rb").read()
""",
    "SAVING": """
mapped, original = load_file(os.path.join(packed, name)), load_file(os.path.join(plain, name))
torch.save(mapped, "a.pt")
same(torch.load("a.pt", mmap=True), original)
same(torch.load("a.pt"), original)
save_file(mapped, "a.safetensors")
same(load_file("a.safetensors"), original)
with open("a.bin", "wb") as f:
    for t in mapped.values():
        f.write(t.view(torch.uint8).numpy().data if t.dim() else b"")
mapped[next(iter(mapped))].view(torch.uint8).flatten().numpy().tofile("b.bin")
""",
    "SAVING_OVER": """
path = os.path.join(packed, name)
original = load_file(os.path.join(plain, name))
mapped = load_file(path)
torch.save(mapped, path)
same(mapped, original)
same(torch.load(open(path, "rb")), original)
save_file(mapped, path)
same(mapped, original)
same(load_file(path), original)
""",
    "TRANSFORMERS": """
from transformers import AutoModelForCausalLM
a, b = (AutoModelForCausalLM.from_pretrained(d, dtype="auto") for d in (packed, plain))
ids = torch.arange(1, 65)[None]
with torch.no_grad():
    assert torch.equal(a(ids).logits, b(ids).logits)
    assert torch.equal(*(m.generate(ids[:, :8], max_new_tokens=12, do_sample=False) for m in (a, b)))
a.save_pretrained(packed)
with torch.no_grad():
    assert torch.equal(a(ids).logits, b(ids).logits)
c = AutoModelForCausalLM.from_pretrained(packed, dtype="auto")
same(c.state_dict(), b.state_dict())
""",
    "LAYOUTS": """
from transformers import AutoModelForCausalLM
want = AutoModelForCausalLM.from_pretrained(plain, dtype="auto").state_dict()
for place, options in ("pipe", {"subfolder": "text_encoder"}), ("left", {}), ("cut", {}), ("models--org--bard", {}):
    same(AutoModelForCausalLM.from_pretrained(os.path.join(layouts, place), dtype="auto", **options).state_dict(), want)
same(load_file(layouts + "/pipe/unet/diffusion_pytorch_model.fp16.safetensors"), load_file(os.path.join(plain, name)))
""",
}

TOGETHER = """
import gc, json, traceback
layouts = sys.argv[3]
for title, code in json.load(sys.stdin).items():
    os.chdir(os.path.join(sys.argv[4], title))
    try:
        exec(compile(code, title, "exec"), {**globals(), "packed": os.path.abspath("model")})
        print(json.dumps([title, ""]), flush=True)
    except BaseException:
        print(json.dumps([title, traceback.format_exc()]), flush=True)
    gc.collect()
"""


@pytest.fixture(params=RUNGS)
def rung(request):
    return request.param


@pytest.fixture()
def under(shim, packed_bard, bard, tmp_path):
    """Runs a program with the library, on a packed copy that it may change; the result, checked."""
    copy = tmp_path / "model"
    shutil.copytree(packed_bard, copy)

    def go(code, rung="uffd-dev", status=0, budget=BUDGET, **env):
        environment = clean_environment(LD_PRELOAD=shim, CODEC_VRAM_BUDGET=budget, CODEC_PAGER=rung, **env)
        done = subprocess.run([sys.executable, "-c", HEAD + code, str(copy), str(bard)], env=environment, text=True,
                              capture_output=True, timeout=HANG_SECONDS, cwd=tmp_path)  # fmt: skip
        if "does not work here" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    go.model = copy
    return go


@pytest.fixture(scope="module")
def layouts(command, bard, tmp_path_factory):
    """A folder with packed directories of several layouts."""
    tmp_path = tmp_path_factory.mktemp("layouts")
    pipe, left, cut, entry = (tmp_path / "plain" / name for name in ("pipe", "left", "cut", "models--org--bard"))
    shutil.copytree(bard, pipe / "text_encoder")
    shutil.copytree(bard, left)
    (pipe / "unet").mkdir()
    shutil.copy(bard / "model.safetensors", pipe / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (left / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "model-00001-of-00009.safetensors"}}'
    )
    shutil.copytree(bard, cut)
    (cut / "weights").mkdir()
    (cut / "model.safetensors").rename(cut / "weights" / "part.safetensors")
    data = (bard / "model.safetensors").read_bytes()
    names = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    shards = {name: "weights/part.safetensors" for name in names if name != "__metadata__"}
    (cut / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots" / "0123").mkdir(parents=True)
    for i, file in enumerate(sorted(bard.iterdir())):
        shutil.copy(file, entry / "blobs" / f"blob{i}")
        (entry / "snapshots" / "0123" / file.name).symlink_to(f"../../blobs/blob{i}")
    for directory in (pipe, left, cut, entry):
        run(command, "pack", "-q", directory, tmp_path / directory.name)
    return tmp_path


@pytest.fixture(scope="module")
def together(shim, packed_bard, bard, layouts, tmp_path_factory):
    """together(rung, title): what the process of this rung wrote to stderr; a failure shows how that program ended."""
    done = {}

    def start(rung):
        folder = tmp_path_factory.mktemp(rung)
        for title in PROGRAMS:
            shutil.copytree(packed_bard, folder / title / "model")
        env = clean_environment(LD_PRELOAD=shim, CODEC_VRAM_BUDGET=BUDGET, CODEC_PAGER=rung, CODEC_STATS="1")
        return run(sys.executable, "-c", HEAD + TOGETHER, "", bard, layouts, folder, env=env, check=False,
                   input=json.dumps(PROGRAMS), cwd=folder)  # fmt: skip

    def go(rung, title):
        if rung not in done:
            done[rung] = start(rung)
        ended = done[rung]
        if "does not work here" in ended.stderr:
            pytest.skip(ended.stderr)
        results = dict(json.loads(line) for line in ended.stdout.splitlines())
        assert results.get(title, "did not end") == "", (results, ended.returncode, ended.stderr)
        assert ended.returncode == 0 and list(results) == list(PROGRAMS), ended.stderr
        return ended.stderr

    return go


def test_safe_open_and_from_file(together, rung):
    together(rung, "SAFE_OPEN")


def test_saving_a_mapped_model(together, rung):
    """torch.save and save_file hand the mapped memory to write: it must not fail where the kernel cannot wait for a
    page."""
    together(rung, "SAVING")


def test_saving_over_the_model_in_use(together, rung):
    together(rung, "SAVING_OVER")


def test_transformers(together, rung):
    """Bit-identical logits and tokens at a budget of a fifth of the weights; then saved where it came from."""
    pytest.importorskip("transformers")
    stderr = together(rung, "TRANSFORMERS")
    assert f"paging of this process ({rung})" in stderr and "evictions" in stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(under, method, tmp_path):
    (tmp_path / "worker.py").write_text(
        "import torch\ndef work(path, tensor):\n"
        "    from safetensors.torch import load_file\n"
        "    total = sum(float(t.double().sum()) for t in load_file(path).values())\n"
        "    return total, None if tensor is None else float(tensor.double().sum())\n"
    )
    under(
        f"""
import multiprocessing as mp, worker
sys.path.insert(0, os.getcwd())
if __name__ == "__main__":
    mapped = load_file(os.path.join(packed, name))
    want = worker.work(os.path.join(plain, name), None)[0]
    with mp.get_context({method!r}).Pool(2) as pool:
        assert all(r[0] == want for r in pool.starmap(worker.work, [(os.path.join(packed, name), None)] * 4))
    if {method!r} == "fork":
        big = max(mapped.values(), key=lambda t: t.numel())
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(not all(torch.equal(t, load_file(os.path.join(plain, name))[k]) for k, t in mapped.items()))
        assert os.waitpid(child, 0)[1] == 0
""",
        PYTHONPATH=tmp_path,
        OMP_NUM_THREADS="1",  # torch's own threads do not survive a fork, with or without us
    )


def test_copies_and_programs(under):
    under(
        """
import shutil, subprocess, mmap
a, b = os.path.join(packed, name), os.path.join(plain, name)
want = open(b, "rb").read()
f = open(a, "rb")
for copy in (shutil.copyfile, shutil.copy, shutil.copy2):
    copy(a, "copy"); assert open("copy", "rb").read() == want
subprocess.run(["cp", a, "copy2"], check=True); assert open("copy2", "rb").read() == want
assert subprocess.run(["cat", a], capture_output=True).stdout == want
assert subprocess.run(["cat"], stdin=open(a, "rb"), capture_output=True).stdout == want
assert f.read(10) == want[:10] and f.read() == want[10:]
with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m: assert m[:] == want
with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as m: m[5] = 7; assert m[6:] == want[6:]
try: mmap.mmap(f.fileno(), 0)
except PermissionError: pass
else: raise AssertionError("a shared writable mapping of a packed model")
try: open(a, "r+b")
except OSError as why: assert why.errno == 30
else: raise AssertionError("opened for changing in place")
import numpy
assert bytes(numpy.memmap(a, mode="r")) == want and bytes(numpy.fromfile(a, dtype="u1")) == want
"""
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rung_", ["uffd-dev", "sigsegv"])
def test_faulthandler(under, when, rung_):
    done = under(
        f"""
import faulthandler, ctypes
if {when!r} == "before": faulthandler.enable()
mapped = load_file(os.path.join(packed, name))
if {when!r} == "after": faulthandler.enable()
same(mapped, load_file(os.path.join(plain, name)))
ctypes.string_at(8)
""",
        rung_,
        status=-signal.SIGSEGV,
    )
    assert "Segmentation fault" in done.stderr and "string_at" in done.stderr


def test_damage_is_sigbus_with_a_line(under, rung):
    path = under.model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    done = under(
        "same(load_file(os.path.join(packed, name)), load_file(os.path.join(plain, name)))", rung, status=-signal.SIGBUS
    )
    lines = [line for line in done.stderr.splitlines() if "codecllm" in line and "checksum" in line]
    assert lines and "model.layers" in lines[0] and str(path) in lines[0] and "offset" in lines[0]


def test_settings_that_are_wrong(under):
    done = under(
        "try: load_file(os.path.join(packed, name))\nexcept Exception as why: print(type(why), why)",
        CODEC_POLICY="best",
    )
    assert done.stderr.count("CODEC_POLICY=best: not understood") == 1 and "rror" in done.stdout
    done = under("load_file(os.path.join(packed, name))", CODEC_BUDGET="1G", CODEC_VERBOSE="1")
    assert "CODEC_BUDGET: no such setting" in done.stderr
    assert "functions of the C library replaced" in done.stderr and "CODEC_VRAM_BUDGET=2M" in done.stderr


def test_silent_and_inert_until_a_store_is_mapped(under, shim):
    code = (
        "import threading; assert len(os.listdir('/proc/self/task')) == threading.active_count(); "
        "open(os.path.join(packed, name), 'rb').read()"
    )
    done = under(code, CODEC_VERBOSE="1", CODEC_STATS="1", OMP_NUM_THREADS="1")
    assert "codecllm" not in done.stderr
    raw = (under.model / "model.safetensors").stat().st_size
    code = "import os, sys; print(os.path.getsize(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, under.model / "model.safetensors"],
        env=clean_environment(LD_PRELOAD=shim),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(raw) and done.stderr == ""


def test_layouts_of_directories(together, rung):
    """A pipeline of folders, an index left over beside a complete file, shards in a folder, and an entry of the Hub's
    cache."""
    pytest.importorskip("transformers")
    together(rung, "LAYOUTS")
