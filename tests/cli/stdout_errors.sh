. "$HERE/safetensors.inc"
codecllm pack -q "$BARD/model.safetensors" packed
for verb in "inspect packed" "inspect --json packed" "verify packed" doctor --help --version; do
    codecllm $verb >/dev/full 2>err
    echo "exit status $?"
    grep -v 'verified in' err
done
# standard output is closed: a file that is opened later must not take its place
for verb in "inspect packed" "verify packed" --help; do
    codecllm $verb 2>err >&-
    echo "exit status $?"
    grep -v 'verified in' err
done
# the reader of a pipe has gone: no line, but a failure
mkfifo pipe
(exec 5<pipe) &
exec 4>pipe
wait
codecllm inspect packed >&4
echo "exit status $?"
