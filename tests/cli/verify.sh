. "$HERE/safetensors.inc"
codecllm pack -q "$BARD/model.safetensors" good
codecllm verify good 2>&1
codecllm verify --quiet good
size=$(wc -c <good)
damaged() { cp good "$1"; }
damaged chunk; poke chunk 3000000 000; poke chunk 3000001 377
damaged front; poke front 100 001
damaged index; poke index $((size - 200)) 252
damaged trailer; poke trailer $((size - 100)) 252
damaged cut; truncate -s -1000 cut
damaged grown; echo more >>grown
echo hello, this is not a store at all >other
for f in chunk front index trailer cut grown other; do
    status codecllm verify $f
done
status codecllm verify "$BARD/model.safetensors"
status codecllm verify missing
# goes on after a bad file, and the worst status counts
status codecllm verify --quiet chunk good missing
status codecllm verify --quiet chunk good
# directories
sharded model
codecllm pack -q model out
codecllm verify --quiet out
status codecllm verify model
rm out/model-00002-of-00002.safetensors
status codecllm verify out
cp model/model-00002-of-00002.safetensors out/
status codecllm verify out
truncate -s -10 out/model-00001-of-00002.safetensors
status codecllm verify out
status codecllm unpack out again
# the same files when they are unpacked
for f in chunk front index trailer cut grown other; do
    status codecllm unpack $f plain
done
ls -A
# each kind of unreadable store is told apart
for f in version.one feature.unknown-bit truncated.file-shorter-than-said verify.content-hash; do
    status codecllm verify "$HERE/../malformed/$f.cws"
    status codecllm inspect --tensor x "$HERE/../malformed/$f.cws"
done
