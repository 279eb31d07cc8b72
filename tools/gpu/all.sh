#!/bin/sh
# Everything on a machine with a GPU, in one call: all.sh OUTDIR [BUILD]. First what must be right, side by side, then what is timed, alone; a short table last.
#   BUILD       default: build, made here if it is not there
#   PART=both   right: only the first part; timed: only the second
#   STRESS=120  seconds of random programs (stress), beside everything else of the first part; with 0 none
#   LARGE=1     0 leaves out rounds.py, patterns.py, pipeline.py and the models of Llama-3.1-8B's and FLUX.1-dev's shapes (35, then 50 GB in WORK, and about ten minutes)
#   WORK        where models are made; default: /tmp/codecllm-check
out=${1:?usage: all.sh OUTDIR [BUILD]}
build=${2:-build}
work=${WORK:-/tmp/codecllm-check}
part=${PART:-both}
large=${LARGE:-1}
stress=${STRESS:-120}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out" "$work"
out=$(cd "$out" && pwd)
cd "$here" || exit 2
build=$(mkdir -p "$build" && cd "$build" && pwd)
if [ ! -e "$build/lib/libcodecshim.so" ]; then
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCWS_TESTS=OFF >"$out/build.txt" 2>&1 &&
        cmake --build "$build" >>"$out/build.txt" 2>&1 || { tail -n 20 "$out/build.txt"; exit 2; }
fi

: >"$out/steps.txt"
step() { # step NAME SECONDS COMMAND...: its output goes to OUTDIR/NAME.txt, a line for it to steps.txt
    name=$1 limit=$2
    shift 2
    begin=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    status=$?
    case $status in
    0) verdict="all right" ;;
    77) verdict="left out: $(tail -n 1 "$out/$name.txt")" ;;
    *) verdict="FAILED, exit status $status" ;;
    esac
    printf '%-10s %5d s  %s\n' "$name" $(($(date +%s) - begin)) "$verdict" >>"$out/steps.txt"
}
model() { # model SHAPE: made and packed, as the programs below would
    [ -d "$work/$1" ] || python3 tools/examples/make_model.py --shape "$1" "$work/$1" >/dev/null || return 1
    [ -d "$work/$1.packed" ] || "$build/bin/codecllm" pack "$work/$1" "$work/$1.packed" 2>/dev/null
}

lossy() { # lossy MODEL MODE: packed so, and unpacked again for the plain programs
    [ -d "$work/$1.$2.packed" ] || "$build/bin/codecllm" pack --quiet --mode "$2" "$work/$1" "$work/$1.$2.packed" || return 1
    [ -d "$work/$1.$2.unpacked" ] || "$build/bin/codecllm" unpack --quiet "$work/$1.$2.packed" "$work/$1.$2.unpacked"
}
models() { # before the steps that run side by side would make them
    for shape in tiny llama-90m tinyllama-1.1b; do
        model $shape || return 1
        [ "$part" = timed ] || { lossy $shape q8 && lossy $shape q6; } || return 1
    done
    [ "$part" != timed ] || return 0
    [ -e "$work/bard" ] || ln -s "$here/tests/models/bard" "$work/bard" && lossy bard q8
}
models || { echo "all.sh: cannot make the models in $work"; exit 2; }

[ "$large" = 0 ] || model llama-3.1-8b &
if [ "$part" != timed ]; then
    TIME=0 step decoders 300 tools/gpu/decode.sh "$out/decode" "$build" &
    step scenarios 480 python3 tools/gpu/scenarios.py "$out/scenarios" --build "$build" --work "$work" --modes lossless,q8,q6 &
    [ "$stress" = 0 ] || step stress $((stress + 120)) python3 tools/gpu/scenarios.py "$out/stress" --build "$build" --work "$work" --modes lossless,q8,q6 --stress "$stress" &
    step strict 300 python3 tools/gpu/check.py "$out/strict" --build "$build" --work "$work" --models bard,tinyllama --budgets 1100M --tokens 16 --strict &
    step strict-q8 300 python3 tools/gpu/check.py "$out/strict-q8" --build "$build" --work "$work" --models bard,tinyllama --modes q8 --budgets 1100M --tokens 8 --strict &
    wait
    rm -rf "$work"/*.q[68].packed "$work"/*.q[68].unpacked
    WORK=$work step installed 120 tools/gpu/installed.sh "$out/installed" "$build"
fi
wait
if [ "$part" != right ]; then
    step waits 60 "$build/bin/bench_wait"
    CHECK=0 SANITIZE=0 NVRTC=0 step speed 120 tools/gpu/decode.sh "$out/speed" "$build"
    step turns 240 python3 tools/gpu/turns.py "$out/turns" --build "$build" --work "$work"
    step prefill 120 python3 tools/gpu/turns.py "$out/prefill" --build "$build" --work "$work" --budgets 16G --turns 0 --prefills 8 --attention ''
    step tinyllama 400 python3 tools/gpu/check.py "$out/tinyllama" --build "$build" --work "$work" --models tinyllama --budgets 1700M,1100M,600M,280M --tokens 64 --offload
    step adapters 900 python3 tools/gpu/adapters.py "$out/adapters" --build "$build" --work "$work"
    step kvcache 900 python3 tools/gpu/kvcache.py "$out/kvcache" --build "$build" --work "$work"
    step tenants 500 python3 tools/gpu/tenants.py "$out/tenants" --build "$build" --work "$work"
    [ "$large" = 0 ] || step pipeline 300 python3 tools/gpu/pipeline.py "$out/pipeline" --build "$build" --work "$work"
    [ "$large" = 0 ] || step 8b 400 python3 tools/gpu/check.py "$out/8b" --build "$build" --work "$work" --models 8b --budgets 4G,3G --tokens 12 --unpacked --offload
    [ "$large" = 0 ] || step disk 600 python3 tools/gpu/disk.py "$out/disk" --build "$build" --work "$work"
    if [ "$large" != 0 ]; then # 40 GB, not beside the 35 of the models before
        rm -rf "$work/llama-3.1-8b" "$work/llama-3.1-8b.packed" "$work/pipeline-large" "$work/pipeline-large.packed"
        step denoise 400 python3 tools/gpu/denoise.py "$out/denoise" --build "$build" --work "$work" --budgets 8G,6G
        step rounds 400 python3 tools/gpu/rounds.py "$out/rounds" --build "$build" --work "$work"
        rm -rf "$work"/rounds-* "$work"/flux-* # 40 GB of room, of which it takes 12
        step patterns 1200 python3 tools/gpu/patterns.py "$out/patterns" --build "$build" --work "$work"
    fi
fi

for name in decoders scenarios stress strict strict-q8 installed; do # what was wrong, if anything
    grep -q "^$name .*FAILED" "$out/steps.txt" && { echo "== $name"; tail -n 25 "$out/$name.txt"; }
done
for name in waits speed turns prefill tinyllama adapters kvcache tenants pipeline 8b disk denoise rounds; do
    [ -e "$out/$name.txt" ] && { echo "== $name"; tail -n 16 "$out/$name.txt"; }
done
[ -e "$out/patterns.txt" ] && { echo "== patterns"; tail -n 40 "$out/patterns.txt"; }
echo "== steps"
cat "$out/steps.txt"
! grep -q FAILED "$out/steps.txt"
