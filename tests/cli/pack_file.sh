. "$HERE/safetensors.inc"
codecllm pack "$BARD/model.safetensors" packed
codecllm pack --quiet --jobs 1 "$BARD/model.safetensors" again
cmp packed again && echo the same from one thread as from many
codecllm unpack packed plain
cmp "$BARD/model.safetensors" plain && echo the same after unpack
codecllm unpack -q --jobs 1 packed plain.2
cmp plain plain.2
# an earlier output is replaced as a whole
codecllm pack --quiet --mode q8 "$BARD/model.safetensors" packed
codecllm unpack packed lossy
wc -c <lossy
cmp -s plain lossy || echo q8 is not the same bits
codecllm pack --quiet --mode q8 --exclude 'model.*' "$BARD/model.safetensors" raw
codecllm inspect raw | grep -E '^(raw|split|zstd|q8) '
ls -A
