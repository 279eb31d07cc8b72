/* graph_memory.h - the device memory that the nodes of a graph allocate. Threads: any. */
#ifndef CWS_SHIM_CUDA_GRAPH_MEMORY_H
#define CWS_SHIM_CUDA_GRAPH_MEMORY_H
#include "hooks.h"

/* Bytes that its nodes, in the order in which the driver lists them, have allocated at most at a time; what they do not
 * free stays. Without memory, or where the driver does not tell, of what is known. */
uint64_t cws_cuda_graph_memory(CUgraph graph);
#endif
