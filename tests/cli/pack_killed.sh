. "$HERE/safetensors.inc"
# an 8 GB file without blocks on the disk; no machine packs it in the time given
mkdir model
header='{"a":{"dtype":"BF16","shape":[4000,1000000],"data_offsets":[0,8000000000]}}'
{ length8 ${#header}; printf %s "$header"; } >model/model.safetensors
truncate -s $((8 + ${#header} + 8000000000)) model/model.safetensors
echo '{}' >model/config.json
sharded small

# started: packs the big model in the background, as $pid, and has come to its weights: what it writes of them is there, the small files are done.
# That it reads the weights says less: their header is read before anything is written.
started() {
    codecllm pack model packed &
    pid=$!
    while kill -0 $pid && ! ls .packed.partial-*/tree/.model.safetensors.codecllm-tmp.* >/dev/null 2>&1; do sleep 0.02; done
}
partials() { ls -d .packed.partial-* 2>/dev/null | wc -l; }

# kill -9 leaves a directory; what looks like one and is not ours stays, and links are not followed
started
kill -9 $pid
wait $pid 2>/dev/null
echo "left: $(partials)"
left=$(echo .packed.partial-*)
find "$left" -mindepth 1 | sed "s|$left|LEFT|; s|tmp\.[0-9.]*|tmp.N|" | sort
mkdir away .packed.partial-nomark .packed.partial-toolong "$left/tree/sub"
echo precious | tee away/file .packed.partial-nomark/file .packed.partial-toolong/file >"$left/tree/sub/file"
cp "$left/.codecllm-partial" away
cp "$left/.codecllm-partial" .packed.partial-toolong
ln -s away .packed.partial-linked
ln -s "$PWD/away" "$left/tree/link"
chmod 500 "$left/tree/sub"
codecllm pack -q small packed
find . -path ./model -prune -o -path ./small -prune -o -path ./packed -prune -o -print | sort
cat away/file
rm -r .packed.partial-* packed away

# one of a run that lives is left alone
started
codecllm pack -q small packed
echo "living: $(partials)"
kill -9 $pid
wait $pid 2>/dev/null
# and unpacking to the same place removes it, too
codecllm pack -q small again
rm -r packed
codecllm unpack -q again packed
echo "left: $(partials)"
ls -A
