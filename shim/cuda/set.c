/* set.c - memset, and single words that a stream writes or waits for. */
#include "use.h"

#define SET(symbol, order, parameters, call)                                                                           \
    CUresult cws_do_##symbol(cws_fn_##symbol real, CUstream own, CWS_BARE parameters)                                  \
    {                                                                                                                  \
        return CWS_CUDA_AROUND(order, to, 0, call);                                                                    \
    }
#define SET_ALL(width, type)                                                                                           \
    SET(cuMemsetD##width##_v2, own, (CUdeviceptr to, type value, size_t count), real(to, value, count))                \
    SET(cuMemsetD##width##Async, cws_cuda_stream(stream, own),                                                         \
        (CUdeviceptr to, type value, size_t count, CUstream stream), real(to, value, count, stream))                   \
    SET(cuMemsetD2D##width##_v2, own, (CUdeviceptr to, size_t pitch, type value, size_t columns, size_t rows),         \
        real(to, pitch, value, columns, rows))                                                                         \
    SET(cuMemsetD2D##width##Async, cws_cuda_stream(stream, own),                                                       \
        (CUdeviceptr to, size_t pitch, type value, size_t columns, size_t rows, CUstream stream),                      \
        real(to, pitch, value, columns, rows, stream))
SET_ALL(8, unsigned char)
SET_ALL(16, unsigned short)
SET_ALL(32, unsigned)

#define VALUE(symbol, type)                                                                                            \
    SET(symbol, cws_cuda_stream(stream, own), (CUstream stream, CUdeviceptr to, type value, unsigned flags),           \
        real(stream, to, value, flags))
VALUE(cuStreamWriteValue32_v2, unsigned)
VALUE(cuStreamWriteValue64_v2, unsigned long long)
VALUE(cuStreamWaitValue32_v2, unsigned)
VALUE(cuStreamWaitValue64_v2, unsigned long long)

CUresult cws_do_cuStreamBatchMemOp_v2(cws_fn_cuStreamBatchMemOp_v2 real, CUstream own, CUstream stream, unsigned count,
                                      CUstreamBatchMemOpParams *ops, unsigned flags)
{
    struct cws_cuda_list list;
    struct cws_cuda_use use;
    cws_cuda_list_init(&list);
    for (unsigned i = 0; ops && i < count; i++) {
        int operation = ops[i].operation; /* 1 wait, 2 write, 4 wait 64, 5 write 64 */
        if (operation == 1 || operation == 2 || operation == 4 || operation == 5)
            cws_cuda_list_add(&list, ops[i].value.address);
    }
    CUresult result = cws_cuda_begin(cws_cuda_stream(stream, own), &list, &use);
    if (result == CUDA_SUCCESS) {
        result = real(stream, count, ops, flags);
        cws_cuda_end(&use, result == CUDA_SUCCESS);
    }
    cws_cuda_list_deinit(&list);
    return result;
}
