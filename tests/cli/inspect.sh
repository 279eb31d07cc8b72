. "$HERE/safetensors.inc"
sharded model
codecllm pack -q model out
codecllm inspect out
codecllm inspect out/model-00001-of-00002.safetensors
codecllm inspect --tensor a.weight out
codecllm inspect --tensor c.ids out
codecllm pack -q "$BARD/model.safetensors" bard
codecllm inspect --tensor model.layers.0.self_attn.k_proj.weight bard
LC_ALL=C.UTF-8 codecllm inspect --tensor model.layers.0.self_attn.k_proj.weight bard | tail -n 3
codecllm inspect --json out
codecllm inspect --json --tensor c.ids out
codecllm pack -q --mode q8 "$BARD/model.safetensors" q8
codecllm inspect --tensor model.layers.0.self_attn.k_proj.weight q8 | head -n 12 | sed -E '/^Stored/d; s/ +[0-9]+  (#+)$/ BITS  \1/'
status codecllm inspect --tensor nothing out
status codecllm inspect model
status codecllm inspect model/model-00001-of-00002.safetensors
status codecllm inspect missing
# a name from a file cannot drive the terminal
tensors evil '{"\u001b[31mred\n":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' 8
codecllm pack -q evil evil.packed
codecllm inspect evil.packed | head -n 5
poke evil.packed 192 000
poke evil.packed 193 377
status codecllm verify evil.packed
