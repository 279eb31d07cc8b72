. "$HERE/safetensors.inc"
codecllm --version
codecllm --help
for verb in pack unpack inspect verify doctor run top plot; do
    echo "--- $verb"
    codecllm $verb --help
done
