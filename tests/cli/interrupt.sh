. "$HERE/safetensors.inc"
# an 8 GB file without blocks on the disk; no machine packs it in the time given
header='{"a":{"dtype":"BF16","shape":[4000,1000000],"data_offsets":[0,8000000000]}}'
{ length8 ${#header}; printf %s "$header"; } >big
truncate -s $((8 + ${#header} + 8000000000)) big
echo earlier >out
status timeout --preserve-status -s INT 0.5 codecllm pack big out
cat out
mkdir model
mv big model/model.safetensors
status timeout --preserve-status -s TERM 0.5 codecllm pack model packed
# told twice at once, as timeout(1) and batch systems do: still nothing stays behind
codecllm pack model packed &
pid=$!
sleep 0.5
kill -TERM $pid
sleep 0.02
kill -TERM $pid 2>/dev/null
status wait $pid
ls -A
