. "$HERE/safetensors.inc"
sharded model
codecllm pack --dtype bf16 model out
cat out/config.json
head -n 2 out/model.safetensors.index.json
codecllm inspect out/model-00002-of-00002.safetensors | head -n 7
codecllm unpack -q out plain
codecllm pack -q --dtype f32 "$BARD" wide
grep '"dtype"' wide/config.json
diff "$BARD/config.json" wide/config.json
codecllm inspect wide | head -n 5
