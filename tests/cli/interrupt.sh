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
ls -A
