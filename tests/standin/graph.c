/* graph.c - capture and graphs. A graph is the list of what was captured, in the order of capture: one of the orders
 * that the program allowed. Memory allocated in a capture belongs to the graph until it and all made from it are
 * gone. */
#include "state.h"

#include <stdlib.h>
#include <string.h>

/* CUstreamCaptureMode: what potentially unsafe calls of this thread look at */
static _Thread_local int thread_mode;

static void see_blocks_locked(struct node_list *list)
{
    if (list->unseen)
        list->context->device->graph_unseen -= list->unseen;
    list->unseen = 0;
}

static void nodes_drop_locked(struct node_list *list)
{
    if (--list->references > 0)
        return;
    while (list->first) {
        struct CUgraphNode_st *node = list->first;
        list->first = node->next;
        object_remove_locked(OBJECT_NODE, node);
        if (node->drop)
            node->drop(node->data);
        else
            free(node->data);
        free(node);
    }
    see_blocks_locked(list);
    for (size_t i = 0; i < list->block_count; i++)
        heap_give_locked(list->blocks[i]);
    free(list->blocks);
    free(list);
}

static void node_append_locked(struct node_list *list, const struct operation *operation)
{
    struct CUgraphNode_st *node = take_memory(sizeof *node);
    node->type = operation->node_type;
    node->run = operation->run;
    node->data = operation->data;
    node->drop = operation->drop;
    node->function = operation->function;
    if (list->last)
        list->last->next = node;
    else
        list->first = node;
    list->last = node;
    list->count++;
    object_add_locked(OBJECT_NODE, node);
}

CUresult capture_append_locked(struct CUgraph_st *graph, struct operation *operation)
{
    if (graph->invalid) {
        if (operation->drop)
            operation->drop(operation->data);
        else
            free(operation->data);
        return ERROR_CAPTURE_INVALIDATED;
    }
    node_append_locked(graph->nodes, operation);
    return CUDA_SUCCESS;
}

struct block_data { /* of a node that allocates or frees */
    CUdeviceptr at;
    size_t bytes;
};
static struct block_data *block_data(CUdeviceptr at, size_t bytes)
{
    struct block_data *data = take_memory(sizeof *data);
    data->at = at;
    data->bytes = bytes;
    return data;
}

CUresult capture_alloc_locked(struct CUgraph_st *graph, size_t bytes, CUdeviceptr *address)
{
    struct node_list *list = graph->nodes;
    struct block *block = heap_take_locked(&list->context->device->graph_pool, bytes, NULL);
    if (!block)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct block **blocks = realloc(list->blocks, (list->block_count + 1) * sizeof(struct block *));
    if (!blocks)
        abort();
    list->blocks = blocks;
    list->blocks[list->block_count++] = block;
    list->unseen += block->bytes;
    list->context->device->graph_unseen += block->bytes;
    node_append_locked(list, &(struct operation){.node_type = NODE_ALLOC, .data = block_data(block->at, block->bytes)});
    *address = block->at;
    return CUDA_SUCCESS;
}

bool capture_owns_locked(const struct CUgraph_st *graph, CUdeviceptr address)
{
    for (size_t i = 0; i < graph->nodes->block_count; i++)
        if (graph->nodes->blocks[i]->at == address) {
            node_append_locked(graph->nodes,
                               &(struct operation){.node_type = NODE_FREE, .data = block_data(address, 0)});
            return true;
        }
    return false;
}

static bool forbids(const struct CUgraph_st *graph)
{
    if (graph->done || graph->mode == CU_STREAM_CAPTURE_MODE_RELAXED || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return false;
    if (pthread_equal(graph->thread, pthread_self()))
        return true;
    return graph->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

CUresult capture_refuse_locked(void)
{
    CUresult result = CUDA_SUCCESS;
    struct CUgraph_st *graph;
    for (size_t i = 0; (graph = object_index_locked(OBJECT_GRAPH, i)) != NULL; i++)
        if (forbids(graph)) {
            graph->invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    return result;
}

CUresult capture_legacy_locked(const struct CUstream_st *stream)
{
    if (!stream_is_legacy(stream))
        return CUDA_SUCCESS;
    for (struct CUstream_st *other = standin.streams; other; other = other->all_next)
        if (other->capture && other->blocking && other->context == stream->context) {
            other->capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    return CUDA_SUCCESS;
}

static struct CUgraph_st *graph_create_locked(struct CUctx_st *context)
{
    struct CUgraph_st *graph = take_memory(sizeof *graph);
    graph->nodes = take_memory(sizeof *graph->nodes);
    graph->nodes->context = context;
    graph->nodes->references = 1;
    graph->done = true;
    object_add_locked(OBJECT_GRAPH, graph);
    return graph;
}

static void capture_forget_locked(const struct CUgraph_st *graph)
{
    for (struct CUstream_st *stream = standin.streams; stream; stream = stream->all_next)
        if (stream->capture == graph)
            stream->capture = NULL;
}

static void graph_destroy_locked(struct CUgraph_st *graph)
{
    object_remove_locked(OBJECT_GRAPH, graph);
    nodes_drop_locked(graph->nodes);
    free(graph);
}

static void exec_destroy_locked(struct CUgraphExec_st *exec)
{
    object_remove_locked(OBJECT_EXEC, exec);
    nodes_drop_locked(exec->nodes);
    free(exec);
}

/* One that was made where no context was current goes with any. */
static bool ends_with(const struct node_list *nodes, const struct CUctx_st *context)
{
    return !nodes->context || nodes->context == context;
}

void graphs_end_locked(const struct CUctx_st *context)
{
    struct CUgraph_st *graph;
    struct CUgraphExec_st *exec;
    for (size_t i = 0; (graph = object_index_locked(OBJECT_GRAPH, i)) != NULL;)
        if (ends_with(graph->nodes, context)) { /* another one takes its place */
            capture_forget_locked(graph);
            graph_destroy_locked(graph);
        } else {
            i++;
        }
    for (size_t i = 0; (exec = object_index_locked(OBJECT_EXEC, i)) != NULL;)
        if (ends_with(exec->nodes, context))
            exec_destroy_locked(exec);
        else
            i++;
}

/* ---- The calls. */
API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode)
{
    ENTER("cuStreamBeginCapture_v2", 0, U64(handle), mode);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || mode < 0 || mode > 2)
        return unlock(stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE);
    if (stream_is_legacy(stream))
        return unlock(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (stream->capture)
        return unlock(ERROR_ILLEGAL_STATE);
    stream->capture = graph_create_locked(stream->context);
    stream->capture->done = false;
    stream->capture->mode = mode;
    stream->capture->thread = pthread_self();
    stream->capture_origin = true;
    return unlock(CUDA_SUCCESS);
}

API cuStreamEndCapture(CUstream handle, CUgraph *out)
{
    ENTER("cuStreamEndCapture", 0, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !stream->capture || !stream->capture_origin || !out)
        return unlock(stream && out ? ERROR_ILLEGAL_STATE : CUDA_ERROR_INVALID_VALUE);
    struct CUgraph_st *graph = stream->capture;
    capture_forget_locked(graph);
    stream->capture_origin = false;
    graph->done = true;
    *out = graph;
    if (!graph->invalid)
        return unlock(CUDA_SUCCESS);
    *out = NULL;
    graph_destroy_locked(graph);
    return unlock(ERROR_CAPTURE_INVALIDATED);
}

API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status)
{
    ENTER("cuStreamIsCapturing", 0, U64(handle), 0);
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !status)
        return unlock(stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE);
    CUresult result = capture_legacy_locked(stream);
    *status = !stream->capture           ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->invalid ? CAPTURE_STATUS_INVALIDATED
                                         : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return unlock(result);
}

API cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, unsigned long long *id, CUgraph *graph,
                              const CUgraphNode **dependencies, size_t *count)
{
    CUresult result = cuStreamIsCapturing(handle, status);
    if (result != CUDA_SUCCESS)
        return result;
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (id)
        *id = U64(stream->capture);
    if (graph)
        *graph = stream->capture;
    if (dependencies)
        *dependencies = stream->capture ? &stream->capture->nodes->last : NULL;
    if (count)
        *count = stream->capture && stream->capture->nodes->last;
    return unlock(CUDA_SUCCESS);
}

API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    ENTER("cuThreadExchangeStreamCaptureMode", CALL_AFTER_ERROR, mode ? *mode : 0, 0);
    if (!mode || *mode < 0 || *mode > 2)
        return CUDA_ERROR_INVALID_VALUE;
    int old = thread_mode;
    thread_mode = *mode;
    *mode = old;
    return CUDA_SUCCESS;
}

static CUresult instantiate(CUgraphExec *out, CUgraph graph)
{
    lock();
    if (!out || !object_is_locked(OBJECT_GRAPH, graph) || !graph->done)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    *out = take_memory(sizeof **out);
    (*out)->nodes = graph->nodes;
    graph->nodes->references++;
    object_add_locked(OBJECT_EXEC, *out);
    return unlock(CUDA_SUCCESS);
}

API cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    ENTER("cuGraphInstantiateWithFlags", 0, U64(graph), flags);
    return instantiate(exec, graph);
}

API cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, void *params)
{
    ENTER("cuGraphInstantiateWithParams", 0, U64(graph), U64(params));
    return instantiate(exec, graph);
}

static void graph_run(void *data)
{
    for (struct CUgraphNode_st *node = ((struct node_list *)data)->first; node; node = node->next)
        if (node->run)
            node->run(node->data);
}
static void graph_drop(void *data) { nodes_drop_locked(data); }

API cuGraphLaunch(CUgraphExec exec, CUstream handle)
{
    ENTER("cuGraphLaunch", 0, U64(exec), U64(handle));
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream || !object_is_locked(OBJECT_EXEC, exec))
        return unlock(stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE);
    exec->nodes->references++;
    see_blocks_locked(exec->nodes);
    return unlock(stream_submit_locked(stream, graph_run, exec->nodes, graph_drop, 4));
}

API cuGraphCreate(CUgraph *graph, unsigned flags)
{
    ENTER("cuGraphCreate", 0, flags, 0);
    if (!graph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    lock();
    *graph = graph_create_locked(context_handle_locked());
    return unlock(CUDA_SUCCESS);
}

API cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    ENTER("cuGraphGetNodes", 0, U64(graph), 0);
    lock();
    if (!object_is_locked(OBJECT_GRAPH, graph) || !count)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    size_t room = nodes ? *count : 0, i = 0;
    for (CUgraphNode node = graph->nodes->first; node && i < room; node = node->next)
        nodes[i++] = node;
    for (; nodes && i < room; i++)
        nodes[i] = NULL;
    *count = graph->nodes->count;
    return unlock(CUDA_SUCCESS);
}

API cuGraphNodeGetType(CUgraphNode node, int *type)
{
    ENTER("cuGraphNodeGetType", 0, U64(node), 0);
    lock();
    bool good = type && object_is_locked(OBJECT_NODE, node);
    if (good)
        *type = node->type;
    return unlock(good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

struct kernel_node_params { /* CUDA_KERNEL_NODE_PARAMS_v2 */
    CUfunction function;
    unsigned grid[3], block[3], shared_bytes;
    void **params;
    void **extra;
    CUkernel kernel;
    CUcontext context;
};

API cuGraphKernelNodeGetParams_v2(CUgraphNode node, struct kernel_node_params *out)
{
    ENTER("cuGraphKernelNodeGetParams_v2", 0, U64(node), 0);
    lock();
    if (!out || !object_is_locked(OBJECT_NODE, node) || node->type != NODE_KERNEL)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    struct launch *launch = node->data;
    memset(out, 0, sizeof *out);
    out->function = launch->function;
    out->kernel = launch->kern;
    memcpy(out->grid, launch->grid, sizeof out->grid);
    memcpy(out->block, launch->block, sizeof out->block);
    out->shared_bytes = launch->shared;
    out->params = launch->params;
    out->context = context_handle_locked();
    return unlock(CUDA_SUCCESS);
}

struct alloc_node_params { /* CUDA_MEM_ALLOC_NODE_PARAMS */
    unsigned char props[88];
    const void *access;
    size_t access_count, bytes;
    CUdeviceptr at;
};

API cuGraphMemAllocNodeGetParams(CUgraphNode node, struct alloc_node_params *out)
{
    ENTER("cuGraphMemAllocNodeGetParams", 0, U64(node), 0);
    lock();
    if (!out || !object_is_locked(OBJECT_NODE, node) || node->type != NODE_ALLOC)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    const struct block_data *data = node->data;
    memset(out, 0, sizeof *out);
    out->bytes = data->bytes;
    out->at = data->at;
    return unlock(CUDA_SUCCESS);
}

API cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *out)
{
    ENTER("cuGraphMemFreeNodeGetParams", 0, U64(node), 0);
    lock();
    if (!out || !object_is_locked(OBJECT_NODE, node) || node->type != NODE_FREE)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    *out = ((const struct block_data *)node->data)->at;
    return unlock(CUDA_SUCCESS);
}

API cuGraphExecDestroy(CUgraphExec exec)
{
    ENTER("cuGraphExecDestroy", 0, U64(exec), 0);
    lock();
    if (!object_is_locked(OBJECT_EXEC, exec))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    exec_destroy_locked(exec);
    return unlock(CUDA_SUCCESS);
}

API cuGraphDestroy(CUgraph graph)
{
    ENTER("cuGraphDestroy", 0, U64(graph), 0);
    lock();
    if (!object_is_locked(OBJECT_GRAPH, graph) || !graph->done)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    graph_destroy_locked(graph);
    return unlock(CUDA_SUCCESS);
}
