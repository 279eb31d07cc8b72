"""The peers' packages, in a virtual environment of their own that uses torch and transformers of the one that runs."""

import os
import subprocess
import sys
import venv

DIFFUSERS, ACCELERATE = "diffusers==0.42.1", "accelerate>=1"
PACKAGES = {  # of each peer; without them it is a row that says so
    "blocks": [DIFFUSERS],
    "leaves": [DIFFUSERS],
    "aimdo": ["comfy-aimdo==0.6.0"],
    "dfloat11": ["dfloat11==0.5.0", "setuptools<81"],  # it asks setuptools' pkg_resources, which newer ones lack
    "accelerate": [ACCELERATE],
}
PLACES = ("site-packages", "dist-packages")  # folders of packages on Python's path


def cupy():
    """What DFloat11 launches its kernel with, for the CUDA of this torch; it names no such need itself."""
    import torch

    return [f"cupy-cuda{torch.version.cuda.split('.')[0]}x"] if torch.version.cuda else []


def make(directory):
    """The interpreter of the environment, made if it is not there. Packages of this interpreter are seen by it, after
    its own; where this one is itself a virtual environment's, system_site_packages alone does not do that."""
    python = os.path.join(directory, "bin", "python")
    if not os.path.exists(python):
        venv.EnvBuilder(system_site_packages=True, symlinks=True).create(directory)
        query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        with open(os.path.join(own, "beside.pth"), "w") as file:
            file.writelines(f"{path}\n" for path in sys.path if os.path.basename(path) in PLACES)
    return python


def install(python, specifications, wheels, log):
    """With pip, from the folder `wheels` alone if there is one. None, or why it failed, in a line."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
    command += ["--no-index", "--find-links", wheels] if wheels else []
    done = subprocess.run(command + specifications, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(" ".join(specifications), done.stdout, sep="\n", file=log, flush=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("ERROR") or "No module" in line]
    return None if done.returncode == 0 else (said or [f"pip ended with {done.returncode}"])[-1]


def prepare(arguments, peers, needs_diffusers):
    """(the interpreter for all contenders, why a peer could not be installed by its name). Each peer alone, so that
    one which cannot be had keeps no other away."""
    if not arguments.install:
        return sys.executable, {}
    python = make(os.path.join(arguments.work, "venv"))
    missing = {}
    with open(os.path.join(arguments.out, "install.log"), "w") as log:
        if needs_diffusers:
            missing["diffusers"] = install(python, [DIFFUSERS], arguments.wheels, log)
        for peer in peers:
            more = cupy() if peer == "dfloat11" else []
            missing[peer] = install(python, PACKAGES[peer] + more, arguments.wheels, log)
    return python, {peer: why for peer, why in missing.items() if why}
