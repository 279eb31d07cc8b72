. "$HERE/safetensors.inc"
# what differs between machines is not shown here
codecllm doctor >out
echo "exit status $?"
grep -E '^[A-Z]' out
grep -E '^  CODEC_' out
CODEC_VRAM_BUDGET=2G CODEC_PAGER=sigsegv CODEC_VRAM_BUGDET=1G codecllm doctor >out
grep -E 'CODEC_VRAM|CODEC_PAGER|unknown|verdict' out
codecllm doctor >out
sed -n '/verdict/s/by .*/by a rung of this machine/p' out
CODEC_VRAM_BUDGET=0:50%,1:2G codecllm doctor >out
sed -n '/budget, host/s/host .*: 50% of .*/host   half of what a process may have here/p' out
# the pinned memory of a GPU's paging, as it would be: this machine's CUDA, if there is one, is not asked
grep -cE '^  pinned memory +.* at most for each GPU.*: half of the .* that are free' out
CODEC_HOST_BUDGET=8M codecllm doctor >out
sed -n '/pinned memory/s/, if there were one//p' out
CODEC_HOST_BUDGET=1M codecllm doctor >out
grep 'pinned memory' out
CODEC_HOST_BUDGET=9999999G codecllm doctor >out
grep 'pinned memory' out | sed 's/the [0-9.]* [A-Za-z]*/the .../; s/, if there were one//'
CODEC_IO=floppy codecllm doctor >out
echo "exit status $?"
grep -E 'CODEC_IO|verdict *CODEC' out
CODEC_TRACE=no-folder/t.json codecllm doctor >out
echo "exit status $?"
grep -E 'CODEC_TRACE' out
CODEC_PAGER=eager codecllm doctor >out
echo "exit status $?"
grep verdict out
export LD_LIBRARY_PATH="$BUILD/standin"
codecllm doctor | grep -E '^  (driver|device) '
STANDIN_CAPABILITY=7.0 codecllm doctor | grep -E '^  device '
# built in where nvcc was found, else compiled by the NVRTC of the tests
codecllm doctor | sed -En '/GPU decoder/s/(built in for compute capability [0-9. ]+, for others as PTX of [0-9. ]+$|compiled when needed by NVRTC 12.4 .*)/as this build has it/p'
unset LD_LIBRARY_PATH
