#!/bin/sh
# setup.sh - installs what building (and with --tests, testing) needs: Debian or Ubuntu packages when run as root,
# otherwise it says what is missing. Then makes a Python environment with torch, transformers and the package; the tests need no package, they
# build their own.
#
#   tools/setup.sh [--tests] [--venv DIR]     default DIR: .venv in the repository
#
# A torch that python3 already has is used as it is; otherwise torch 2.13.0 is installed.
set -eu
cd "$(dirname "$0")/.."
tests=0
venv=.venv
while [ $# -gt 0 ]; do
    case $1 in
    --tests) tests=1 ;;
    --venv) venv=${2:?--venv needs a directory}; shift ;;
    *) echo "setup.sh: unknown option $1; use [--tests] [--venv DIR]" >&2; exit 2 ;;
    esac
    shift
done

say() { printf 'setup: %s\n' "$*" >&2; }

packages="gcc g++ cmake ninja-build liburing-dev libzstd-dev libxxhash-dev libjansson-dev python3 python3-venv"
[ $tests = 0 ] || packages="$packages libcmocka-dev clang clang-tidy coreutils"
missing=
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
install() {
    if [ "$(id -u)" != 0 ]; then
        say "missing packages; as root: apt-get install$*"
        exit 2
    fi
    say "installing$*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $* >/dev/null
}
if [ -n "$missing" ]; then
    [ "$(id -u)" != 0 ] || apt-get update -qq
    install "$missing"
fi
if [ $tests = 1 ]; then # the sanitizer and fuzzer runtimes are a package of clang's own version
    major=$(clang -dumpversion | cut -d. -f1)
    dpkg-query -W -f='${Status}' "libclang-rt-$major-dev" 2>/dev/null | grep -q 'install ok installed' ||
        install " libclang-rt-$major-dev"
fi

if [ ! -x "$venv/bin/python" ]; then
    say "Python environment in $venv"
    if python3 -c 'import torch' 2>/dev/null; then
        python3 -m venv --system-site-packages "$venv"
    else
        python3 -m venv "$venv"
    fi
fi
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install -q "$@"; }
"$venv/bin/python" -c 'import torch' 2>/dev/null || { say "installing torch"; pip torch==2.13.0; }
say "installing transformers"
pip numpy 'transformers>=5,<6' 'safetensors>=0.8' scikit-build-core
[ $tests = 0 ] || pip 'pytest>=8' 'pytest-xdist>=3' accelerate 'peft>=0.21' xxhash zstandard matplotlib 'ruff==0.17.*' clang-format==14.0.6
[ $tests = 0 ] || pip nvidia-cuda-nvrtc-cu12==12.4.127 || say "no NVRTC here: whether the GPU's kernels compile is not tested"
if [ $tests = 1 ]; then
    say "done: $venv/bin/python"
    exit 0
fi
say "building codecllm"
pip --no-build-isolation .
say "done: $venv/bin/codecllm"
