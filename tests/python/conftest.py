"""What the Python tests share: the built command and library, the small model, and programs run in a clean environment.

CWS_BUILD_DIR names the build to test (default: build/ in the repository)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))

# torch's threads sleep while they wait for each other. Spinning takes half of the processor time of these tests where
# two of them run at once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HANG_SECONDS = 900  # a program that takes longer hangs: far more than any needs, also beside other work


def clean_environment(**more):
    """The environment without variables of ours and without a preloaded library."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CODEC_", "_CODECLLM")) and k != "LD_PRELOAD"}
    env.update(
        HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", PYTHONWARNINGS="ignore"
    )
    env.update({k: str(v) for k, v in more.items()})
    return env


def standin_environment(shim, build_dir, **more):
    """Of a program with the preloaded library on the stand-in for CUDA's driver."""
    standin = build_dir / "standin"
    return clean_environment(
        CODEC_VRAM_BUDGET="40M",
        CODEC_HOST_BUDGET="64M",
        LD_PRELOAD=shim,
        LD_LIBRARY_PATH=standin,
        XDG_CACHE_HOME=standin / "cache",
        **more,
    )


def run(*command, env=None, check=True, timeout=HANG_SECONDS, **options):
    """subprocess.run with captured text; a failure shows both streams."""
    done = subprocess.run(
        [str(c) for c in command],
        env=clean_environment() if env is None else env,
        text=True,
        capture_output=True,
        timeout=timeout,
        **options,
    )
    if check and done.returncode != 0:
        pytest.fail(f"{command}: exit status {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def build_dir():
    path = Path(os.environ.get("CWS_BUILD_DIR", ROOT / "build"))
    if not (path / "bin" / "codecllm").exists():
        pytest.fail(
            f"{path}: no build; run 'cmake --preset release && cmake --build --preset release' or set CWS_BUILD_DIR"
        )
    return path


@pytest.fixture(scope="session")
def build(build_dir, tmp_path_factory):
    """The build by a path without a space, which LD_PRELOAD cannot have: for tools that run programs."""
    link = tmp_path_factory.mktemp("build") / "build"
    link.symlink_to(build_dir)
    return link


@pytest.fixture(scope="session")
def command(build_dir):
    return build_dir / "bin" / "codecllm"


@pytest.fixture(scope="session")
def shim(build_dir, tmp_path_factory):
    """The library, by a path that LD_PRELOAD can hold."""
    link = tmp_path_factory.mktemp("shim") / "libcodecshim.so"
    link.symlink_to(build_dir / "lib" / "libcodecshim.so")
    return link


@pytest.fixture(scope="session")
def bard():
    """The small model as it was published."""
    return ROOT / "tests" / "models" / "bard"


@pytest.fixture(scope="session")
def packed_bard(command, bard, tmp_path_factory):
    """The small model, packed without loss."""
    out = tmp_path_factory.mktemp("packed") / "bard"
    run(command, "pack", "--quiet", bard, out)
    return out
