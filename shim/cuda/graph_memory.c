/* graph_memory.c - the device memory that the nodes of a graph allocate: memory that PyTorch allocates on a stream that
 * captures becomes nodes of the graph, and the driver takes it when the graph is launched. */
#include "graph_memory.h"
#include "store/base/map.h"

#include <stdlib.h>

enum { DEPTH_MOST = 32 };

struct sums {
    struct cws_map live; /* by address: bytes */
    uint64_t now, most;
};

static void add_alloc(struct sums *sums, CUgraphNode node)
{
    CUDA_MEM_ALLOC_NODE_PARAMS p = {.bytesize = 0};
    if (CWS_CUDA_REAL(cuGraphMemAllocNodeGetParams)(node, &p) != CUDA_SUCCESS)
        return;
    sums->now += p.bytesize;
    sums->most = sums->now > sums->most ? sums->now : sums->most;
    uint64_t *bytes = cws_map_put(&sums->live, p.dptr);
    if (bytes)
        *bytes = p.bytesize;
}

static void add_free(struct sums *sums, CUgraphNode node)
{
    CUdeviceptr at = 0;
    uint64_t *bytes;
    if (CWS_CUDA_REAL(cuGraphMemFreeNodeGetParams)(node, &at) != CUDA_SUCCESS ||
        !(bytes = cws_map_find(&sums->live, at)))
        return;
    sums->now -= *bytes;
    cws_map_remove(&sums->live, at);
}

static void walk(struct sums *sums, CUgraph graph, unsigned depth)
{
    size_t count = 0;
    if (depth > DEPTH_MOST || CWS_CUDA_REAL(cuGraphGetNodes)(graph, NULL, &count) != CUDA_SUCCESS || !count)
        return;
    CUgraphNode *nodes = calloc(count, sizeof *nodes);
    if (nodes && CWS_CUDA_REAL(cuGraphGetNodes)(graph, nodes, &count) != CUDA_SUCCESS)
        count = 0;
    for (size_t i = 0; nodes && i < count; i++) {
        CUgraphNodeType type;
        CUgraph child;
        if (CWS_CUDA_REAL(cuGraphNodeGetType)(nodes[i], &type) != CUDA_SUCCESS)
            continue;
        if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
            add_alloc(sums, nodes[i]);
        else if (type == CU_GRAPH_NODE_TYPE_MEM_FREE)
            add_free(sums, nodes[i]);
        else if (type == CU_GRAPH_NODE_TYPE_GRAPH &&
                 CWS_CUDA_REAL(cuGraphChildGraphNodeGetGraph)(nodes[i], &child) == CUDA_SUCCESS)
            walk(sums, child, depth + 1);
    }
    free(nodes);
}

uint64_t cws_cuda_graph_memory(CUgraph graph)
{
    struct sums sums = {.live = CWS_MAP_OF(uint64_t)};
    walk(&sums, graph, 0);
    cws_map_deinit(&sums.live);
    return sums.most;
}
