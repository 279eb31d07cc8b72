/* The side of cuda.h: layouts as it has them, and whether the prototypes in shim/cuda/hooks.def, read with its types,
 * are its own. */
#define __CUDA_API_VERSION_INTERNAL /* all versions of a function, under the names of the symbols */
#include <cuda.h>
#include <stddef.h>

struct cuda_abi_row {
    const char *name;
    unsigned long long value;
};
#include "cuda_hooks_abi_rows.h"
const struct cuda_abi_row *const cuda_hooks_abi_theirs = ROWS;

#define CWS_CUDA(symbol, since, parameters, ...) typedef CUresult(*cws_fn_##symbol) parameters;
#define CWS_CUDA_S(symbol, variant, since, parameters, ...) CWS_CUDA(symbol, since, parameters)
#define CWS_CUDA_VOID(symbol, since) CWS_CUDA(symbol, since, (void))
#define CWS_CUDA_USED(symbol, parameters) CWS_CUDA(symbol, since, parameters)
#include "shim/cuda/hooks.def"
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED

#define SAME(symbol, type) __builtin_types_compatible_p(__typeof__(&symbol), type)
const struct cuda_abi_row cuda_hooks_prototypes[] = {
#define CWS_CUDA(symbol, since, parameters, ...) {#symbol, SAME(symbol, cws_fn_##symbol)},
#define CWS_CUDA_S(symbol, variant, since, parameters, ...) CWS_CUDA(symbol, since, parameters)
#define CWS_CUDA_VOID(symbol, since) CWS_CUDA(symbol, since, (void))
#define CWS_CUDA_USED(symbol, parameters) CWS_CUDA(symbol, since, parameters)
#include "shim/cuda/hooks.def"
#undef CWS_CUDA
#undef CWS_CUDA_S
#undef CWS_CUDA_VOID
#undef CWS_CUDA_USED
    {NULL, 0},
};

/* Prototypes in which the list deliberately names another type that is passed in the same way: a structure that nobody
 * looks into is void, an enumeration int, and 64-bit words are unsigned long long. Here is what cuda.h should have for
 * them. */
const struct cuda_abi_row cuda_hooks_alike[] = {
#define ALIKE(symbol, ...) {#symbol, SAME(symbol, CUresult(*)(__VA_ARGS__))},
    ALIKE(cuGetProcAddress, const char *, void **, int, cuuint64_t)
        ALIKE(cuGetProcAddress_v2, const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *) ALIKE(
            cuMemcpy3DPeer, const CUDA_MEMCPY3D_PEER *) ALIKE(cuMemcpy3DPeerAsync, const CUDA_MEMCPY3D_PEER *, CUstream)
            ALIKE(cuStreamWriteValue64_v2, CUstream, CUdeviceptr, cuuint64_t,
                  unsigned) ALIKE(cuStreamWaitValue64_v2, CUstream, CUdeviceptr, cuuint64_t, unsigned)
                ALIKE(cuStreamBeginCaptureToGraph, CUstream, CUgraph, const CUgraphNode *, const CUgraphEdgeData *,
                      size_t, CUstreamCaptureMode) ALIKE(cuGraphInstantiateWithParams, CUgraphExec *, CUgraph,
                                                         CUDA_GRAPH_INSTANTIATE_PARAMS *)
                    ALIKE(cuTensorMapEncodeTiled, CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                          const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                          CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill)
                        ALIKE(cuTensorMapEncodeIm2col, CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const int *, const int *, cuuint32_t, cuuint32_t,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                              CUtensorMapFloatOOBfill)
                            ALIKE(cuTensorMapEncodeIm2colWide, CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                  const cuuint64_t *, const cuuint64_t *, int, int, cuuint32_t, cuuint32_t,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapIm2ColWideMode,
                                  CUtensorMapSwizzle, CUtensorMapL2promotion,
                                  CUtensorMapFloatOOBfill) ALIKE(cuTensorMapReplaceAddress, CUtensorMap *, void *)
                                ALIKE(cuGraphExecUpdate, CUgraphExec, CUgraph, CUgraphNode *, CUgraphExecUpdateResult *)
                                    ALIKE(cuGraphExecUpdate_v2, CUgraphExec, CUgraph, CUgraphExecUpdateResultInfo *)
                                        ALIKE(cuGraphExecKernelNodeSetParams, CUgraphExec, CUgraphNode,
                                              const CUDA_KERNEL_NODE_PARAMS_v1 *){NULL, 0},
};
_Static_assert(sizeof(cuuint64_t) == sizeof(unsigned long long) && sizeof(cuuint32_t) == sizeof(unsigned) &&
                   sizeof(CUtensorMap) == 128 && sizeof(CUtensorMapDataType) == sizeof(int) &&
                   sizeof(CUgraphExecUpdateResult) == sizeof(int) &&
                   sizeof(CUdriverProcAddressQueryResult) == sizeof(int),
               "types that stand for each other");
