/* cuda_hooks_abi_rows.h - sizes, offsets and values that shim/cuda/types.h has, taken from whatever header the including file chose. */
/* clang-format off */
#ifdef CUDA_VERSION /* cuda.h has several versions of these; ours are the latest */
#define KERNEL_NODE CUDA_KERNEL_NODE_PARAMS_v2
#define MEMSET_NODE CUDA_MEMSET_NODE_PARAMS_v1
#define ALLOC_NODE CUDA_MEM_ALLOC_NODE_PARAMS_v1
#define BATCH_OP_ADDRESS waitValue.address
#define NODE_KERNEL kernel
#define NODE_MEMCPY memcpy
#define NODE_MEMSET memset
#define NODE_GRAPH graph
#else
#define KERNEL_NODE CUDA_KERNEL_NODE_PARAMS
#define MEMSET_NODE CUDA_MEMSET_NODE_PARAMS
#define ALLOC_NODE CUDA_MEM_ALLOC_NODE_PARAMS
#define BATCH_OP_ADDRESS value.address
#define NODE_KERNEL node.kernel
#define NODE_MEMCPY node.memcpy
#define NODE_MEMSET node.memset
#define NODE_GRAPH node.graph
#endif
#define VALUE(name) {#name, (unsigned long long)(name)},
#define FIELD(type, field) {#type "." #field, offsetof(type, field)},
#define SIZE(type) {"sizeof " #type, sizeof(type)},
#define AS(name, value) {name, (unsigned long long)(value)},
static const struct cuda_abi_row ROWS[] = {
    SIZE(CUarray) SIZE(CUmipmappedArray) SIZE(CUlibrary) SIZE(CUmemorytype) SIZE(CUgraphNodeType) SIZE(CUarray_format) SIZE(CUmemRangeHandleType)
    SIZE(CUDA_MEMCPY2D) FIELD(CUDA_MEMCPY2D, srcY) FIELD(CUDA_MEMCPY2D, srcMemoryType) FIELD(CUDA_MEMCPY2D, srcHost) FIELD(CUDA_MEMCPY2D, srcDevice)
    FIELD(CUDA_MEMCPY2D, srcArray) FIELD(CUDA_MEMCPY2D, srcPitch) FIELD(CUDA_MEMCPY2D, dstXInBytes) FIELD(CUDA_MEMCPY2D, dstMemoryType)
    FIELD(CUDA_MEMCPY2D, dstHost) FIELD(CUDA_MEMCPY2D, dstDevice) FIELD(CUDA_MEMCPY2D, dstArray) FIELD(CUDA_MEMCPY2D, dstPitch)
    FIELD(CUDA_MEMCPY2D, WidthInBytes) FIELD(CUDA_MEMCPY2D, Height)
    SIZE(CUDA_MEMCPY3D) FIELD(CUDA_MEMCPY3D, srcLOD) FIELD(CUDA_MEMCPY3D, srcMemoryType) FIELD(CUDA_MEMCPY3D, srcHost) FIELD(CUDA_MEMCPY3D, srcDevice)
    FIELD(CUDA_MEMCPY3D, srcArray) FIELD(CUDA_MEMCPY3D, srcPitch) FIELD(CUDA_MEMCPY3D, srcHeight) FIELD(CUDA_MEMCPY3D, dstXInBytes)
    FIELD(CUDA_MEMCPY3D, dstMemoryType) FIELD(CUDA_MEMCPY3D, dstHost) FIELD(CUDA_MEMCPY3D, dstDevice) FIELD(CUDA_MEMCPY3D, dstArray)
    FIELD(CUDA_MEMCPY3D, dstPitch) FIELD(CUDA_MEMCPY3D, dstHeight) FIELD(CUDA_MEMCPY3D, WidthInBytes) FIELD(CUDA_MEMCPY3D, Depth)
    SIZE(CUmemcpyAttributes) FIELD(CUmemcpyAttributes, srcLocHint) FIELD(CUmemcpyAttributes, dstLocHint) FIELD(CUmemcpyAttributes, flags)
    SIZE(CUmemcpy3DOperand) FIELD(CUmemcpy3DOperand, op.ptr.ptr) FIELD(CUmemcpy3DOperand, op.ptr.rowLength) FIELD(CUmemcpy3DOperand, op.ptr.layerHeight)
    FIELD(CUmemcpy3DOperand, op.ptr.locHint) FIELD(CUmemcpy3DOperand, op.array.array)
    SIZE(CUDA_MEMCPY3D_BATCH_OP) FIELD(CUDA_MEMCPY3D_BATCH_OP, src) FIELD(CUDA_MEMCPY3D_BATCH_OP, dst) FIELD(CUDA_MEMCPY3D_BATCH_OP, srcAccessOrder)
    FIELD(CUDA_MEMCPY3D_BATCH_OP, flags)
#ifdef CUDA_VERSION
    AS("extent of a batch copy", offsetof(CUDA_MEMCPY3D_BATCH_OP, extent.width)) AS("its depth", offsetof(CUDA_MEMCPY3D_BATCH_OP, extent.depth))
#else
    AS("extent of a batch copy", offsetof(CUDA_MEMCPY3D_BATCH_OP, width)) AS("its depth", offsetof(CUDA_MEMCPY3D_BATCH_OP, depth))
#endif
    SIZE(CUstreamBatchMemOpParams) AS("address of a batch memory operation", offsetof(CUstreamBatchMemOpParams, BATCH_OP_ADDRESS))
    SIZE(CUlaunchConfig) FIELD(CUlaunchConfig, sharedMemBytes) FIELD(CUlaunchConfig, hStream) FIELD(CUlaunchConfig, attrs) FIELD(CUlaunchConfig, numAttrs)
    AS("size of a kernel node", sizeof(KERNEL_NODE)) AS("its func", offsetof(KERNEL_NODE, func)) AS("its sharedMemBytes", offsetof(KERNEL_NODE, sharedMemBytes))
    AS("its kernelParams", offsetof(KERNEL_NODE, kernelParams)) AS("its extra", offsetof(KERNEL_NODE, extra)) AS("its kern", offsetof(KERNEL_NODE, kern))
    AS("its ctx", offsetof(KERNEL_NODE, ctx))
    SIZE(CUDA_LAUNCH_PARAMS) FIELD(CUDA_LAUNCH_PARAMS, hStream) FIELD(CUDA_LAUNCH_PARAMS, kernelParams)
    AS("size of a memset node", sizeof(MEMSET_NODE)) AS("its dst", offsetof(MEMSET_NODE, dst)) AS("its pitch", offsetof(MEMSET_NODE, pitch))
    AS("its elementSize", offsetof(MEMSET_NODE, elementSize)) AS("its width", offsetof(MEMSET_NODE, width)) AS("its height", offsetof(MEMSET_NODE, height))
    SIZE(CUgraphNodeParams) FIELD(CUgraphNodeParams, type) AS("func of a kernel node", offsetof(CUgraphNodeParams, NODE_KERNEL.func))
    AS("kernelParams of a kernel node", offsetof(CUgraphNodeParams, NODE_KERNEL.kernelParams))
    AS("copy of a copy node", offsetof(CUgraphNodeParams, NODE_MEMCPY.copyParams)) AS("dst of a memset node", offsetof(CUgraphNodeParams, NODE_MEMSET.dst))
    AS("graph of a graph node", offsetof(CUgraphNodeParams, NODE_GRAPH.graph))
    SIZE(CUDA_ARRAY_DESCRIPTOR) FIELD(CUDA_ARRAY_DESCRIPTOR, Format) FIELD(CUDA_ARRAY_DESCRIPTOR, NumChannels)
    SIZE(CUDA_ARRAY3D_DESCRIPTOR) FIELD(CUDA_ARRAY3D_DESCRIPTOR, Depth) FIELD(CUDA_ARRAY3D_DESCRIPTOR, Format) FIELD(CUDA_ARRAY3D_DESCRIPTOR, Flags)
    SIZE(CUmemPoolProps) FIELD(CUmemPoolProps, handleTypes) FIELD(CUmemPoolProps, location) FIELD(CUmemPoolProps, maxSize) FIELD(CUmemPoolProps, usage)
    AS("size of an allocation's node", sizeof(ALLOC_NODE)) AS("its bytesize", offsetof(ALLOC_NODE, bytesize)) AS("its dptr", offsetof(ALLOC_NODE, dptr))
    SIZE(CUipcMemHandle)
    VALUE(CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) VALUE(CU_MEMORYTYPE_ARRAY) VALUE(CU_MEMORYTYPE_UNIFIED) VALUE(CU_GRAPH_NODE_TYPE_KERNEL)
    VALUE(CU_GRAPH_NODE_TYPE_MEMCPY) VALUE(CU_GRAPH_NODE_TYPE_MEMSET) VALUE(CU_GRAPH_NODE_TYPE_GRAPH) VALUE(CU_GRAPH_NODE_TYPE_MEM_ALLOC) VALUE(CU_GRAPH_NODE_TYPE_MEM_FREE) VALUE(CU_GRAPH_NODE_TYPE_CONDITIONAL)
    VALUE(CU_MEMCPY_OPERAND_TYPE_POINTER) VALUE(CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) VALUE(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE)
    VALUE(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES) VALUE(CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE) VALUE(CU_POINTER_ATTRIBUTE_ACCESS_FLAGS)
    VALUE(CU_POINTER_ATTRIBUTE_MAPPING_SIZE) VALUE(CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR) VALUE(CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID)
    VALUE(CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE)
    AS("CU_LAUNCH_PARAM_END", (uintptr_t)CU_LAUNCH_PARAM_END) AS("CU_LAUNCH_PARAM_BUFFER_POINTER", (uintptr_t)CU_LAUNCH_PARAM_BUFFER_POINTER)
    AS("CU_LAUNCH_PARAM_BUFFER_SIZE", (uintptr_t)CU_LAUNCH_PARAM_BUFFER_SIZE)
};
