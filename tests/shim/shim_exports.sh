#!/bin/sh
# shim_exports.sh LIBRARY HOOKS.DEF CUDA_HOOKS.DEF - the library exports the names of both lists, dlsym, the counters, and nothing else; and it needs
# nothing that is not part of the C library.
set -e
want=$({
    sed -n 's/^CWS_HOOK(\([A-Za-z0-9_]*\),.*/\1/p' "$2"
    sed -n 's/^CWS_CUDA\(_VOID\)*(\([A-Za-z0-9_]*\),.*/\2/p' "$3"
    sed -n 's/^CWS_CUDA_S(\([A-Za-z0-9_]*\), \(_[a-z]*\),.*/\1 \1\2/p' "$3" | tr ' ' '\n'
    printf '%s\n' codecllm_stats_json codecllm_gpu_stats_json codecllm_set_budget codecllm_sleep codecllm_wake dlsym
} | sort)
have=$(nm -D --defined-only "$1" | awk '{print $3}' | sort)
if [ "$want" != "$have" ]; then
    echo "exported but not listed, or listed but not exported:"
    { echo "$want"; echo "$have"; } | sort | uniq -u
    exit 1
fi
extra=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -Ev '^(libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libdl\.so\.2|ld-linux.*)$' || true)
if [ -n "$extra" ]; then
    echo "needs: $extra"
    exit 1
fi
