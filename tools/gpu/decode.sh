#!/bin/sh
# The GPU decoders on a machine with a GPU: decode.sh OUTDIR [BUILD]. Correctness, compute-sanitizer, speed.
#   BUILD     where bench_decode was built (default: build); IMAGES="LABEL:FILE:WARPS ..." times other builds of the kernels too
#   CHECK=0 leaves out the comparison with the reference, SANITIZE=0 compute-sanitizer, TIME=0 the timing, NVRTC=0 the kernels as NVRTC compiles them, for this GPU and for the first that is supported
out=${1:?usage: decode.sh OUTDIR [BUILD]}
bench=${2:-build}/bin/bench_decode
failed=0
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/machine.txt"
told() { # told FILE COMMAND...: what the command prints, kept in FILE, too; its exit status
    file=$1
    shift
    "$@" >"$out/$file" 2>&1
    status=$?
    cat "$out/$file"
    return $status
}
[ "${CHECK:-1}" = 0 ] || told check.txt timeout 120 "$bench" check --rounds 40 || failed=1
if [ "${SANITIZE:-1}" = 1 ]; then
    for tool in memcheck racecheck initcheck; do
        timeout 150 compute-sanitizer --tool $tool --error-exitcode 9 "$bench" check --rounds 1 >"$out/$tool.txt" 2>&1
        echo "$tool: exit $?: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.txt" | tail -1)"
        grep -qE "(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)" "$out/$tool.txt" || failed=1
    done
fi
if [ "${NVRTC:-1}" = 1 ]; then
    told check-nvrtc.txt timeout 120 "$bench" check --rounds 10 --nvrtc 1 || failed=1
    told check-first.txt timeout 120 "$bench" check --rounds 10 --nvrtc 75 || failed=1 # what is done differently before 8.0
    [ "${TIME:-1}" = 0 ] || told time-nvrtc.txt timeout 120 "$bench" time --nvrtc 1 --label nvrtc || failed=1
fi
if [ "${TIME:-1}" = 1 ]; then
    told time.txt timeout 120 "$bench" time || failed=1
    for image in $IMAGES; do
        label=${image%%:*} rest=${image#*:}
        told "time-$label.txt" timeout 60 "$bench" time --label "$label" --image "${rest%%:*}" --warps "${rest##*:}" || failed=1
    done
fi
[ $failed = 0 ] && echo "decode.sh: all right" || echo "decode.sh: FINDINGS, see above"
exit $failed
