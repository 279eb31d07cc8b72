#!/bin/sh
# run.sh - sets up and runs every test that needs no GPU: release, ASan+UBSan and TSan runs of the C tests, clang and
# clang-tidy builds, the fuzz targets, and the Python tests. Stops at the first stage that fails.
#
#   tests/run.sh [STAGE ...]      stages: release asan tsan clang tidy fuzz python (default: all, in this order)
#   FUZZ_SECONDS=60               time for each fuzz target
set -eu
cd "$(dirname "$0")/.."
root=$PWD
tools/setup.sh --tests
jobs=$(nproc)
say() { printf '\n== %s\n' "$*"; }

build() { # build NAME CMAKE-ARGUMENTS...
    name=$1
    shift
    cmake -S . -B "build-ci-$name" -G Ninja "$@" >"build-ci-$name.log" 2>&1 || { cat "build-ci-$name.log"; exit 1; }
    cmake --build "build-ci-$name" -j "$jobs" >"build-ci-$name.log" 2>&1 || { tail -n 60 "build-ci-$name.log"; exit 1; }
}
ctests() { # ctests NAME [COMMAND that runs it]
    name=$1
    shift
    "$@" ctest --test-dir "build-ci-$name" --output-on-failure -j "$jobs" --no-tests=error
}

stage_release() { build release -DCMAKE_BUILD_TYPE=Release; ctests release; }
stage_asan() { build asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCWS_SANITIZE=address; ctests asan; }
stage_tsan() {
    build tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCWS_SANITIZE=thread
    # The runtimes of gcc 13 and clang 17 and before do not start where addresses are as random as Ubuntu's kernels make them.
    if setarch -R true 2>/dev/null; then ctests tsan setarch -R; else ctests tsan; fi
}
stage_clang() { build clang -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug; }
stage_tidy() {
    [ -f build-ci-clang/compile_commands.json ] || stage_clang
    git ls-files 'store/*.c' 'uvm/*.c' 'shim/*.c' 'tools/*.c' |
        xargs -P "$jobs" -n 4 clang-tidy -p build-ci-clang --quiet --warnings-as-errors='*' 2>/dev/null
    echo "clang-tidy: clean"
}
stage_fuzz() {
    build fuzz -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCWS_SANITIZE=address -DCWS_FUZZ=ON -DCWS_TESTS=OFF
    for target in build-ci-fuzz/bin/fuzz_*; do
        mkdir -p "build-ci-fuzz/corpus-$(basename "$target")"
    done
    ls build-ci-fuzz/bin/fuzz_* | xargs -P "$jobs" -I{} sh -c '
        name=$(basename {})
        {} -max_total_time=${FUZZ_SECONDS:-60} -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix=build-ci-fuzz/$name- build-ci-fuzz/corpus-$name >build-ci-fuzz/$name.log 2>&1 ||
            { echo "$name FAILED"; tail -n 40 build-ci-fuzz/$name.log; exit 255; }
        echo "$name: $(grep -o "stat::number_of_executed_units: *[0-9]*" build-ci-fuzz/$name.log)"'
}
stage_python() {
    [ -d build-ci-release ] || build release -DCMAKE_BUILD_TYPE=Release
    # A process whose pager hangs blocks all signals but SIGKILL.
    CWS_BUILD_DIR=$root/build-ci-release timeout -s KILL 1500 .venv/bin/python -m pytest -q tests/python tests/lowmem
}

[ $# -gt 0 ] || set -- release asan tsan clang tidy fuzz python
for stage in "$@"; do
    say "$stage"
    start=$(date +%s)
    "stage_$stage"
    echo "== $stage passed in $(($(date +%s) - start)) s"
done
