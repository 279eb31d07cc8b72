#!/bin/sh
# run.sh - sets up and runs every test that needs no GPU. Stops at the first stage that fails.
#
#   tests/run.sh             everything; the aim is 20 minutes on two idle cores
#   tests/run.sh quick       release build, the tests that take seconds, one run of the small model; the aim is 4 minutes
#   tests/run.sh STAGE ...   style release asan tsan clang tidy fuzz python
#
#   SETUP=0                  what tools/setup.sh --tests installs is there already
#   FUZZ_SECONDS=15          time for each fuzz target
#   TIDY_NODES=60000         how far clang-tidy follows the paths of a function; 225000 is its own limit and takes three times as long
#
# A stage fails by what it finds, never by how long it takes: limits are for hangs, beside other work it passes later.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
[ $# -gt 0 ] || set -- style release asan tsan clang tidy fuzz python
for stage in "$@"; do
    case $stage in
    quick | style | release | asan | tsan | clang | tidy | fuzz | python) ;;
    *) echo "run.sh: unknown stage $stage; use quick, style, release, asan, tsan, clang, tidy, fuzz or python" >&2; exit 2 ;;
    esac
done
[ "${SETUP:-1}" = 0 ] || tools/setup.sh --tests
jobs=$(nproc)
say() { printf '\n== %s\n' "$*"; }

build() { # build NAME CMAKE-ARGUMENTS...
    name=$1
    shift
    cmake -S . -B "build-ci-$name" -G Ninja "$@" >"build-ci-$name.log" 2>&1 || { cat "build-ci-$name.log"; exit 1; }
    cmake --build "build-ci-$name" -j "$jobs" >"build-ci-$name.log" 2>&1 || { tail -n 60 "build-ci-$name.log"; exit 1; }
}
few="-DCWS_GPU_ARCHES=90" # one image of the GPU kernels is enough for builds that no GPU sees: nvcc takes 8 s of a core for it, 46 s for all
# Warnings are for the release and clang builds; with -O1 gcc has false ones, and a sanitized program is built in two thirds of the time.
build_sanitized() { # build_sanitized NAME SANITIZER
    build "$1" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_FLAGS_RELWITHDEBINFO='-O1 -g1' -DCWS_WERROR=OFF -DCWS_SANITIZE="$2" $few
}
ctests() { # ctests NAME [ARGUMENTS of ctest]: two tests more than cores, because many wait for a while
    name=$1
    shift
    ${fixed:-} ctest --test-dir "build-ci-$name" --output-on-failure -j $((jobs + 2)) --no-tests=error "$@"
}
pytests() { # pytests [ARGUMENTS of pytest]. A process whose pager hangs blocks all signals but SIGKILL.
    CWS_BUILD_DIR=$root/build-ci-release timeout -s KILL 7200 .venv/bin/python -m pytest -q -n "$jobs" --dist loadfile "$@"
}

stage_style() {
    .venv/bin/python -m ruff check --no-cache .
    .venv/bin/python -m ruff format --no-cache --check .
    git ls-files '*.[ch]' '*.cu' '*.cuh' | xargs .venv/bin/clang-format --dry-run -Werror
}
stage_release() { build release -DCMAKE_BUILD_TYPE=Release; ctests release; }
stage_asan() { build_sanitized asan address; ctests asan; }
stage_tsan() {
    build_sanitized tsan thread
    # The runtimes of gcc 13 and clang 17 and before do not start where addresses are as random as Ubuntu's kernels make them.
    fixed=
    ! setarch -R true 2>/dev/null || fixed="setarch -R"
    ctests tsan
    fixed=
}
stage_clang() { build clang -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug $few; }
stage_tidy() {
    [ -f build-ci-clang/compile_commands.json ] || stage_clang
    git ls-files 'store/*.c' 'uvm/*.c' 'shim/*.c' 'tools/*.c' |
        xargs -P "$jobs" -n 4 clang-tidy -p build-ci-clang --quiet --warnings-as-errors='*' --extra-arg=-Xclang --extra-arg=-analyzer-config \
            --extra-arg=-Xclang --extra-arg=max-nodes="${TIDY_NODES:-60000}" 2>/dev/null
    echo "clang-tidy: clean"
}
stage_fuzz() {
    build fuzz -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCWS_SANITIZE=address -DCWS_FUZZ=ON -DCWS_TESTS=OFF $few
    for target in build-ci-fuzz/bin/fuzz_*; do
        mkdir -p "build-ci-fuzz/corpus-$(basename "$target")"
    done
    ls build-ci-fuzz/bin/fuzz_* | xargs -P "$jobs" -I{} sh -c '
        name=$(basename {})
        {} -max_total_time=${FUZZ_SECONDS:-15} -timeout=100 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix=build-ci-fuzz/$name- build-ci-fuzz/corpus-$name >build-ci-fuzz/$name.log 2>&1 ||
            { echo "$name FAILED"; tail -n 40 build-ci-fuzz/$name.log; exit 255; }
        echo "$name: $(grep -o "stat::number_of_executed_units: *[0-9]*" build-ci-fuzz/$name.log)"'
}
stage_python() {
    [ -d build-ci-release ] || build release -DCMAKE_BUILD_TYPE=Release
    pytests tests/python tests/lowmem
}
stage_quick() {
    stage_style
    build release -DCMAKE_BUILD_TYPE=Release
    ctests release -LE long
    pytests tests/python/test_infer.py -k 'fair_reference or 50 or refused'
}

for stage in "$@"; do
    say "$stage"
    start=$(date +%s)
    "stage_$stage"
    echo "== $stage passed in $(($(date +%s) - start)) s"
done
