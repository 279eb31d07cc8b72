/* copy.c - copies of one run of bytes. The first copy into a range or a part of one, from a view of a store that nobody
 * wrote to, binds these bytes instead of copying; so does one from another range that is bound. From ordinary memory it
 * may be adopted. */
#include "capture.h"
#include "copy.h"
#include "uvm/cuda/file.h"
#include "uvm/host/view.h"
#include "content.h"
#include "shim/state.h"
#include "shim/libc/stores.h"

#include <fnmatch.h>
#include <string.h>

/* --- binding --------------------------------------------------------------------------------------- */

bool cws_cuda_is_pinned(const char *name)
{
    const char *pin = cws_shim_options()->pin;
    char glob[256];
    while (*pin) {
        size_t len = strcspn(pin, ",");
        if (len && len < sizeof glob) {
            memcpy(glob, pin, len);
            glob[len] = '\0';
            if (fnmatch(glob, name, 0) == 0)
                return true;
        }
        pin += len + (pin[len] == ',');
    }
    return false;
}

/* A weight that CODEC_PIN names is on the device from now on: it may be that no launch ever names it. Where it does not
 * fit, a line says so, and the kernel that reaches it fails as without CODEC_PIN. */
static void pin(struct cws_gpu *gpu, const struct cws_cuda_copy *c)
{
    struct cws_gpu_use use;
    cws_gpu_pin(gpu, c->to);
    if (cws_gpu_begin(gpu, c->order, &c->to, 1, &use) == CUDA_SUCCESS)
        cws_gpu_end(gpu, &use, /* queued */ false);
}

static void note_bound(struct cws_store *store, uint64_t offset, const struct cws_cuda_copy *c, struct cws_gpu *gpu)
{
    const struct cws_tensor_info *tensor = cws_store_tensor_at(store, offset);
    cws_stores_note_bound(store, c->bytes);
    cws_cuda_content_keep(store);
    if (tensor && cws_cuda_is_pinned(tensor->name))
        pin(gpu, c);
}

/* Is it worth looking at the source? Only if the copy stays in a range. */
static bool is_in_range(const struct cws_cuda_copy *c, struct cws_gpu *gpu)
{
    CUdeviceptr base;
    size_t bytes;
    return c->bytes >= CWS_GPU_RANGE_MIN && c->from && cws_gpu_extent(gpu, c->to, &base, &bytes) &&
           c->bytes <= bytes - (c->to - base) && !cws_cuda_is_capturing(c->order);
}

/* A copy from an ordinary file's mapping binds. */
static bool bind_file(const struct cws_cuda_copy *c, struct cws_gpu *gpu)
{
    uint64_t offset;
    struct cws_gpu_file *file = cws_gpu_file_of((const void *)(uintptr_t)c->from, c->bytes, &offset);
    if (!file)
        return false;
    bool bound = cws_gpu_bind_file(gpu, c->to, c->bytes, c->order, file, offset, (const void *)(uintptr_t)c->from);
    if (bound && cws_cuda_is_pinned(cws_gpu_file_tensor(file, offset)))
        pin(gpu, c);
    cws_gpu_file_release(file);
    return bound;
}

enum memory { MEMORY_PAGEABLE, MEMORY_PINNED, MEMORY_OTHER };

/* What the copy's source is. A view counts as other memory. */
static enum memory memory_of(const struct cws_cuda_copy *c)
{
    unsigned type = 0;
    if (cws_cuda_owner(c->from) || cws_view_overlaps((const void *)(uintptr_t)c->from, c->bytes))
        return MEMORY_OTHER;
    CUresult result = CWS_CUDA_REAL(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, c->from);
    if (result == CUDA_ERROR_INVALID_VALUE)
        return MEMORY_PAGEABLE;
    return result == CUDA_SUCCESS && type == CU_MEMORYTYPE_HOST ? MEMORY_PINNED : MEMORY_OTHER;
}

/* Is this host memory, and what is there now what the copy would bring? Work of the device may still have to write to
 * pinned memory: all that the copy comes after is awaited. Nobody but processors writes to pageable memory. */
static bool is_settled(const struct cws_cuda_copy *c)
{
    enum memory memory = memory_of(c);
    return memory == MEMORY_PAGEABLE ||
           (memory == MEMORY_PINNED && cws_driver_wait(cws_cuda_driver(), c->order) == CUDA_SUCCESS);
}

/* The same, but a program that copies from pinned memory does not wait for the stream, so nothing is awaited then. What
 * pageable memory brings the driver has read when it returns, behind all that comes before: a host function on the
 * stream may write to it. */
static bool is_settled_now(const struct cws_cuda_copy *c)
{
    const struct cws_driver *d = cws_cuda_driver();
    enum memory memory = memory_of(c);
    bool exchanged;
    if (memory != MEMORY_PINNED)
        return memory == MEMORY_PAGEABLE && cws_driver_wait(d, c->order) == CUDA_SUCCESS;
    CUstreamCaptureMode mode = cws_driver_relax(d, &exchanged);
    CUresult result = d->stream_query(c->order);
    cws_driver_restore(d, mode, exchanged);
    return result == CUDA_SUCCESS;
}

/* The range gets the bytes as they are now. */
static bool adopt(const struct cws_cuda_copy *c, struct cws_gpu *gpu)
{
    return cws_gpu_adopt_wants(gpu, c->to, c->bytes, c->order, cws_stores_unbound_bytes()) && is_settled_now(c) &&
           cws_gpu_adopt(gpu, c->to, c->bytes, c->order, (const void *)(uintptr_t)c->from);
}

/* What a copy brings, if that is known: bytes of a store, with a reference. */
struct origin {
    struct cws_store *store; /* NULL: it is not known */
    uint64_t offset;
};

static bool bind_origin(const struct cws_cuda_copy *c, struct cws_gpu *gpu, const struct origin *o)
{
    bool bound = cws_gpu_bind(gpu, c->to, c->bytes, c->order, o->store, o->offset);
    if (bound)
        note_bound(o->store, o->offset, c, gpu);
    return bound;
}

/* Binds a copy from memory that a tensor was read or copied to. */
static bool bind_content(const struct cws_cuda_copy *c, struct cws_gpu *gpu, struct origin *o)
{
    return cws_cuda_content_has(c->bytes) && is_settled(c) &&
           cws_cuda_content_find((const void *)(uintptr_t)c->from, c->bytes, &o->store, &o->offset) &&
           bind_origin(c, gpu, o);
}

/* Binds a copy from a view of a store. */
static bool bind_view(const struct cws_cuda_copy *c, struct cws_gpu *gpu, struct origin *o)
{
    return !cws_cuda_is_capturing(c->order) &&
           cws_view_locate((const void *)(uintptr_t)c->from, c->bytes, &o->store, &o->offset) && bind_origin(c, gpu, o);
}

/* True: these bytes are bound. False: they are to be copied; *o: what they are, if that is known. */
static bool bind_copy(const struct cws_cuda_copy *c, struct cws_gpu *gpu, struct origin *o)
{
    if (bind_view(c, gpu, o))
        return true;
    if (o->store || !is_in_range(c, gpu))
        return false;
    if (cws_gpu_may_bind(gpu, c->to, c->bytes) && (bind_file(c, gpu) || bind_content(c, gpu, o)))
        return true;
    return !o->store && adopt(c, gpu);
}

/* --- views as host memory ----------------------------------------------------------------------------- */

static CUresult held(const void *addr, size_t bytes, bool for_write)
{
    struct cws_error err = {0};
    int code = cws_view_hold(addr, bytes, for_write, &err);
    /* The pager has said what cannot be read. */
    return code == 0                  ? CUDA_SUCCESS
           : code == -14 /* EFAULT */ ? CUDA_ERROR_INVALID_VALUE
                                      : 304 /* CUDA_ERROR_OPERATING_SYSTEM */;
}

CUresult cws_cuda_with_view(const void *addr, size_t bytes, bool for_write, CUresult (*call)(void *arg), void *arg)
{
    CUresult result = held(addr, bytes, for_write);
    if (result != CUDA_SUCCESS)
        return result;
    result = call(arg);
    cws_view_unhold(addr, bytes);
    return result;
}

/* Memory of a view is pageable, so the driver is done with it when the call returns: a piece need be held no longer. */
static CUresult copy_view(const struct cws_cuda_copy *c, bool into)
{
    CUdeviceptr host = into ? c->to : c->from;
    size_t most = cws_view_hold_max();
    for (size_t at = 0; at < c->bytes;) {
        size_t bytes = c->bytes - at < most ? c->bytes - at : most;
        const void *addr = (const void *)(uintptr_t)(host + at);
        CUresult result = held(addr, bytes, into);
        if (result != CUDA_SUCCESS)
            return result;
        result = c->call(c, at, bytes);
        cws_view_unhold(addr, bytes);
        if (result != CUDA_SUCCESS)
            return result;
        at += bytes;
    }
    return CUDA_SUCCESS;
}

static CUresult copy_all(const struct cws_cuda_copy *c)
{
    if (c->from && c->bytes && cws_view_overlaps((const void *)(uintptr_t)c->from, c->bytes))
        return copy_view(c, /* into */ false);
    if (c->to && c->bytes && cws_view_overlaps((const void *)(uintptr_t)c->to, c->bytes))
        return copy_view(c, /* into */ true);
    return c->call(c, 0, c->bytes);
}

/* --- any copy -------------------------------------------------------------------------------------------- */

CUresult cws_cuda_copy_run(const struct cws_cuda_copy *c)
{
    struct cws_gpu *gpu = cws_cuda_owner(c->to);
    struct origin origin = {.store = NULL};
    bool in_device = gpu && c->bytes && cws_cuda_owner(c->from) == gpu && !cws_cuda_is_capturing(c->order);
    if (in_device && cws_gpu_carry(gpu, c->to, c->from, c->bytes, c->order))
        return CUDA_SUCCESS;
    if (gpu && c->bytes && !in_device && bind_copy(c, gpu, &origin)) {
        cws_store_close(origin.store);
        return CUDA_SUCCESS;
    }
    if (c->bytes >= 8 && c->bytes <= CWS_CUDA_SCAN_BYTES &&
        atomic_load_explicit(&cws_cuda_high, memory_order_relaxed) &&
        (c->from_host || (c->from && cws_cuda_is_host(c->from))))
        cws_cuda_scan_copy((const void *)(uintptr_t)c->from, c->bytes);
    CUresult result = CWS_CUDA_AROUND(c->order, c->to, c->from, copy_all(c));
    if (origin.store && result == CUDA_SUCCESS)
        cws_gpu_copied(gpu, c->to, c->bytes, origin.store, origin.offset);
    if (in_device && result == CUDA_SUCCESS)
        cws_gpu_carried(gpu, c->to, c->from, c->bytes);
    cws_store_close(origin.store);
    return result;
}

/* One driver call: how it is made for a part, and the hook. */
#define COPY(symbol, part, parameters, ...)                                                                            \
    static CUresult part_##symbol(const struct cws_cuda_copy *c, size_t at, size_t bytes)                              \
    {                                                                                                                  \
        cws_fn_##symbol real = (cws_fn_##symbol)c->real;                                                               \
        return part;                                                                                                   \
    }                                                                                                                  \
    CUresult cws_do_##symbol(cws_fn_##symbol real, CUstream own, CWS_BARE parameters)                                  \
    {                                                                                                                  \
        const struct cws_cuda_copy c = {.call = part_##symbol, .real = (void *)real, .bytes = bytes, __VA_ARGS__};     \
        return cws_cuda_copy_run(&c);                                                                                  \
    }
#define HOST(address) ((void *)(uintptr_t)(address))
#define ADDRESS(pointer) ((uintptr_t)(pointer))

COPY(cuMemcpy, real(c->to + at, c->from + at, bytes), (CUdeviceptr to, CUdeviceptr from, size_t bytes), .to = to,
     .from = from, .order = own)
COPY(cuMemcpyAsync, real(c->to + at, c->from + at, bytes, c->stream),
     (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream), .to = to, .from = from,
     .order = cws_cuda_stream(stream, own), .stream = stream)
COPY(cuMemcpyPeer, real(c->to + at, c->to_context, c->from + at, c->from_context, bytes),
     (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes), .to = to,
     .from = from, .order = own, .to_context = to_context, .from_context = from_context)
COPY(cuMemcpyPeerAsync, real(c->to + at, c->to_context, c->from + at, c->from_context, bytes, c->stream),
     (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes, CUstream stream),
     .to = to, .from = from, .order = cws_cuda_stream(stream, own), .stream = stream, .to_context = to_context,
     .from_context = from_context)
COPY(cuMemcpyHtoD_v2, real(c->to + at, HOST(c->from + at), bytes), (CUdeviceptr to, const void *from, size_t bytes),
     .to = to, .from = ADDRESS(from), .order = own, .from_host = from)
COPY(cuMemcpyHtoDAsync_v2, real(c->to + at, HOST(c->from + at), bytes, c->stream),
     (CUdeviceptr to, const void *from, size_t bytes, CUstream stream), .to = to, .from = ADDRESS(from),
     .order = cws_cuda_stream(stream, own), .stream = stream, .from_host = from)
COPY(cuMemcpyDtoH_v2, real(HOST(c->to + at), c->from + at, bytes), (void *to, CUdeviceptr from, size_t bytes),
     .to = ADDRESS(to), .from = from, .order = own)
COPY(cuMemcpyDtoHAsync_v2, real(HOST(c->to + at), c->from + at, bytes, c->stream),
     (void *to, CUdeviceptr from, size_t bytes, CUstream stream), .to = ADDRESS(to), .from = from,
     .order = cws_cuda_stream(stream, own), .stream = stream)
COPY(cuMemcpyDtoD_v2, real(c->to + at, c->from + at, bytes), (CUdeviceptr to, CUdeviceptr from, size_t bytes), .to = to,
     .from = from, .order = own)
COPY(cuMemcpyDtoDAsync_v2, real(c->to + at, c->from + at, bytes, c->stream),
     (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream), .to = to, .from = from,
     .order = cws_cuda_stream(stream, own), .stream = stream)
COPY(cuMemcpyDtoA_v2, real(c->array, c->offset + at, c->from + at, bytes),
     (CUarray to, size_t offset, CUdeviceptr from, size_t bytes), .array = to, .offset = offset, .from = from,
     .order = own)
COPY(cuMemcpyAtoD_v2, real(c->to + at, c->array, c->offset + at, bytes),
     (CUdeviceptr to, CUarray from, size_t offset, size_t bytes), .array = from, .offset = offset, .to = to,
     .order = own)
COPY(cuMemcpyHtoA_v2, real(c->array, c->offset + at, HOST(c->from + at), bytes),
     (CUarray to, size_t offset, const void *from, size_t bytes), .array = to, .offset = offset, .from = ADDRESS(from),
     .order = own)
COPY(cuMemcpyHtoAAsync_v2, real(c->array, c->offset + at, HOST(c->from + at), bytes, c->stream),
     (CUarray to, size_t offset, const void *from, size_t bytes, CUstream stream), .array = to, .offset = offset,
     .from = ADDRESS(from), .order = cws_cuda_stream(stream, own), .stream = stream)
COPY(cuMemcpyAtoH_v2, real(HOST(c->to + at), c->array, c->offset + at, bytes),
     (void *to, CUarray from, size_t offset, size_t bytes), .array = from, .offset = offset, .to = ADDRESS(to),
     .order = own)
COPY(cuMemcpyAtoHAsync_v2, real(HOST(c->to + at), c->array, c->offset + at, bytes, c->stream),
     (void *to, CUarray from, size_t offset, size_t bytes, CUstream stream), .array = from, .offset = offset,
     .to = ADDRESS(to), .order = cws_cuda_stream(stream, own), .stream = stream)
