. "$HERE/safetensors.inc"
# a hub cache is made of links; the output is made of files
sharded blobs
mkdir snapshot
for f in blobs/*; do ln -s "../$f" snapshot/; done
codecllm pack -q snapshot out
find out -type l
codecllm unpack -q out plain
diff -r blobs plain && echo the same after unpack
# outputs are never written through a link
echo precious >target
ln -s target link
mkdir away
ln -s away linkdir
status codecllm pack blobs linkdir
status codecllm pack blobs/model-00001-of-00002.safetensors link
status codecllm unpack out/model-00001-of-00002.safetensors link
cat target
ls -A away
# links that lead nowhere, or in circles
ln -s nowhere snapshot/dangling.json
status codecllm pack snapshot out2
rm snapshot/dangling.json
mkdir snapshot/sub
for i in 1 2 3 4 5 6 7 8 9; do ln -s . snapshot/loop$i; ln -s .. snapshot/sub/loop$i; done
ln -s self snapshot/self
status codecllm pack snapshot out2 2>&1 | sort | tail -n 2
find out2 | sort
ls -A
