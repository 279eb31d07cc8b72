/* state.h - the stand-in's insides. One lock guards everything; device memory itself is guarded by nothing, as on a
 * GPU. Functions named _locked are called with the lock held. Waits release it. */
#ifndef STANDIN_STATE_H
#define STANDIN_STATE_H
#include "standin.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>

/* The calls have no prototypes of ours: symbols.h lists their names, CUDA's driver API is their contract. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

#define DEVICES_MAX 2
#define ARENA_BYTES ((size_t)DEVICES_MAX * 64 << 30) /* addresses of all devices */

enum {
    ERROR_CONTEXT_IN_USE = 216,
    ERROR_ALREADY_REGISTERED = 712,
    ERROR_NOT_REGISTERED = 713,
    ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    ERROR_CAPTURE_INVALIDATED = 901,
    ERROR_CAPTURE_UNJOINED = 904,
    ERROR_ILLEGAL_STATE = 401,
    CAPTURE_STATUS_INVALIDATED = 2,
    NODE_KERNEL = 0,
    NODE_MEMCPY = 1,
    NODE_MEMSET = 2,
    NODE_HOST = 3,
    NODE_ALLOC = 10,
    NODE_FREE = 11,
    NODE_NONE = -1,
};

/* ---- objects.c: which pointers are live handles. */
enum object_kind {
    OBJECT_CONTEXT,
    OBJECT_STREAM,
    OBJECT_EVENT,
    OBJECT_MODULE,
    OBJECT_LIBRARY,
    OBJECT_FUNCTION,
    OBJECT_KERNEL,
    OBJECT_POOL,
    OBJECT_GRAPH,
    OBJECT_EXEC,
    OBJECT_NODE,
    OBJECT_KINDS
};
void object_add_locked(enum object_kind kind, void *object);
bool object_is_locked(enum object_kind kind, const void *object);
void object_remove_locked(enum object_kind kind, void *object);
size_t object_count_locked(enum object_kind kind);
void *object_any_locked(enum object_kind kind);                 /* one of them, or NULL */
void *object_index_locked(enum object_kind kind, size_t index); /* NULL: past the last */

/* ---- calls.c: the beginning of every call. */
struct call_site {
    const char *name;
    unsigned long count;
    struct call_site *next;
    bool listed;
};
enum {
    CALL_ANY_TIME = 1, /* needs no cuInit and works after an error */
    CALL_CONTEXT = 2,  /* needs a current context */
    CALL_UNSAFE = 4,   /* refused while a stream captures (CUDA calls these potentially unsafe) */
    CALL_AFTER_ERROR = 8,
};
CUresult call_enter(struct call_site *site, unsigned flags, unsigned long long a, unsigned long long b);
#define ENTER(name, flags, a, b)                                                                                       \
    static struct call_site site_ = {name, 0, NULL, false};                                                            \
    CUresult entered_ = call_enter(&site_, flags, (unsigned long long)(a), (unsigned long long)(b));                   \
    if (entered_ != CUDA_SUCCESS)                                                                                      \
    return entered_
#define API STANDIN_API CUresult
#define U64(pointer) ((unsigned long long)(uintptr_t)(pointer))
void calls_reset_locked(void);
void misuse_locked(const char *what);

/* ---- Physical memory and mappings: memory.c. */
struct piece {             /* physical memory: a part of the memory file */
    struct device *device; /* NULL: host memory */
    unsigned long long id;
    size_t offset, bytes;
    unsigned mappings;
    bool held; /* by a handle that was not released */
    CUmemAllocationProp prop;
};
struct mapping {
    CUdeviceptr begin;
    size_t bytes;
    struct piece *piece;
    int access[DEVICES_MAX]; /* CUmemAccess_flags of each device */
    struct chunk *chunk;     /* of a heap; NULL: made by cuMemMap */
};
/* Poisoned; NULL: no memory left. */
struct piece *piece_create_locked(size_t bytes, struct device *device);
void piece_drop_locked(struct piece *piece); /* frees it if nothing holds it */
CUdeviceptr addresses_take_locked(size_t bytes, size_t alignment, CUdeviceptr hint, bool internal);
void addresses_give_locked(CUdeviceptr begin);
bool mapping_add_locked(CUdeviceptr begin, struct piece *piece, size_t offset, size_t bytes, struct chunk *chunk);
void mapping_access_locked(struct mapping *mapping, const struct device *device, int access);
void mapping_remove_locked(CUdeviceptr begin);
struct mapping *mapping_at_locked(CUdeviceptr address);
bool in_arena(const void *address);
/* All bytes are mapped with at least this access for some device, or are host memory that devices may use. */
bool device_bytes_locked(CUdeviceptr address, size_t bytes, int access);
bool host_pinned_locked(const void *memory, size_t bytes);
void memory_init_locked(void);
void memory_reset_locked(void);

/* ---- Allocations: heap.c. */
struct block {
    CUdeviceptr at;
    size_t bytes, asked;
    enum { BLOCK_FREE, BLOCK_USED, BLOCK_FREEING } state;
    struct CUstream_st *stream; /* FREEING: in the order of this stream, after `sequence` */
    uint64_t sequence;
    struct chunk *chunk;
    struct block *prev, *next;
};
struct chunk {
    CUdeviceptr begin;
    size_t bytes;
    struct piece *piece;
    struct block *first;
    struct CUmemPoolHandle_st *heap;
    struct chunk *next;
};
struct CUmemPoolHandle_st {
    struct device *device;
    struct chunk *chunks;
    uint64_t threshold, reserved, used, reserved_high, used_high;
    size_t used_blocks;
};
struct block *block_at_locked(CUdeviceptr address); /* the block that contains it, in use; or NULL */
void heap_trim_locked(struct CUmemPoolHandle_st *heap, uint64_t keep);
void heaps_synchronised_locked(void); /* after a wait: pools give back what exceeds their threshold */
struct block *heap_take_locked(struct CUmemPoolHandle_st *heap, size_t bytes, struct CUstream_st *stream);
void heap_give_locked(struct block *block);
void heap_destroy_locked(struct CUmemPoolHandle_st *heap);
void heaps_begin_locked(struct device *device);
void heaps_end_locked(struct device *device);

/* ---- Streams: stream.c. */
struct mark { /* one recording of an event */
    unsigned references;
    struct CUstream_st *stream;
    uint64_t sequence;
    double seconds;
    struct CUgraph_st *capture;
};
struct dependency {
    struct CUstream_st *stream;
    uint64_t sequence;
};
struct operation {
    void (*run)(void *data);
    void *data; /* freed by drop(data) when the operation goes, by free if drop is NULL */
    void (*drop)(void *data);
    int node_type; /* as a node of a graph */
    struct CUfunc_st *function;
    uint64_t sequence;
    struct dependency *dependencies;
    size_t dependency_count;
    struct operation *next;
};
struct CUstream_st {
    struct CUctx_st *context; /* NULL: it ended */
    unsigned long owner;      /* the thread whose CU_STREAM_PER_THREAD it is; 0: none */
    unsigned references;
    unsigned flags;
    bool destroyed, blocking;
    uint64_t submitted, completed;
    uint64_t holds_at; /* no operation beyond this one begins */
    struct operation *first, *last;
    struct CUgraph_st *capture;
    bool capture_origin;
    struct dependency *pending; /* of the next operation */
    size_t pending_count;
    unsigned seed;
    pthread_t thread;
    struct CUstream_st *all_next;
};
struct CUevent_st {
    struct CUctx_st *context;
    unsigned flags;
    struct mark *mark;
};
/* Finds the stream of a handle as the calling thread means it; NULL: not a stream. */
struct CUstream_st *stream_of_locked(CUstream handle);
/* Queues the operation (or appends it to the stream's capture). Takes run, data and drop; on failure, too. */
CUresult stream_submit_locked(struct CUstream_st *stream, void (*run)(void *), void *data, void (*drop)(void *),
                              int node_type);
CUresult stream_submit_kernel_locked(struct CUstream_st *stream, void (*run)(void *), void *data, void (*drop)(void *),
                                     struct CUfunc_st *function);
CUresult stream_wait_locked(struct CUstream_st *stream, uint64_t sequence);
CUresult streams_wait_locked(const struct CUctx_st *context); /* for its streams; NULL: for all */
void stream_depend_locked(struct CUstream_st *stream, struct CUstream_st *on, uint64_t sequence);
void stream_reference_drop_locked(struct CUstream_st *stream);
struct CUstream_st *stream_create_locked(struct CUctx_st *context, unsigned flags);
void stream_close_locked(struct CUstream_st *stream);
void streams_let_go_locked(const struct CUctx_st *context); /* those that are held; NULL: all */
void streams_end_locked(struct CUctx_st *context);          /* drains them; handles and events are gone */
void streams_join_locked(struct CUctx_st *context);         /* ends the threads */
bool stream_busy_locked(const struct CUstream_st *stream);
void mark_drop_locked(struct mark *mark);

/* ---- Graphs: graph.c. */
struct CUgraphNode_st {
    int type;
    void (*run)(void *data);
    void *data;
    void (*drop)(void *data);
    struct CUfunc_st *function;
    struct CUgraphNode_st *next;
};
struct node_list { /* shared by a graph and what was instantiated from it */
    struct CUctx_st *context;
    unsigned references;
    struct CUgraphNode_st *first, *last;
    size_t count;
    struct block **blocks;
    size_t block_count;
    size_t unseen; /* bytes of them, until a graph with these nodes is launched: the driver takes memory then */
};
struct CUgraph_st {
    struct node_list *nodes;
    int mode; /* of the capture that makes it */
    bool invalid, done;
    pthread_t thread;
};
struct CUgraphExec_st {
    struct node_list *nodes;
};
CUresult capture_append_locked(struct CUgraph_st *graph, struct operation *operation);
CUresult capture_alloc_locked(struct CUgraph_st *graph, size_t bytes, CUdeviceptr *address);
bool capture_owns_locked(const struct CUgraph_st *graph, CUdeviceptr address);
/* SUCCESS, or the error for a potentially unsafe call, invalidating the captures */
CUresult capture_refuse_locked(void);
/* for the legacy stream while a blocking one captures */
CUresult capture_legacy_locked(const struct CUstream_st *stream);
void graphs_end_locked(const struct CUctx_st *context);

/* ---- Modules: module.c. */
struct launch { /* data of a kernel's operation */
    const struct standin_kernel *kernel;
    struct CUfunc_st *function;
    struct CUkern_st *kern;
    unsigned grid[3], block[3], shared;
    void *params[STANDIN_PARAMS_MAX];
    unsigned char bytes[];
};
void modules_end_locked(const struct CUctx_st *context);
void libraries_end_locked(void);
/* what a fatbin loads as: standin.h */

/* ---- symbols.c: as cuGetProcAddress finds it; NULL: not there. */
void *proc_address(const char *symbol, int version, uint64_t flags);

/* ---- Contexts: context.c. Each has streams, events, modules and graphs of its own. */
struct CUctx_st {
    struct device *device;
    bool primary;
    unsigned long number; /* no other one has or had it */
    struct CUstream_st *legacy;
    size_t workers; /* threads of its streams */
};
bool context_current_locked(void);
/* The calling thread's; if it has none, the primary one of the first device, or NULL. */
CUcontext context_handle_locked(void);
CUcontext context_add_locked(struct device *device, bool primary);
/* Ends all that is in it, and itself; with the last one of a device, its allocations and pools. Memory made by
 * cuMemCreate, and its mappings, stay. */
void context_end_locked(CUcontext context);
static inline bool stream_is_legacy(const struct CUstream_st *stream) { return stream == stream->context->legacy; }

/* ---- Devices: device.c. */
struct device {
    size_t used; /* physical bytes */
    struct CUctx_st *primary;
    unsigned primary_retained;
    struct CUmemPoolHandle_st plain, *default_pool, *current_pool, graph_pool;
    size_t graph_unseen; /* bytes of graph_pool that no launch has asked for yet */
};
struct device *device_of(CUdevice ordinal); /* NULL: there is none */
int device_capability(int which);           /* 0: major, 1: minor */
CUdevice device_ordinal(const struct device *device);
void devices_begin_locked(void);
void devices_end_locked(void);

struct standin_state {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool initialised;
    int pid;
    CUresult sticky;
    size_t device_bytes; /* of each */
    unsigned device_count;
    struct device devices[DEVICES_MAX];
    unsigned char *arena;
    int memory_fd;
    unsigned delay_us, seed;
    struct CUstream_st *streams;
};
extern struct standin_state standin;
static inline void lock(void) { pthread_mutex_lock(&standin.lock); }
static inline CUresult unlock(CUresult result)
{
    pthread_mutex_unlock(&standin.lock);
    return result;
}
void *take_memory(size_t bytes); /* zeroed; the test's own memory running out ends it */
/* Set while a stream's thread is inside an operation: where a fault in device memory goes. */
extern _Thread_local sigjmp_buf *volatile fault_return;
void fault_handler_install(void);
#endif
