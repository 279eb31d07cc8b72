. "$HERE/safetensors.inc"
# a dtype that nobody knows: its bytes are packed as they are, and come back
tensors later '{"a":{"dtype":"I4","shape":[40],"data_offsets":[0,20]},"b":{"dtype":"I4","shape":[],"data_offsets":[20,28]},"s":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[28,32]},"x":{"dtype":"F4","shape":[2,4],"data_offsets":[32,36]},"c":{"dtype":"C64","shape":[],"data_offsets":[36,44]}}' 44
status codecllm pack later packed
codecllm inspect packed | head -n 9
codecllm inspect --json --tensor a packed
codecllm inspect --json --tensor x packed
codecllm inspect --tensor c packed
codecllm verify packed
codecllm unpack -q packed back
cmp later back
# in a directory; neither quantised nor cast
mkdir model
cp later model/model.safetensors
status codecllm pack -q --mode q8 --dtype bf16 --exclude 'x*' model out
codecllm unpack -q out again
cmp model/model.safetensors again/model.safetensors
# what cannot be a name of a type, and half a byte
tensors name '{"a":{"dtype":"I 4","shape":[4],"data_offsets":[0,4]}}' 4
status codecllm pack name out2
tensors half '{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}' 2
status codecllm pack half out2
# bytes that two would share are refused, whatever they are
tensors overlap '{"a":{"dtype":"I4","shape":[8],"data_offsets":[0,4]},"b":{"dtype":"I4","shape":[8],"data_offsets":[3,7]}}' 7
status codecllm pack overlap out2
