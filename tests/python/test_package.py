"""The Python package, installed by pip into a fresh environment: what it brings, how it starts the library, and that it
does nothing when it is not asked to."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment, run

pytestmark = pytest.mark.slow

# What a program sees: its arguments, whether the library is loaded, what a child would inherit.
PROBE = """
import json, os, sys
print(json.dumps(dict(argv=sys.argv, orig=sys.orig_argv if hasattr(sys, "orig_argv") else None, prefix=sys.prefix,
    loaded="libcodecshim.so" in open("/proc/self/maps").read(), pid=os.getpid(), dev=sys.flags.dev_mode,
    preload=os.environ.get("LD_PRELOAD"), guard=os.environ.get("_CODECLLM_STARTED"), name=__name__)))
"""


class Venv:
    def __init__(self, path):
        self.path = path
        self.python = path / "bin" / "python"
        self.command = path / "bin" / "codecllm"
        self.site = Path(
            run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").stdout.strip()
        )

    def probe(self, *arguments, **env):
        done = run(self.python, *arguments, env=clean_environment(**env))
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    try:
        import scikit_build_core  # noqa: F401
    except ImportError:
        pytest.skip("scikit-build-core is not installed")
    root = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--system-site-packages", root / "v")
    venv = Venv(root / "v")
    # torch and the build tool of this environment, which may be a virtual one itself and is not inherited then
    (venv.site / "_parent.pth").write_text(sysconfig.get_path("platlib") + "\n")
    environment = clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INDEX="1")
    run(venv.python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--ignore-installed",
        f"--config-settings=build-dir={root / 'build'}", "--config-settings=cmake.define.CWS_GPU_ARCHES=90", ROOT,
        env=environment)  # fmt: skip
    return venv


@pytest.fixture()
def script(tmp_path):
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    return path


def test_installs_library_command_and_pth(venv):
    assert (venv.site / "codecllm" / "libcodecshim.so").exists()
    assert (venv.site / "codecllm" / "libcws.so").exists()
    assert (venv.site / "codecllm.pth").exists()
    assert (venv.site / "codecllm" / "py.typed").exists()
    assert os.access(venv.command, os.X_OK)
    package = run(
        venv.python,
        "-c",
        "import codecllm; print(codecllm.__version__, codecllm.shim_path(), codecllm.command_path(), sep='\\n')",
    )
    version, shim, command = package.stdout.splitlines()
    assert Path(shim).samefile(venv.site / "codecllm" / "libcodecshim.so")
    assert Path(command).samefile(venv.command)
    assert run(venv.command, "--version").stdout.split()[1] == version
    assert run(venv.python, "-m", "codecllm", "--version").stdout.split()[1] == version


def test_needs_only_libraries_of_the_system(venv):
    for path in (venv.command, venv.site / "codecllm" / "libcodecshim.so", venv.site / "codecllm" / "libcws.so"):
        needed = {
            line.split("[")[1].rstrip("]\n")
            for line in run("readelf", "-d", path).stdout.splitlines()
            if "(NEEDED)" in line
        }
        assert needed <= {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def test_nothing_happens_without_the_variable(venv, script):
    seen = venv.probe(script)
    assert not seen["loaded"] and seen["preload"] is None and seen["guard"] is None
    assert "codecllm" not in run(venv.python, "-c", "import sys; print(*sys.modules)").stdout


def test_line_of_the_pth_costs_nothing(venv):
    """One look into the environment: it opens nothing, imports and wraps nothing, and starts nothing."""
    line = (venv.site / "codecllm.pth").read_text()
    code = (
        "import os, sys\n"
        f"line = compile({line!r}, 'codecllm.pth', 'exec')\n"
        "before, seen = set(sys.modules), []\n"
        "sys.addaudithook(lambda event, arguments: seen.append(event))\n"
        "exec(line)\n"
        "events = list(seen)\n"
        "print(sorted(set(events) - {'exec'}), sorted(set(sys.modules) - before), sep='\\n')\n"
        "print(sys.excepthook is sys.__excepthook__)"
    )
    assert run(venv.python, "-S", "-c", code).stdout.splitlines() == ["[]", "[]", "True"]
    whole = run(venv.python, "-c", "import sys; print(sys.excepthook is sys.__excepthook__)")
    assert whole.stdout == "True\n"


@pytest.mark.parametrize("flag, paged", [("-S", False), ("-I", True), ("-E", True)])
def test_a_python_that_passes_the_pth_file_by_is_paged_by_the_command(venv, script, flag, paged):
    assert venv.probe(flag, script, CODEC_VRAM_BUDGET="64M")["loaded"] == paged
    done = run(venv.command, "run", "--budget", "64M", "--", venv.python, flag, script)
    assert json.loads(done.stdout)["loaded"] and done.stderr == ""


def ends_with(venv, code, *arguments):
    """(exit status, standard error) of a program that fails."""
    done = subprocess.run(
        [str(venv.python), "-c", code, *map(str, arguments)], env=clean_environment(), capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_plain_loader_of_a_packed_file_ends_as_with_any_other_file(venv, tmp_path):
    """With safetensors' own report and nothing of ours; docs/python.md, Packed files, tells users of its text."""
    pytest.importorskip("transformers")
    packed = tmp_path / "bard.packed"
    run(venv.command, "pack", "-q", ROOT / "tests/models/bard", packed)
    code = "import sys, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='auto')"
    status, text = ends_with(venv, code, packed)
    assert status == 1 and "SafetensorError: " in text, text
    assert "incomplete metadata, file not fully covered" in text and "codecllm: " not in text, text
    code = "import sys; from safetensors.torch import load_file; load_file(sys.argv[1])"
    status, text = ends_with(venv, code, packed / "model.safetensors")
    assert status == 1 and "incomplete metadata, file not fully covered" in text and "codecllm: " not in text, text
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((ROOT / "tests/models/bard/model.safetensors").read_bytes()[:-1])
    status, text = ends_with(venv, code, damaged)
    assert status == 1 and "SafetensorError: " in text
    assert not any(line.startswith("codecllm: ") for line in text.splitlines()), text


def test_other_reports_are_as_they_were(venv):
    for code in ("raise ValueError(3)", "raise SystemExit('over')", "raise KeyboardInterrupt", "1 +"):
        with_line, without = (
            subprocess.run(
                [str(venv.python), *more, "-c", code], env=clean_environment(), capture_output=True, text=True
            )
            for more in ((), ("-S",))
        )
        assert (with_line.returncode, with_line.stderr) == (without.returncode, without.stderr), code


def test_script_starts_again_with_the_library(venv, script):
    seen = venv.probe(script, "one", "two words", "", CODEC_VRAM_BUDGET="64M")
    assert seen["loaded"]
    assert seen["argv"] == [str(script), "one", "two words", ""]
    assert seen["guard"] is None, "children must not inherit it"
    assert Path(seen["preload"]).samefile(venv.site / "codecllm" / "libcodecshim.so")
    assert Path(seen["prefix"]).samefile(venv.path), "still the virtual environment"


def test_every_way_to_start_python(venv, script):
    budget = {"CODEC_VRAM_BUDGET": "64M"}
    seen = venv.probe("-c", PROBE, "x", **budget)
    assert seen["loaded"] and seen["argv"] == ["-c", "x"]
    seen = venv.probe("-X", "dev", "-W", "ignore", script, **budget)
    assert seen["loaded"] and seen["dev"]
    seen = venv.probe("-I", script, **budget)
    assert seen["loaded"] and "-I" in (seen["orig"] or ["-I"])
    done = run(venv.python, "-m", "probe", "y", env=clean_environment(**budget), cwd=script.parent)
    seen = json.loads(done.stdout)
    assert seen["loaded"] and seen["argv"][1:] == ["y"] and seen["name"] == "__main__"
    done = run(venv.python, env=clean_environment(**budget), input=PROBE)
    assert json.loads(done.stdout)["loaded"], "a program on stdin must not be eaten by the first start"
    done = run(venv.python, "-", "z", env=clean_environment(**budget), input=PROBE)
    assert json.loads(done.stdout)["argv"] == ["-", "z"]
    program = script.parent / "program"
    program.write_text(f"#!{venv.python}\n{PROBE}")
    program.chmod(0o755)
    assert json.loads(run(program, "w", env=clean_environment(**budget)).stdout)["loaded"]


def test_an_earlier_preload_is_kept(venv, script):
    seen = venv.probe(script, CODEC_VRAM_BUDGET="64M", LD_PRELOAD="libm.so.6")
    assert seen["loaded"] and seen["preload"].endswith(":libm.so.6")


def test_children_have_the_library_and_start_once(venv, script):
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(script)!r}], check=True)"
    seen = venv.probe("-c", code, CODEC_VRAM_BUDGET="64M")
    assert seen["loaded"]
    code = (
        "import subprocess, sys, os\n"
        "env = {k: v for k, v in os.environ.items() if k != 'LD_PRELOAD'}\n"
        f"subprocess.run([sys.executable, {str(script)!r}], check=True, env=env)"
    )
    assert venv.probe("-c", code, CODEC_VRAM_BUDGET="64M")["loaded"]


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_multiprocessing(venv, tmp_path, method):
    path = tmp_path / "multi.py"
    path.write_text(
        "import json, multiprocessing as mp\n"
        "def work(q):\n"
        "    q.put('libcodecshim.so' in open('/proc/self/maps').read())\n"
        "if __name__ == '__main__':\n"
        f"    context = mp.get_context({method!r})\n"
        "    q = context.Queue()\n"
        "    p = context.Process(target=work, args=(q,))\n"
        "    p.start(); print(json.dumps(q.get())); p.join()\n"
    )
    assert venv.probe(path, CODEC_VRAM_BUDGET="64M") is True


def test_pytest_under_the_library(venv, tmp_path):
    (tmp_path / "test_x.py").write_text(
        "def test_loaded():\n    assert 'libcodecshim.so' in open('/proc/self/maps').read()\n"
    )
    done = run(
        venv.python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        tmp_path,
        env=clean_environment(CODEC_VRAM_BUDGET="64M"),
    )
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("value", ["lots", "2Q", "0", "0%", "101%", "-1", "1:", "2G,4G", "0:2G,1:x", " 2G"])
def test_a_bad_budget_ends_the_program_with_one_line(venv, value):
    done = run(venv.python, "-c", "print('ran')", env=clean_environment(CODEC_VRAM_BUDGET=value), check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith(f"codecllm: CODEC_VRAM_BUDGET={value}: not understood") and done.stderr.count("\n") == 1
    )


def test_budgets_are_asked_of_the_library(venv):
    """tests/store/test_options.c has all forms; here, that the package hands over each text as it is and takes the
    answer."""
    good = [
        "2G",
        "1048576",
        "1.5G",
        ".5G",
        "2Gi",
        "512B",
        "100%",
        "0:2G",
        "0:2G,1:50%",
        "0:2G,1:0",
        "00050%",
        "16777215T",
    ]
    bad = ["", "2Q", "1.5", "0.0G", "%", "0:2G,", ":2G", "2 G", "+2G", "16777216T", "0x10", "2G\n", "\udcff", "\u0662G"]
    code = (
        "import os, json; os.environ.pop('CODEC_VRAM_BUDGET', None); from codecllm import _boot\n"
        "print(json.dumps([_boot._refusal(b) for b in json.loads(input())]))"
    )
    answers = json.loads(run(venv.python, "-c", code, input=json.dumps(good + bad)).stdout)
    assert answers[: len(good)] == [""] * len(good)
    for budget, line in zip(bad, answers[len(good) :]):
        assert line.startswith(f"CODEC_VRAM_BUDGET={budget}: not understood; use "), (budget, line)


def test_a_bad_budget_is_refused_where_the_library_cannot_be_asked(venv, tmp_path):
    """By the library that pages, when a packed file is opened."""
    shutil.copytree(venv.site / "codecllm", tmp_path / "codecllm")
    (tmp_path / "codecllm" / "libcws.so").unlink()
    packed = tmp_path / "bard.packed"
    run(venv.command, "pack", "-q", ROOT / "tests/models/bard", packed)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import codecllm._boot; open(sys.argv[1], 'rb')"
    env = clean_environment(CODEC_VRAM_BUDGET="lots")
    done = run(venv.python, "-S", "-c", code, packed / "model.safetensors", env=env, check=False)
    assert done.returncode == 1 and "Invalid argument" in done.stderr
    assert "CODEC_VRAM_BUDGET=lots: not understood" in done.stderr


def test_a_missing_library_is_said_and_the_program_runs(venv, tmp_path):
    shutil.copytree(venv.site / "codecllm", tmp_path / "codecllm")
    (tmp_path / "codecllm" / "libcodecshim.so").unlink()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import codecllm._boot; print('ran')"
    done = run(venv.python, "-S", "-c", code, env=clean_environment(CODEC_VRAM_BUDGET="64M"))
    assert done.stdout == "ran\n"
    assert "paging is OFF" in done.stderr and "is missing" in done.stderr and done.stderr.count("\n") == 1


def test_a_library_that_does_not_load_is_said_once(venv, tmp_path):
    shutil.copytree(venv.site / "codecllm", tmp_path / "codecllm")
    (tmp_path / "codecllm" / "libcodecshim.so").write_bytes(b"not a library")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import codecllm._boot; print('ran')"
    done = run(venv.python, "-S", "-c", code, env=clean_environment(CODEC_VRAM_BUDGET="64M"))
    assert done.stdout == "ran\n"
    assert done.stderr.count("paging is OFF") == 1, "no loop of starts"


def test_a_path_with_a_space(venv, tmp_path):
    """LD_PRELOAD cannot hold one: the library is found through LD_LIBRARY_PATH, which keeps what it had."""
    shutil.copytree(venv.site / "codecllm", tmp_path / "with space" / "codecllm")
    path = f"import sys; sys.path.insert(0, {str(tmp_path / 'with space')!r}); import codecllm._boot; "
    code = (
        path + "import json, os; print(json.dumps([os.environ['LD_LIBRARY_PATH'], 'libcodecshim.so' in "
        "open('/proc/self/maps').read()]))"
    )
    directories, loaded = venv.probe("-S", "-c", code, CODEC_VRAM_BUDGET="64M", LD_LIBRARY_PATH="/nowhere")
    assert loaded and directories == f"{tmp_path / 'with space' / 'codecllm'}:/nowhere"


def test_an_embedded_interpreter_is_not_started_again(venv):
    """A process whose program is not the interpreter that Python believes in: like an application with Python
    inside."""
    code = "import sys; sys.executable = '/bin/sh'; import codecllm._boot; print('ran')"
    env = clean_environment(CODEC_VRAM_BUDGET="64M", PYTHONPATH=str(venv.site))
    done = run(venv.python, "-S", "-c", code, env=env)
    assert done.stdout == "ran\n" and "embedded" in done.stderr


def test_classes_work_where_the_package_is_installed(venv):
    pytest.importorskip("torch")
    code = (
        "import torch, codecllm\nt = torch.randn(64, 64)\nc = codecllm.CompressedTensor.compress(t)\n"
        "print(torch.equal(c.decompress(), t), codecllm._library.library_path(), sep='\\n')"
    )
    equal, path = run(venv.python, "-c", code).stdout.splitlines()
    assert equal == "True" and Path(path).samefile(venv.site / "codecllm" / "libcws.so")


def test_stats_need_the_library(venv):
    done = run(venv.python, "-c", "import codecllm\ntry: codecllm.stats()\nexcept codecllm.Error as why: print(why)")
    assert "not loaded" in done.stdout


def test_stats_under_the_library(venv, packed_bard):
    code = (
        "import sys, json, codecllm\nfrom safetensors import safe_open\n"
        "with safe_open(sys.argv[1], 'pt') as f: total = sum(float(f.get_tensor(k).double().sum()) for k in f.keys())\n"
        "print(json.dumps(codecllm.stats()))"
    )
    pytest.importorskip("torch")
    seen = venv.probe("-c", code, packed_bard / "model.safetensors", CODEC_VRAM_BUDGET="4M")
    assert seen["faults"] > 0 and seen["decoded_bytes"] > 9 << 20 and seen["evictions"] > 0
    assert seen["budget_bytes"] == 4 << 20 and seen["peak_bytes"] > 0 and seen["written_bytes"] == 0
    assert {"resident_bytes", "reads", "read_bytes"} <= seen.keys()
    keys = "from codecllm import counters; print(*counters.Stats.__annotations__)"
    assert set(run(venv.python, "-c", keys).stdout.split()) == seen.keys()


def test_an_unmodified_program_needs_only_the_variable(venv, bard, packed_bard):
    """The promise of the README: CODEC_VRAM_BUDGET=4M python infer.py."""
    pytest.importorskip("transformers")
    arguments = [
        ROOT / "tools" / "examples" / "infer.py",
        "--prompt",
        "JULIET:",
        "--max-new-tokens",
        "16",
        "--device",
        "cpu",
        "--model",
    ]
    plain = run(venv.python, *arguments, bard)
    packed = run(venv.python, *arguments, packed_bard, env=clean_environment(CODEC_VRAM_BUDGET="4M", CODEC_STATS="1"))
    assert packed.stdout == plain.stdout
    assert "faults" in packed.stderr


def test_uninstall_leaves_nothing(venv, tmp_path):
    """Runs last in this file."""
    files = [venv.command, venv.site / "codecllm.pth", venv.site / "codecllm"]
    assert all(f.exists() for f in files)
    for cache in (venv.site / "codecllm").rglob("__pycache__"):
        shutil.rmtree(cache)
    subprocess.run([venv.python, "-m", "pip", "uninstall", "-q", "-y", "codecllm"], check=True, env=clean_environment())
    assert not any(f.exists() for f in files)
