. "$HERE/safetensors.inc"
status codecllm run --budget 1G -- sh -c 'echo "$CODEC_VRAM_BUDGET ${LD_PRELOAD##*/} $1"; exit 7' sh argument
status codecllm run -- sh -c 'echo "${CODEC_VRAM_BUDGET-unset}"'
LD_PRELOAD=libm.so.6 codecllm run --budget 1G sh -c 'echo "${LD_PRELOAD##*/lib/}"'
codecllm run --budget 1G -- codecllm run --budget 2G -- sh -c 'echo "$CODEC_VRAM_BUDGET ${LD_PRELOAD##*/lib/}"'
status codecllm run --budget lots -- true
CODEC_VRAM_BUDGET=1Q status codecllm run -- true
CODEC_POLICY=best status codecllm run --budget 1G -- true
status codecllm run --budget 1G -- no-such-program
echo text >plain
status codecllm run --budget 1G -- ./plain
# the program's signals are as they were
here=$(grep SigIgn /proc/self/status)
[ "$here" = "$(codecllm run --budget 1G -- grep SigIgn /proc/self/status)" ] && echo no signal is ignored
# a standard descriptor that is closed cannot become a data file
codecllm run --budget 1G -- readlink /proc/self/fd/2 2>&-
# a program sees the logical file, our own command the real one
codecllm pack -q "$BARD/model.safetensors" packed
codecllm run --budget 4M -- cmp "$BARD/model.safetensors" packed && echo a program sees the logical file
codecllm run --budget 4M -- codecllm verify -q packed && echo the command sees the store
# moved away from its library
cp "$(command -v codecllm)" .
status ./codecllm run --budget 1G -- true
mkdir lib bin
mv codecllm bin
cp "$BUILD/lib/libcodecshim.so" lib
bin/codecllm run --budget 1G -- sh -c 'echo "$LD_PRELOAD"'
# LD_PRELOAD cannot hold a path with a space
mkdir 'with space'
mv bin lib 'with space'
'with space/bin/codecllm' run --budget 1G -- sh -c 'echo "$LD_PRELOAD in $LD_LIBRARY_PATH"; grep -q libcodecshim /proc/$$/maps && echo it is loaded'
mv 'with space' 'a:colon'
status 'a:colon/bin/codecllm' run --budget 1G -- true
