#!/bin/sh
# The Python face on a machine with a GPU: lowmem.sh OUTDIR [BUILD]. The classes' tests, the two low-memory programs on the GPU, with the small model
# and one of TinyLlama's shape (random weights), as their users run them.
#   BUILD     default: build, made here if it is not there; BUDGET=1.2G for the large model (default: the program's own, with which the peak has
#             to be half of the plain one and a token at most five times as long); LARGE=0 leaves it out
out=${1:?usage: lowmem.sh OUTDIR [BUILD]}
build=${2:-build}
cd "$(dirname "$0")/../.." || exit 2
failed=0
mkdir -p "$out"
if [ ! -e "$build/lib/libcws.so" ]; then
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCWS_TESTS=OFF >"$out/build.txt" 2>&1 &&
        cmake --build "$build" >>"$out/build.txt" 2>&1 || { tail -n 20 "$out/build.txt"; exit 2; }
fi
export CWS_BUILD_DIR="$PWD/$build" HF_HUB_OFFLINE=1
step() { # step NAME COMMAND...
    name=$1
    shift
    echo "== $name"
    "$@" >"$out/$name.txt" 2>&1 || { failed=1; echo "FAILED"; }
    tail -n 30 "$out/$name.txt"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/machine.txt"
step classes timeout 300 python3 -m pytest -q tests/python/test_classes.py
step simple timeout 120 python3 tests/lowmem/test_lowmem_simple.py
step small timeout 200 python3 tests/lowmem/test_inference_lowmem.py --model tests/models/bard --budget 256M
if [ "${LARGE:-1}" = 1 ]; then
    model=$(mktemp -d)/tinyllama
    python3 tools/examples/make_model.py --shape tinyllama-1.1b "$model"
    step large timeout 300 python3 tests/lowmem/test_inference_lowmem.py --model "$model" ${BUDGET:+--budget "$BUDGET"} --tokens 64 \
        --least-reduction 2 --most-slowdown 5
    rm -rf "$(dirname "$model")"
fi
[ $failed = 0 ] && echo "lowmem.sh: all right" || echo "lowmem.sh: FINDINGS, see above"
exit $failed
