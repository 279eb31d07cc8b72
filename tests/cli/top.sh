. "$HERE/safetensors.inc"
# What needs no program that pages; tests/shim and tests/python have the rest.
status codecllm top 1 2
status codecllm top self
status codecllm top 0
status codecllm top 99999999999
status codecllm top --shiny
status codecllm top --interval
for seconds in 0 -1 0.09 3601 nan 1s ''; do
    status codecllm top --interval "$seconds"
done
status codecllm top 999999999
status codecllm top --json 999999999
status codecllm top $$ 2>&1 | sed "s/$$/PID/"
