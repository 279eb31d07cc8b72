. "$HERE/safetensors.inc"
sharded model
rm model/model-00002-of-00002.safetensors
status codecllm pack model out
index() { printf '{"weight_map": {"a.weight": "%s"}}' "$1" >model/model.safetensors.index.json; }
index ../secret.safetensors
status codecllm pack model out
index /etc/shard.safetensors
status codecllm pack model out
index sub/../../shard.safetensors
status codecllm pack model out
index ..
status codecllm pack model out
index ''
status codecllm pack model out
echo '{"weight_map": {"a.weight": 7}}' >model/model.safetensors.index.json
status codecllm pack model out
echo '{"weight_map": []}' >model/model.safetensors.index.json
status codecllm pack model out
echo '{"weight_map": {' >model/model.safetensors.index.json
status codecllm pack model out
printf '{"weight_map": {"a\\u001b[31m": "\\u001b[2J/../x"}}' >model/model.safetensors.index.json
status codecllm pack model out
ls -A
