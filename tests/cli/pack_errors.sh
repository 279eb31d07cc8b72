. "$HERE/safetensors.inc"
sharded model
status codecllm pack missing out
status codecllm pack model/config.json out
mkdir nothing full
status codecllm pack nothing out
echo x >full/x
status codecllm pack model full
status codecllm pack model model/out
status codecllm pack model model
status codecllm pack model full/x
status codecllm pack model/model-00001-of-00002.safetensors full
status codecllm pack model/model-00001-of-00002.safetensors model/model-00001-of-00002.safetensors
status codecllm pack model no/such/place
status codecllm pack model/model-00001-of-00002.safetensors no/such/place
status codecllm pack /dev/null out
# files that break the rules of safetensors
tensors hole '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}' 20
status codecllm pack hole out
tensors overlap '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}' 12
status codecllm pack overlap out
tensors short '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}' 12
status codecllm pack short out
tensors size '{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}' 16
status codecllm pack size out
tensors dtype '{"a":{"dtype":"F 31","shape":[4],"data_offsets":[0,16]}}' 16
status codecllm pack dtype out
: >empty
status codecllm pack empty out
# packed already
codecllm pack -q model/model-00001-of-00002.safetensors packed
status codecllm pack packed out
mkdir half
cp packed half/model.safetensors
status codecllm pack half out
# the place is taken while we work: what came first stays
mkdir late slow
header='{"a":{"dtype":"BF16","shape":[100,1000000],"data_offsets":[0,200000000]}}'
{ length8 ${#header}; printf %s "$header"; } >slow/model.safetensors
truncate -s $((8 + ${#header} + 200000000)) slow/model.safetensors
(while ! ls -d .late.partial-* >/dev/null 2>&1; do :; done; echo first >late/first) &
status codecllm pack slow late
wait
ls -A late
rm -r slow late
# no room: nothing is left behind
(trap '' XFSZ; ulimit -f 8; status codecllm pack "$BARD/model.safetensors" out)
(trap '' XFSZ; ulimit -f 8; status codecllm pack "$BARD" out)
ls -A
