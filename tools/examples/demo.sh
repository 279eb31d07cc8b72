#!/bin/sh
# demo.sh - from a fresh clone to text: sets up, packs the small model that comes with the repository, looks inside, and
# runs tools/examples/infer.py (plain transformers) from the packed files inside a 4 MiB budget. No GPU needed.
set -eu
cd "$(dirname "$0")/../.."
tools/setup.sh "$@"
venv=.venv
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
show() { printf '\n$ %s\n' "$*" >&2; "$@"; }
PATH=$PWD/$venv/bin:$PATH
show codecllm pack tests/models/bard "$out/bard.packed"
printf '\n$ codecllm inspect %s | tail -n 12\n' "$out/bard.packed" >&2
codecllm inspect "$out/bard.packed" | tail -n 12
show codecllm verify "$out/bard.packed"
printf '\n$ CODEC_VRAM_BUDGET=4M CODEC_STATS=1 python tools/examples/infer.py --model %s --prompt "ROMEO:" --max-new-tokens 60\n' "$out/bard.packed" >&2
CODEC_VRAM_BUDGET=4M CODEC_STATS=1 python tools/examples/infer.py --model "$out/bard.packed" --prompt "ROMEO:" --max-new-tokens 60
