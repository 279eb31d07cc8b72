"""tools/gpu/pipeline.py, tried on the CPU with small sizes: a packed pipeline of diffusers makes the same images, and
images that differ are found."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, clean_environment, run

TOOL = ROOT / "tools" / "gpu" / "pipeline.py"
SMALL = "--device cpu --scale small --images 2 --steps 2 --shares 40".split()


@pytest.fixture(scope="module")
def arguments(build, tmp_path_factory):
    """The build, and where the pipeline is made."""
    work = tmp_path_factory.mktemp("work")
    return ["--build", build, "--work", work, *SMALL]


@pytest.fixture(scope="module")
def made(arguments, tmp_path_factory):
    """(the pipeline, where the outputs are, what the tool said)"""
    pytest.importorskip("diffusers")
    out = tmp_path_factory.mktemp("out")
    done = run(sys.executable, TOOL, out, *arguments)
    return arguments[3] / "pipeline-small", out, done


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def rows(done):
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[2:]}


def test_without_diffusers_it_says_so(tmp_path):
    (tmp_path / "diffusers.py").write_text("raise ImportError")
    done = run(sys.executable, TOOL, tmp_path / "out", env=clean_environment(PYTHONPATH=tmp_path), check=False)
    assert done.returncode == 77
    assert done.stdout == "pipeline.py: diffusers is not installed: pip install diffusers\n"


def test_a_packed_pipeline_makes_the_same_images(made, command, tmp_path):
    plain, out, done = made
    assert [row[3] for row in rows(done).values()] == ["same", "same"]
    assert "evictions" in (out / "40-percent.log").read_text()  # it was under the shim
    run(command, "verify", plain.with_suffix(".packed"))
    run(command, "unpack", plain.with_suffix(".packed"), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(plain)


def test_a_pipeline_of_the_hubs_cache_is_packed_like_a_directory(made, command, tmp_path):
    plain, entry = made[0], tmp_path / "models--org--pipeline"
    (entry / "blobs").mkdir(parents=True)
    for i, name in enumerate(contents(plain)):
        shutil.copy(plain / name, entry / "blobs" / str(i))
        link = entry / "snapshots" / "0123" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(entry).parts) - 1), "blobs", str(i)))
    run(command, "pack", entry, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(plain.with_suffix(".packed"))
    assert not any(path.is_symlink() for path in (tmp_path / "packed").rglob("*"))


def test_other_images_are_found(made, arguments, tmp_path):
    """Those of a plain pipeline that was changed after it was packed."""
    shard = max((made[0] / "transformer").glob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-2] + b"\x40\x41")  # 12.0, in a weight
    done = run(sys.executable, TOOL, tmp_path / "out", *arguments, check=False)
    shard.write_bytes(content)
    assert done.returncode == 1
    assert rows(done)["40-percent"][3:5] == ["2", "OTHERS"]
