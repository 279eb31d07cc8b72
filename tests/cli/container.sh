# the command with the system calls that Docker's default profile leaves it
in_container codecllm doctor >out
echo "exit status $?"
grep -E '^  (seccomp|io_uring|uffd|uffd-user|sigsegv|verdict) ' out | sed -E 's/[0-9]+ filters?/filters/'
in_container codecllm pack "$BARD/model.safetensors" packed.safetensors
in_container codecllm verify packed.safetensors
in_container codecllm unpack packed.safetensors back.safetensors
cmp "$BARD/model.safetensors" back.safetensors && echo "unpacked: the original"
# by the shim
in_container codecllm run --budget 2M -- cat packed.safetensors >read
cmp "$BARD/model.safetensors" read && echo "read: the original"
CODEC_IO=uring in_container codecllm run --budget 2M -- cat packed.safetensors >read
echo "exit status $?"
