/* graph_memory.c - the device memory that the nodes of a graph allocate: memory that PyTorch allocates on a stream that
 * captures becomes nodes of the graph, and the driver takes it when the graph is launched. */
#include "graph_memory.h"

void cws_cuda_graph_memory_alloc(struct cws_cuda_graph_memory *m, CUgraphNode node)
{
    CUDA_MEM_ALLOC_NODE_PARAMS p = {.bytesize = 0};
    if (CWS_CUDA_REAL(cuGraphMemAllocNodeGetParams)(node, &p) != CUDA_SUCCESS)
        return;
    m->now += p.bytesize;
    m->most = m->now > m->most ? m->now : m->most;
    uint64_t *bytes = cws_map_put(&m->live, p.dptr);
    if (bytes)
        *bytes = p.bytesize;
}

void cws_cuda_graph_memory_free(struct cws_cuda_graph_memory *m, CUgraphNode node)
{
    CUdeviceptr at = 0;
    uint64_t *bytes;
    if (CWS_CUDA_REAL(cuGraphMemFreeNodeGetParams)(node, &at) != CUDA_SUCCESS || !(bytes = cws_map_find(&m->live, at)))
        return;
    m->now -= *bytes;
    cws_map_remove(&m->live, at);
}
