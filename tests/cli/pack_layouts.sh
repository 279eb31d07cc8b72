. "$HERE/safetensors.inc"
# round IN OUT: packs, verifies, and unpacks to the same
round() {
    status codecllm pack "$1" "$2" || return
    codecllm verify -q "$2" && codecllm unpack -q "$2" "$2.again" 2>/dev/null && diff -r "$1" "$2.again" && echo "$2: the same after unpack"
}
one() { cp model/model-00002-of-00002.safetensors "$1"; }
sharded model
echo "--- an index beside a complete model.safetensors"
mkdir leftover
one leftover/model.safetensors
cp model/*.index.json leftover/
round leftover leftover.packed
echo '{"weight_map": ' >leftover/model.safetensors.index.json
round leftover broken.packed
codecllm pack -q --dtype bf16 leftover broken.cast && cmp broken.cast/model.safetensors.index.json leftover/model.safetensors.index.json
echo "--- an index of another build"
cp -r model other
sed -i 's/-of-00002/-of-00007/' other/model.safetensors.index.json
round other other.packed
codecllm pack -q --dtype bf16 other other.cast && cmp other.cast/model.safetensors.index.json other/model.safetensors.index.json
codecllm verify other.packed 2>&1 | grep -v verified
cp -r model moved
sed -i 's/model-00002-of-00002/model-00002-of-00003/' moved/model.safetensors.index.json
round moved moved.packed
echo "--- shards in a folder"
cp -r model folder
mkdir -p folder/a/b
mv folder/model-0000*.safetensors folder/a/b
sed -i 's,"model-,"a/b/model-,' folder/model.safetensors.index.json
round folder folder.packed
codecllm pack -q --dtype bf16 folder folder.cast && grep total_size folder.cast/*.index.json
echo "--- an index with a key twice, and numbers of any kind"
cp -r model twice
sed -i 's/"weight_map": {/&\n    "b.weight": "gone.safetensors",/; s/20544/NaN/' twice/model.safetensors.index.json
round twice twice.packed
echo "--- files that only look like weights"
cp -r model stray
: >stray/empty.safetensors
head -c 300 stray/model-00001-of-00002.safetensors >stray/cut.safetensors
round stray stray.packed
mkdir bare empty
one bare/a.safetensors
: >bare/b.safetensors
round bare bare.packed
: >empty/model.safetensors
status codecllm pack empty out
echo "--- nobody could load these"
cp -r model half
rm half/model-00002-of-00002.safetensors
status codecllm pack half out
cp -r model emptied
: >emptied/model.safetensors
status codecllm pack emptied out
echo "--- a pipeline"
mkdir -p pipe/unet pipe/vae pipe/text_encoder pipe/text_encoder_2 pipe/transformer pipe/scheduler pipe/tokenizer
for place in unet vae text_encoder text_encoder_2; do echo '{"torch_dtype": "float32"}' >pipe/$place/config.json; done
echo '{"_class_name": "StableDiffusionXLPipeline"}' >pipe/model_index.json
one pipe/unet/diffusion_pytorch_model.safetensors
one pipe/unet/diffusion_pytorch_model.fp16.safetensors
one pipe/vae/diffusion_pytorch_model.safetensors
one pipe/text_encoder/model.safetensors
one pipe/text_encoder_2/model.fp16.safetensors
for f in model/model-*; do n=${f#model/model-}; cp $f pipe/transformer/diffusion_pytorch_model.fp16-$n; done
sed 's/"model-/"diffusion_pytorch_model.fp16-/' model/model.safetensors.index.json >pipe/transformer/diffusion_pytorch_model.safetensors.index.fp16.json
echo '{}' >pipe/scheduler/scheduler_config.json
echo a >pipe/tokenizer/vocab.txt
round pipe pipe.packed
codecllm verify pipe.packed 2>/dev/null
codecllm inspect pipe.packed | head -n 2
codecllm pack -q --dtype bf16 pipe pipe.cast && cat pipe.cast/*/config.json && grep -h total_size pipe.cast/transformer/*.json
rm pipe/transformer/*-00002-of-00002.safetensors
status codecllm pack pipe out
echo "--- a configuration with Infinity"
cp -r model infinity
printf '{"time_step_limit": [0.0, Infinity], "x": -Infinity, "y":NaN,\n "torch_dtype" : "float32", "big": 1000000000000000019884624838656}' >infinity/config.json
round infinity infinity.packed
codecllm pack -q --dtype bf16 infinity infinity.cast && cat infinity.cast/config.json && echo
echo '{"dtype": "float32"' >infinity/config.json
status codecllm pack --dtype bf16 infinity out
echo "--- weights in other formats"
cp -r model formats
head -c 2000000 "$BARD/model.safetensors" >formats/pytorch_model.bin
echo small >formats/training_args.bin
round formats formats.packed
cp formats/pytorch_model.bin formats/consolidated.00.pth
codecllm pack formats formats.packed.too
[ -e out ] || echo nothing is half-written
