/* graph_memory.h - the device memory that the nodes of a graph allocate, told node by node (graph.c). Threads: one. */
#ifndef CWS_SHIM_CUDA_GRAPH_MEMORY_H
#define CWS_SHIM_CUDA_GRAPH_MEMORY_H
#include "hooks.h"
#include "store/base/map.h"

struct cws_cuda_graph_memory { /* {.live = CWS_MAP_OF(uint64_t)}; end with cws_map_deinit(&live) */
    struct cws_map live;       /* what was not freed, by address: bytes */
    uint64_t now, most;        /* bytes allocated; at most at a time, in the order in which nodes are told */
};

/* A node of type MEM_ALLOC, MEM_FREE. Where the driver does not tell, or without memory, it is left out. */
void cws_cuda_graph_memory_alloc(struct cws_cuda_graph_memory *m, CUgraphNode node);
void cws_cuda_graph_memory_free(struct cws_cuda_graph_memory *m, CUgraphNode node);
#endif
