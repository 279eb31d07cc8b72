. "$HERE/safetensors.inc"
# an 8 GB file without blocks on the disk; no machine packs it in the time given
header='{"a":{"dtype":"BF16","shape":[4000,1000000],"data_offsets":[0,8000000000]}}'
{ length8 ${#header}; printf %s "$header"; } >big
truncate -s $((8 + ${#header} + 8000000000)) big

# started IN OUT: packs in the background, as $pid, and has come to its input. (A shell's background jobs ignore SIGINT.)
started() {
    env --default-signal=INT codecllm pack "$1" "$2" &
    pid=$!
    while kill -0 $pid && ! ls -l /proc/$pid/fd 2>/dev/null | grep -q -e '/big$' -e '/model\.safetensors$'; do sleep 0.02; done
}

echo earlier >out
started big out
kill -INT $pid
status wait $pid
cat out
mkdir model
mv big model/model.safetensors
started model packed
kill -TERM $pid
status wait $pid
# told several times at once, as timeout(1) and batch systems do: still nothing stays behind
started model packed
for i in 1 2 3 4 5; do
    kill -TERM $pid 2>/dev/null
    sleep 0
done
status wait $pid
ls -A
