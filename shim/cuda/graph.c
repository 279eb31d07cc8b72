/* graph.c - CUDA graphs: finds the addresses that an executable graph names when it is made or changed, and holds their
 * ranges at each launch of it. Before the first launch room is made for the memory that its nodes allocate. */
#include "capture.h"
#include "graph_memory.h"
#include "layout.h"
#include "use.h"
#include "shim/say.h"
#include "store/base/lock.h"
#include "store/base/map.h"

#include <stdlib.h>

struct named { /* by one executable graph; does not change */
    atomic_uint refs;
    atomic_bool ran; /* the driver has the memory of its nodes */
    uint64_t memory; /* that they allocate */
    struct cws_cuda_list list;
};

static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_GRAPH); /* by_exec */
static struct cws_map by_exec = CWS_MAP_OF(struct named *);     /* a reference each; by executable graph */

static struct named *create_named(void)
{
    struct named *n = malloc(sizeof *n);
    if (n) {
        atomic_init(&n->refs, 1);
        atomic_init(&n->ran, false);
        n->memory = 0;
        cws_cuda_list_init(&n->list);
    }
    return n;
}

static void release(struct named *n)
{
    if (!n || atomic_fetch_sub(&n->refs, 1) != 1)
        return;
    cws_cuda_list_deinit(&n->list);
    free(n);
}

/* --- which executable graph names what ------------------------------------------------------------------ */

/* A reference for the caller, or NULL: names nothing. */
static struct named *get(CUgraphExec exec)
{
    cws_lock_take(&lock);
    struct named **at = cws_map_find(&by_exec, (uintptr_t)exec), *n = at ? *at : NULL;
    if (n)
        atomic_fetch_add(&n->refs, 1);
    cws_lock_drop(&lock);
    return n;
}

/* Takes the reference. NULL: the graph ends. False: no memory; n is still the caller's. */
static bool put(CUgraphExec exec, struct named *n)
{
    cws_lock_take(&lock);
    struct named **at = n ? cws_map_put(&by_exec, (uintptr_t)exec) : cws_map_find(&by_exec, (uintptr_t)exec);
    struct named *before = at ? *at : NULL;
    if (at && n)
        *at = n;
    else if (at)
        cws_map_remove(&by_exec, (uintptr_t)exec);
    cws_lock_drop(&lock);
    release(before);
    return at || !n;
}

/* --- walking ---------------------------------------------------------------------------------------------- */

static void add_copy(const CUDA_MEMCPY3D *c, struct cws_cuda_list *list)
{
    if (c->srcMemoryType == CU_MEMORYTYPE_DEVICE || c->srcMemoryType == CU_MEMORYTYPE_UNIFIED)
        cws_cuda_list_add(list, c->srcDevice + (c->srcZ * c->srcHeight + c->srcY) * c->srcPitch + c->srcXInBytes);
    if (c->dstMemoryType == CU_MEMORYTYPE_DEVICE || c->dstMemoryType == CU_MEMORYTYPE_UNIFIED)
        cws_cuda_list_add(list, c->dstDevice + (c->dstZ * c->dstHeight + c->dstY) * c->dstPitch + c->dstXInBytes);
}

static void add_kernel(const CUDA_KERNEL_NODE_PARAMS *p, CUkernel kernel, struct cws_cuda_list *list)
{
    cws_cuda_scan_params(p->func ? p->func : (CUfunction)kernel, p->kernelParams, p->extra, list);
}

static bool walk(CUgraph graph, unsigned depth, struct cws_cuda_list *list, struct cws_cuda_graph_memory *memory);

/* False: the addresses that it names cannot be found out. */
static bool add_node(CUgraphNode node, unsigned depth, struct cws_cuda_list *list, struct cws_cuda_graph_memory *memory)
{
    union {
        CUDA_KERNEL_NODE_PARAMS kernel;
        CUDA_MEMCPY3D copy;
        CUDA_MEMSET_NODE_PARAMS set;
        CUgraph graph;
    } p;
    CUgraphNodeType type;
    if (CWS_CUDA_REAL(cuGraphNodeGetType)(node, &type))
        return false;
    switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        if (CWS_CUDA_REAL(cuGraphKernelNodeGetParams_v2)(node, &p.kernel))
            return false;
        add_kernel(&p.kernel, p.kernel.kern, list);
        return true;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        if (CWS_CUDA_REAL(cuGraphMemcpyNodeGetParams)(node, &p.copy))
            return false;
        add_copy(&p.copy, list);
        return true;
    case CU_GRAPH_NODE_TYPE_MEMSET:
        if (CWS_CUDA_REAL(cuGraphMemsetNodeGetParams)(node, &p.set))
            return false;
        cws_cuda_list_add(list, p.set.dst);
        return true;
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return CWS_CUDA_REAL(cuGraphChildGraphNodeGetGraph)(node, &p.graph) == CUDA_SUCCESS &&
               walk(p.graph, depth + 1, list, memory);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC: cws_cuda_graph_memory_alloc(memory, node); return true;
    case CU_GRAPH_NODE_TYPE_MEM_FREE: cws_cuda_graph_memory_free(memory, node); return true;
    case CU_GRAPH_NODE_TYPE_CONDITIONAL: /* the driver does not give its bodies back */ return false;
    default: return true;
    }
}

/* Also behind a node that does not tell: memory counts there, too. */
static bool walk(CUgraph graph, unsigned depth, struct cws_cuda_list *list, struct cws_cuda_graph_memory *memory)
{
    size_t count = 0;
    bool whole = true;
    if (depth > 32 || CWS_CUDA_REAL(cuGraphGetNodes)(graph, NULL, &count))
        return false;
    if (!count)
        return true;
    CUgraphNode *nodes = calloc(count, sizeof *nodes);
    if (!nodes || CWS_CUDA_REAL(cuGraphGetNodes)(graph, nodes, &count)) {
        whole = false;
        count = 0;
    }
    for (size_t i = 0; i < count; i++)
        whole &= add_node(nodes[i], depth, list, memory);
    free(nodes);
    return whole;
}

/* Adds what a graph names. Bytes that its nodes allocate at most at a time. */
static uint64_t add_graph(CUgraph graph, struct cws_cuda_list *list)
{
    struct cws_cuda_graph_memory memory = {.live = CWS_MAP_OF(uint64_t)};
    bool whole = walk(graph, 0, list, &memory);
    list->everything |= !whole && atomic_load(&cws_cuda_high);
    cws_map_deinit(&memory.live);
    return memory.most;
}

/* The addresses that a graph names. NULL: no memory. */
static struct named *name_all(CUgraph graph)
{
    struct named *n = create_named();
    if (n)
        n->memory = add_graph(graph, &n->list);
    return n;
}

/* --- running -------------------------------------------------------------------------------------------- */

static CUresult begin_named(const struct named *n, CUstream order, struct cws_cuda_use *use)
{
    CUresult result;
    if (n->list.everything) {
        struct cws_cuda_list all;
        cws_cuda_list_init(&all);
        cws_cuda_list_add_everything(&all);
        result = cws_cuda_begin(order, &all, use);
        cws_cuda_list_deinit(&all);
    } else {
        result = cws_cuda_begin(order, &n->list, use);
    }
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        cws_shim_say("CUDA graph: all that its nodes use has to be resident at once, and does not fit the budget%s",
                     n->list.everything ? " (this graph's nodes do not tell, so that is everything)" : "");
    return result;
}

/* Runs `call` while all that it names is there. What its nodes allocate the driver takes at the first time: where room
 * cannot be made for that, it is over the budget until weights have gone. */
static CUresult run_named(struct named *n, CUstream order, CUresult (*call)(void *arg), void *arg)
{
    struct cws_cuda_use use = {.count = 0};
    bool first = n && n->memory && !atomic_exchange(&n->ran, true);
    struct cws_gpu *gpu = first ? cws_cuda_manager_if_open() : NULL;
    size_t room = gpu ? cws_gpu_graph_room(gpu, n->memory) : 0;
    CUresult result = n ? begin_named(n, order, &use) : CUDA_SUCCESS;
    if (result == CUDA_ERROR_OUT_OF_MEMORY && room) { /* not beside that room */
        cws_gpu_graph_ran(gpu, room);
        room = 0;
        result = begin_named(n, order, &use);
    }
    if (result == CUDA_SUCCESS) {
        result = call(arg);
        cws_cuda_end(&use, result == CUDA_SUCCESS);
    }
    if (gpu)
        cws_gpu_graph_ran(gpu, room);
    if (first && result != CUDA_SUCCESS) /* it has not: the next time is the first */
        atomic_store(&n->ran, false);
    return result;
}

/* Memory that a node copies has to be there when the graph is made, too. */
#define INSTANTIATE(call)                                                                                              \
    do {                                                                                                               \
        struct cws_cuda_use use;                                                                                       \
        struct named *n = name_all(graph);                                                                             \
        CUresult result = n ? begin_named(n, own, &use) : CUDA_ERROR_OUT_OF_MEMORY;                                    \
        if (result == CUDA_SUCCESS) {                                                                                  \
            result = call;                                                                                             \
            cws_cuda_end(&use, /* queued */ false);                                                                    \
        }                                                                                                              \
        return keep(result, n, out);                                                                                   \
    } while (0)

static CUresult keep(CUresult result, struct named *n, CUgraphExec *out)
{
    if (result == CUDA_SUCCESS && put(*out, n))
        return result;
    if (result == CUDA_SUCCESS) { /* no memory to note it: better no graph than one that is taken to name nothing */
        CWS_CUDA_REAL(cuGraphExecDestroy)(*out);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    release(n);
    return result;
}

CUresult cws_do_cuGraphInstantiate(cws_fn_cuGraphInstantiate real, CUstream own, CUgraphExec *out, CUgraph graph,
                                   CUgraphNode *node, char *text, size_t room)
{
    INSTANTIATE(real(out, graph, node, text, room));
}

CUresult cws_do_cuGraphInstantiate_v2(cws_fn_cuGraphInstantiate_v2 real, CUstream own, CUgraphExec *out, CUgraph graph,
                                      CUgraphNode *node, char *text, size_t room)
{
    INSTANTIATE(real(out, graph, node, text, room));
}

CUresult cws_do_cuGraphInstantiateWithFlags(cws_fn_cuGraphInstantiateWithFlags real, CUstream own, CUgraphExec *out,
                                            CUgraph graph, unsigned long long flags)
{
    INSTANTIATE(real(out, graph, flags));
}

CUresult cws_do_cuGraphInstantiateWithParams(cws_fn_cuGraphInstantiateWithParams real, CUstream own, CUgraphExec *out,
                                             CUgraph graph, void *params)
{
    INSTANTIATE(real(out, graph, params));
}

struct run {
    CUresult (*real)(CUgraphExec exec, CUstream stream);
    CUgraphExec exec;
    CUstream stream;
};
static CUresult run(void *arg)
{
    const struct run *r = arg;
    return r->real(r->exec, r->stream);
}

CUresult cws_do_cuGraphLaunch(cws_fn_cuGraphLaunch real, CUstream own, CUgraphExec exec, CUstream stream)
{
    CUstream order = cws_cuda_stream(stream, own);
    struct named *n = cws_cuda_is_capturing(order) ? NULL : get(exec);
    CUresult result = run_named(n, order, run, &(struct run){real, exec, stream});
    release(n);
    return result;
}

/* Nothing runs, but the driver may look at the memory that a node copies. */
CUresult cws_do_cuGraphUpload(cws_fn_cuGraphUpload real, CUstream own, CUgraphExec exec, CUstream stream)
{
    struct named *n = get(exec);
    CUresult result = run_named(n, cws_cuda_stream(stream, own), run, &(struct run){real, exec, stream});
    release(n);
    return result;
}

CUresult cws_do_cuGraphExecDestroy(cws_fn_cuGraphExecDestroy real, CUstream own, CUgraphExec exec)
{
    (void)own;
    put(exec, NULL);
    return real(exec);
}

/* --- changes ---------------------------------------------------------------------------------------------- */

/* The whole graph is replaced. */
static CUresult replace(CUresult result, CUgraphExec exec, CUgraph graph)
{
    if (result != CUDA_SUCCESS)
        return result;
    struct named *n = name_all(graph);
    if (n && put(exec, n))
        return result;
    release(n);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cws_do_cuGraphExecUpdate(cws_fn_cuGraphExecUpdate real, CUstream own, CUgraphExec exec, CUgraph graph,
                                  CUgraphNode *node, int *changed)
{
    (void)own;
    return replace(real(exec, graph, node, changed), exec, graph);
}

CUresult cws_do_cuGraphExecUpdate_v2(cws_fn_cuGraphExecUpdate_v2 real, CUstream own, CUgraphExec exec, CUgraph graph,
                                     void *changed)
{
    (void)own;
    return replace(real(exec, graph, changed), exec, graph);
}

/* One node changes: what it named before stays in the set, which so can only be too large. */
static CUresult extend(CUgraphExec exec, struct named *more)
{
    struct named *before = get(exec);
    if (before) {
        cws_cuda_list_add_all(&more->list, &before->list);
        more->memory = before->memory;
        atomic_store(&more->ran, atomic_load(&before->ran));
    }
    release(before);
    if (!more->list.lost && put(exec, more))
        return CUDA_SUCCESS;
    release(more);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

#define EXTEND(add, call)                                                                                              \
    do {                                                                                                               \
        struct named *n = create_named();                                                                              \
        (void)own;                                                                                                     \
        if (!n)                                                                                                        \
            return CUDA_ERROR_OUT_OF_MEMORY;                                                                           \
        struct cws_cuda_list *list = &n->list;                                                                         \
        if (params)                                                                                                    \
            add;                                                                                                       \
        CUresult result = extend(exec, n);                                                                             \
        return result == CUDA_SUCCESS ? call : result;                                                                 \
    } while (0)

CUresult cws_do_cuGraphExecKernelNodeSetParams(cws_fn_cuGraphExecKernelNodeSetParams real, CUstream own,
                                               CUgraphExec exec, CUgraphNode node,
                                               const CUDA_KERNEL_NODE_PARAMS *params)
{
    EXTEND(add_kernel(params, NULL, list), real(exec, node, params));
}

CUresult cws_do_cuGraphExecKernelNodeSetParams_v2(cws_fn_cuGraphExecKernelNodeSetParams_v2 real, CUstream own,
                                                  CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_KERNEL_NODE_PARAMS *params)
{
    EXTEND(add_kernel(params, params->kern, list), real(exec, node, params));
}

CUresult cws_do_cuGraphExecMemcpyNodeSetParams(cws_fn_cuGraphExecMemcpyNodeSetParams real, CUstream own,
                                               CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D *params,
                                               CUcontext context)
{
    EXTEND(add_copy(params, list), real(exec, node, params, context));
}

CUresult cws_do_cuGraphExecMemsetNodeSetParams(cws_fn_cuGraphExecMemsetNodeSetParams real, CUstream own,
                                               CUgraphExec exec, CUgraphNode node,
                                               const CUDA_MEMSET_NODE_PARAMS *params, CUcontext context)
{
    EXTEND(cws_cuda_list_add(list, params->dst), real(exec, node, params, context));
}

CUresult cws_do_cuGraphExecChildGraphNodeSetParams(cws_fn_cuGraphExecChildGraphNodeSetParams real, CUstream own,
                                                   CUgraphExec exec, CUgraphNode node, CUgraph params)
{
    EXTEND(add_graph(params, list), real(exec, node, params));
}

static void add_any(const CUgraphNodeParams *p, struct cws_cuda_list *list)
{
    if (p->type == CU_GRAPH_NODE_TYPE_KERNEL)
        add_kernel(&p->node.kernel, p->node.kernel.kern, list);
    else if (p->type == CU_GRAPH_NODE_TYPE_MEMCPY)
        add_copy(&p->node.memcpy.copyParams, list);
    else if (p->type == CU_GRAPH_NODE_TYPE_MEMSET)
        cws_cuda_list_add(list, p->node.memset.dst);
    else if (p->type == CU_GRAPH_NODE_TYPE_GRAPH)
        add_graph(p->node.graph.graph, list);
}

CUresult cws_do_cuGraphExecNodeSetParams(cws_fn_cuGraphExecNodeSetParams real, CUstream own, CUgraphExec exec,
                                         CUgraphNode node, CUgraphNodeParams *params)
{
    EXTEND(add_any(params, list), real(exec, node, params));
}
