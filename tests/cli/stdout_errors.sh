. "$HERE/safetensors.inc"
codecllm pack -q "$BARD/model.safetensors" packed
for verb in "inspect packed" "inspect --json packed" "verify packed" doctor --help --version; do
    status codecllm $verb >/dev/full 2>err
    grep -v 'verified in' err
done 2>&1
for verb in "inspect packed" --help; do
    status codecllm $verb >&- 
done 2>&1
{ codecllm inspect packed; echo "exit status $?" >status; } | true
cat status
