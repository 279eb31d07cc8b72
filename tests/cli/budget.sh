. "$HERE/safetensors.inc"
# What needs no program that pages; tests/shim has the rest.
status codecllm budget
status codecllm budget 1 2G 3G
status codecllm budget self
status codecllm budget 0
status codecllm budget -5
status codecllm budget 99999999999
status codecllm budget $$ lots
status codecllm budget $$ 0
status codecllm budget 999999999
status codecllm budget 999999999 2G
codecllm budget $$ 2>&1 | sed "s/$$/PID/"
