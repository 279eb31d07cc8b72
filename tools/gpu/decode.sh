#!/bin/sh
# The GPU decoders on a machine with a GPU: decode.sh OUTDIR [BUILD]. Correctness, compute-sanitizer, speed.
#   BUILD     where bench_decode was built (default: build); IMAGES="LABEL:FILE:WARPS ..." times other builds of the kernels too
#   SANITIZE=0 leaves compute-sanitizer out; TIME=0 the timing; NVRTC=0 the kernels as NVRTC compiles them
out=${1:?usage: decode.sh OUTDIR [BUILD]}
bench=${2:-build}/bin/bench_decode
failed=0
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/machine.txt"
timeout 120 "$bench" check --rounds 40 2>&1 | tee "$out/check.txt"
grep -q "corrupt chunks.*: 0 findings" "$out/check.txt" || failed=1
if [ "${SANITIZE:-1}" = 1 ]; then
    for tool in memcheck racecheck initcheck; do
        timeout 150 compute-sanitizer --tool $tool --error-exitcode 9 "$bench" check --rounds 1 >"$out/$tool.txt" 2>&1
        echo "$tool: exit $?: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.txt" | tail -1)"
        grep -qE "(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)" "$out/$tool.txt" || failed=1
    done
fi
if [ "${NVRTC:-1}" = 1 ]; then
    timeout 120 "$bench" check --rounds 10 --nvrtc 1 2>&1 | tee "$out/check-nvrtc.txt"
    grep -q "corrupt chunks.*: 0 findings" "$out/check-nvrtc.txt" || failed=1
    [ "${TIME:-1}" = 0 ] || timeout 120 "$bench" time --nvrtc 1 --label nvrtc 2>&1 | tee "$out/time-nvrtc.txt" || failed=1
fi
if [ "${TIME:-1}" = 1 ]; then
    timeout 120 "$bench" time 2>&1 | tee "$out/time.txt" || failed=1
    for image in $IMAGES; do
        label=${image%%:*} rest=${image#*:}
        timeout 60 "$bench" time --label "$label" --image "${rest%%:*}" --warps "${rest##*:}" 2>&1 | tee "$out/time-$label.txt"
    done
fi
[ $failed = 0 ] && echo "decode.sh: all right" || echo "decode.sh: FINDINGS, see above"
exit $failed
