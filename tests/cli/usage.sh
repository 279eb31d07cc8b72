. "$HERE/safetensors.inc"
status codecllm
status codecllm explode
status codecllm pack
status codecllm pack one
status codecllm pack one two three
status codecllm pack --mode q9 one two
status codecllm pack --dtype f64 one two
status codecllm pack --jobs 0 one two
status codecllm pack --jobs 2x one two
status codecllm pack --jobs
status codecllm pack --shiny one two
status codecllm unpack one
status codecllm unpack --jobs -1 one two
status codecllm inspect
status codecllm inspect --tensor
status codecllm verify
status codecllm verify --shiny
status codecllm doctor now
status codecllm run
status codecllm run --budget
status codecllm run --shiny -- true
