. "$HERE/safetensors.inc"
# an entry of the Hub's cache as huggingface_hub lays it out: snapshot COMMIT
entry=cache/models--org--tiny
snapshot() {
    mkdir -p $entry/blobs $entry/refs "$entry/snapshots/$1/sub"
    for f in model/*; do
        blob=$(echo "$1$f" | cksum | cut -d' ' -f1)
        cp "$f" "$entry/blobs/$blob"
        ln -s "../../blobs/$blob" "$entry/snapshots/$1/${f##*/}"
    done
    echo "$1" >"$entry/blobs/x$1"
    ln -s "../../../blobs/x$1" "$entry/snapshots/$1/sub/x"
}
sharded model
snapshot 1111
codecllm pack $entry only
find only | sort
find only -type l
cmp only/model.safetensors.index.json model/model.safetensors.index.json
codecllm unpack -q only again
diff -r -x sub model again && cat again/sub/x
snapshot 2222
status codecllm pack $entry out
status codecllm pack cache out
printf 2222 >$entry/refs/main
codecllm pack -q $entry main
cat main/sub/x
printf ../snapshots/1111 >$entry/refs/main
status codecllm pack $entry out
codecllm pack $entry/snapshots/1111 one
cat one/sub/x
printf 1111 >$entry/refs/main
status codecllm pack $entry $entry/packed
rm -r $entry/snapshots/*
status codecllm pack $entry out
echo "--- a pipeline"
pipe=cache/models--org--pipe/snapshots/3333
mkdir -p $pipe/transformer $pipe/vae cache/models--org--pipe/blobs
cp model/* cache/models--org--pipe/blobs
for f in model/*; do ln -s "../../../blobs/${f##*/}" $pipe/transformer/; done
ln -s ../../../blobs/model-00002-of-00002.safetensors $pipe/vae/diffusion_pytorch_model.safetensors
echo '{"_class_name": "FluxPipeline"}' >cache/models--org--pipe/blobs/index
ln -s ../../blobs/index $pipe/model_index.json
codecllm pack cache/models--org--pipe pipe
codecllm verify -q pipe && find pipe -type f | sort
find pipe -type l
codecllm unpack -q pipe pipe.again
cp -rL $pipe pipe.files && diff -r pipe.files pipe.again && echo the same after unpack
ls -A
