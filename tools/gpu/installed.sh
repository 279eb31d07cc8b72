#!/bin/sh
# The package as its users have it, on a machine with a GPU: installed.sh OUTDIR [BUILD]. Plain, `CODEC_VRAM_BUDGET=SIZE python tools/examples/infer.py` with the package in a
# virtual environment, and `codecllm run` without it must write the same text. Nothing is set but what README names.
#   BUILD         default: build
#   BUDGET=1100M  of the model of TinyLlama's shape (MODEL: another one, with MODEL.packed beside it)
#   WORK          where that model and the environment are made; default: /tmp/codecllm-check
out=${1:?usage: installed.sh OUTDIR [BUILD]}
build=$(cd "${2:-build}" && pwd) || exit 2
work=${WORK:-/tmp/codecllm-check}
budget=${BUDGET:-1100M}
here=$(cd "$(dirname "$0")/../.." && pwd)
model=${MODEL:-$work/tinyllama-1.1b}
unset LD_PRELOAD PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF CODEC_VRAM_BUDGET
mkdir -p "$out" "$work"
[ -d "$model" ] || python3 "$here/tools/examples/make_model.py" --shape tinyllama-1.1b "$model" >/dev/null || exit 2
[ -d "$model.packed" ] || "$build/bin/codecllm" pack -q "$model" "$model.packed" || exit 2

# An environment that has this Python's packages and ours, laid out as pip does it.
site() { "$1" -c 'import site; print(site.getsitepackages()[0])'; }
rm -rf "$work/environment"
python3 -m venv --without-pip "$work/environment" || exit 2
python=$work/environment/bin/python
into=$(site "$python")
site python3 >"$into/packages_of_the_machine.pth"
cp -r "$here/shim/python/codecllm" "$here"/shim/python/*.pth "$into/"
cp "$build/lib/libcodecshim.so" "$build/lib/libcws.so" "$into/codecllm/"

failed=0
program() { # program NAME COMMAND...: infer.py under COMMAND; what it wrote is in OUTDIR/NAME.txt, what was said in OUTDIR/NAME.err
    name=$1
    shift
    "$@" "$here/tools/examples/infer.py" --prompt "ROMEO:" --max-new-tokens 32 --min-new-tokens 32 --attention eager --logits "$out/$name.logits" >"$out/$name.txt" 2>"$out/$name.err" --model "$weights"
    status=$?
    [ $status = 0 ] || { echo "$name: exit status $status"; tail -n 5 "$out/$name.err"; failed=1; }
    grep -h 'tokens/s' "$out/$name.err" | sed "s/^/$name: /"
}
weights=$model program plain python3
weights=$model.packed CODEC_STATS=1 CODEC_VRAM_BUDGET=$budget program installed "$python"
weights=$model.packed CODEC_STATS=1 program command "$build/bin/codecllm" run --budget "$budget" -- python3
for name in installed command; do
    cmp "$out/plain.logits" "$out/$name.logits" || failed=1
    cmp "$out/plain.txt" "$out/$name.txt" || failed=1
    grep -qE '(drops|evictions) +[1-9]' "$out/$name.err" || { echo "$name: nothing was paged"; failed=1; }
done
rm -f "$out"/*.logits
[ $failed = 0 ] && echo "installed.sh: the same logits and text in all three" || echo "installed.sh: FINDINGS, see above"
exit $failed
