. "$HERE/safetensors.inc"
codecllm pack "$BARD" out
ls -A out
codecllm unpack out plain
diff -r "$BARD" plain && echo the same after unpack
# sharded, with a directory below, into an empty directory that exists
sharded model
mkdir model/extra model/.git empty
echo tokens >model/extra/vocab.txt
echo blob >model/.git/blob
mkfifo model/pipe
codecllm pack model empty/
find empty | sort
cmp model/model.safetensors.index.json empty/model.safetensors.index.json && echo index unchanged
codecllm unpack -q empty again
rm -r model/.git model/pipe
diff -r model again && echo the same after unpack
codecllm inspect empty | tail -n 10
codecllm verify empty
ls -A
