/* copy.c - copies and fills. The source of a copy from pageable memory is consumed before the call returns, a copy into
 * pageable memory is done when it returns; between pinned and device memory a copy is an operation like any other. */
#include "state.h"

#include <stdlib.h>
#include <string.h>

struct shape {
    char *to;
    const char *from;
    size_t width, height, depth;
    size_t to_pitch, from_pitch, to_slice, from_slice;
    char *staging; /* owned */
};

static void shape_run(void *data)
{
    const struct shape *s = data;
    for (size_t z = 0; z < s->depth; z++)
        for (size_t y = 0; y < s->height; y++)
            memmove(s->to + z * s->to_slice + y * s->to_pitch, s->from + z * s->from_slice + y * s->from_pitch,
                    s->width);
}
static void shape_drop(void *data)
{
    free(((struct shape *)data)->staging);
    free(data);
}

enum side { SIDE_ANY, SIDE_HOST, SIDE_DEVICE };

/* One side may be what it says it is. *pageable: host memory that the device does not know. */
static bool side_check_locked(const char *at, const struct shape *s, size_t pitch, size_t slice, enum side side,
                              int access, bool *pageable)
{
    *pageable = !in_arena(at) && !host_pinned_locked(at, (s->depth - 1) * slice + (s->height - 1) * pitch + s->width);
    if (*pageable)
        return side != SIDE_DEVICE;
    for (size_t z = 0; z < s->depth; z++)
        for (size_t y = 0; y < s->height; y++)
            if (!device_bytes_locked(U64(at + z * slice + y * pitch), s->width, access))
                return false;
    return true;
}

static void stage(struct shape *s)
{
    s->staging = take_memory(s->width * s->height * s->depth);
    struct shape tight = *s;
    tight.to = s->staging;
    tight.to_pitch = s->width;
    tight.to_slice = s->width * s->height;
    /* in the caller's thread: reading the source may fault into a handler of the program's */
    shape_run(&tight);
    s->from = s->staging;
    s->from_pitch = tight.to_pitch;
    s->from_slice = tight.to_slice;
}

static CUresult copy_shape(struct shape s, enum side to_side, enum side from_side, CUstream handle, bool async)
{
    if (s.width == 0 || s.height == 0 || s.depth == 0)
        return CUDA_SUCCESS;
    bool to_pageable, from_pageable;
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    if (!side_check_locked(s.to, &s, s.to_pitch, s.to_slice, to_side, CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
                           &to_pageable) ||
        !side_check_locked(s.from, &s, s.from_pitch, s.from_slice, from_side, CU_MEM_ACCESS_FLAGS_PROT_READ,
                           &from_pageable))
        return unlock(CUDA_ERROR_INVALID_VALUE);
    if (from_pageable && !stream->capture) {
        if (!async)
            stream_wait_locked(stream, stream->submitted);
        unlock(0);
        stage(&s);
        lock();
        stream = stream_of_locked(handle);
        if (!stream) {
            free(s.staging);
            return unlock(CUDA_ERROR_INVALID_HANDLE);
        }
    }
    struct shape *data = take_memory(sizeof *data);
    *data = s;
    bool captured = stream->capture != NULL;
    bool device_only = !to_pageable && in_arena(s.to) && (from_pageable || in_arena(s.from));
    CUresult result = stream_submit_locked(stream, shape_run, data, shape_drop, NODE_MEMCPY);
    if (result == CUDA_SUCCESS && !captured && (to_pageable || (!async && !device_only)))
        result = stream_wait_locked(stream, stream->submitted);
    return unlock(result);
}

static CUresult copy(const void *to, const void *from, size_t bytes, enum side to_side, enum side from_side,
                     CUstream stream, bool async)
{
    struct shape s = {(char *)(uintptr_t)to, from, bytes, 1, 1, bytes, bytes, bytes, bytes, NULL};
    return copy_shape(s, to_side, from_side, stream, async);
}
#define AT(address) ((void *)(uintptr_t)(address))

API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
    ENTER("cuMemcpyHtoD_v2", CALL_CONTEXT | CALL_UNSAFE, to, bytes);
    return copy(AT(to), from, bytes, SIDE_DEVICE, SIDE_ANY, NULL, false);
}
API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    ENTER("cuMemcpyDtoH_v2", CALL_CONTEXT | CALL_UNSAFE, from, bytes);
    return copy(to, AT(from), bytes, SIDE_ANY, SIDE_DEVICE, NULL, false);
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    ENTER("cuMemcpyDtoD_v2", CALL_CONTEXT | CALL_UNSAFE, to, bytes);
    return copy(AT(to), AT(from), bytes, SIDE_DEVICE, SIDE_DEVICE, NULL, false);
}
API cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
    ENTER("cuMemcpy", CALL_CONTEXT | CALL_UNSAFE, to, bytes);
    return copy(AT(to), AT(from), bytes, SIDE_ANY, SIDE_ANY, NULL, false);
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    ENTER("cuMemcpyHtoDAsync_v2", CALL_CONTEXT, to, bytes);
    return copy(AT(to), from, bytes, SIDE_DEVICE, SIDE_ANY, stream, true);
}
API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    ENTER("cuMemcpyDtoHAsync_v2", CALL_CONTEXT, from, bytes);
    return copy(to, AT(from), bytes, SIDE_ANY, SIDE_DEVICE, stream, true);
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    ENTER("cuMemcpyDtoDAsync_v2", CALL_CONTEXT, to, bytes);
    return copy(AT(to), AT(from), bytes, SIDE_DEVICE, SIDE_DEVICE, stream, true);
}
API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    ENTER("cuMemcpyAsync", CALL_CONTEXT, to, bytes);
    return copy(AT(to), AT(from), bytes, SIDE_ANY, SIDE_ANY, stream, true);
}
API cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes)
{
    ENTER("cuMemcpyPeer", CALL_CONTEXT | CALL_UNSAFE, to, bytes);
    (void)to_context, (void)from_context;
    return copy(AT(to), AT(from), bytes, SIDE_DEVICE, SIDE_DEVICE, NULL, false);
}
API cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes,
                      CUstream stream)
{
    ENTER("cuMemcpyPeerAsync", CALL_CONTEXT, to, bytes);
    (void)to_context, (void)from_context;
    return copy(AT(to), AT(from), bytes, SIDE_DEVICE, SIDE_DEVICE, stream, true);
}
API cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count, void *attributes,
                       size_t *indexes, size_t attribute_count, size_t *failed, CUstream stream)
{
    ENTER("cuMemcpyBatchAsync", CALL_CONTEXT, count, 0);
    (void)attributes, (void)indexes, (void)attribute_count;
    CUresult result = count && to && from && bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++)
        if ((result = copy(AT(to[i]), AT(from[i]), bytes[i], SIDE_ANY, SIDE_ANY, stream, true)) != CUDA_SUCCESS &&
            failed)
            *failed = i;
    return result;
}

/* ---- Rows and slices. */
enum { MEMORY_HOST = 1, MEMORY_DEVICE = 2, MEMORY_ARRAY = 3, MEMORY_UNIFIED = 4 };
struct side2d { /* of CUDA_MEMCPY2D */
    size_t x, y;
    int type;
    void *host;
    CUdeviceptr device;
    void *array;
    size_t pitch;
};
struct copy2d {
    struct side2d from, to;
    size_t width, height;
};
struct side3d { /* of CUDA_MEMCPY3D and, with a context in place of `reserved`, CUDA_MEMCPY3D_PEER */
    size_t x, y, z, lod;
    int type;
    void *host;
    CUdeviceptr device;
    void *array;
    void *reserved;
    size_t pitch, height;
};
struct copy3d {
    struct side3d from, to;
    size_t width, height, depth;
};

static char *side_base(int type, void *host, CUdeviceptr device, enum side *side)
{
    *side = type == MEMORY_HOST ? SIDE_HOST : type == MEMORY_DEVICE ? SIDE_DEVICE : SIDE_ANY;
    return type == MEMORY_HOST ? host : AT(device);
}

static CUresult copy_3d(const struct copy3d *c, CUstream stream, bool async)
{
    if (!c || c->from.type < 1 || c->from.type > 4 || c->to.type < 1 || c->to.type > 4)
        return CUDA_ERROR_INVALID_VALUE;
    if (c->from.type == MEMORY_ARRAY || c->to.type == MEMORY_ARRAY)
        return CUDA_ERROR_NOT_SUPPORTED;
    enum side to_side, from_side;
    size_t to_pitch = c->to.pitch ? c->to.pitch : c->width, from_pitch = c->from.pitch ? c->from.pitch : c->width;
    size_t to_slice = to_pitch * (c->to.height ? c->to.height : c->height);
    size_t from_slice = from_pitch * (c->from.height ? c->from.height : c->height);
    if ((c->height > 1 || c->depth > 1) && (to_pitch < c->width || from_pitch < c->width))
        return CUDA_ERROR_INVALID_VALUE;
    char *to = side_base(c->to.type, c->to.host, c->to.device, &to_side);
    const char *from = side_base(c->from.type, c->from.host, c->from.device, &from_side);
    struct shape s = {to + c->to.x + c->to.y * to_pitch + c->to.z * to_slice,
                      from + c->from.x + c->from.y * from_pitch + c->from.z * from_slice,
                      c->width,
                      c->height,
                      c->depth,
                      to_pitch,
                      from_pitch,
                      to_slice,
                      from_slice,
                      NULL};
    return copy_shape(s, to_side, from_side, stream, async);
}

static CUresult copy_2d(const struct copy2d *c, CUstream stream, bool async)
{
    if (!c)
        return CUDA_ERROR_INVALID_VALUE;
    struct copy3d c3 = {
        {c->from.x, c->from.y, 0, 0, c->from.type, c->from.host, c->from.device, c->from.array, NULL, c->from.pitch, 0},
        {c->to.x, c->to.y, 0, 0, c->to.type, c->to.host, c->to.device, c->to.array, NULL, c->to.pitch, 0},
        c->width,
        c->height,
        1};
    return copy_3d(&c3, stream, async);
}

API cuMemcpy2D_v2(const struct copy2d *c)
{
    ENTER("cuMemcpy2D_v2", CALL_CONTEXT | CALL_UNSAFE, U64(c), 0);
    return copy_2d(c, NULL, false);
}
API cuMemcpy2DUnaligned_v2(const struct copy2d *c)
{
    ENTER("cuMemcpy2DUnaligned_v2", CALL_CONTEXT | CALL_UNSAFE, U64(c), 0);
    return copy_2d(c, NULL, false);
}
API cuMemcpy2DAsync_v2(const struct copy2d *c, CUstream stream)
{
    ENTER("cuMemcpy2DAsync_v2", CALL_CONTEXT, U64(c), U64(stream));
    return copy_2d(c, stream, true);
}
API cuMemcpy3D_v2(const struct copy3d *c)
{
    ENTER("cuMemcpy3D_v2", CALL_CONTEXT | CALL_UNSAFE, U64(c), 0);
    return copy_3d(c, NULL, false);
}
API cuMemcpy3DAsync_v2(const struct copy3d *c, CUstream stream)
{
    ENTER("cuMemcpy3DAsync_v2", CALL_CONTEXT, U64(c), U64(stream));
    return copy_3d(c, stream, true);
}
API cuMemcpy3DPeer(const struct copy3d *c)
{
    ENTER("cuMemcpy3DPeer", CALL_CONTEXT | CALL_UNSAFE, U64(c), 0);
    return copy_3d(c, NULL, false);
}
API cuMemcpy3DPeerAsync(const struct copy3d *c, CUstream stream)
{
    ENTER("cuMemcpy3DPeerAsync", CALL_CONTEXT, U64(c), U64(stream));
    return copy_3d(c, stream, true);
}

/* ---- Fills. */
struct fill {
    char *to;
    size_t width, height, pitch; /* in bytes */
    uint32_t value;
    unsigned element;
};
static void fill_run(void *data)
{
    const struct fill *f = data;
    for (size_t y = 0; y < f->height; y++) {
        char *row = f->to + y * f->pitch;
        if (f->element == 1)
            memset(row, (int)f->value, f->width);
        else
            for (size_t x = 0; x < f->width; x += f->element)
                memcpy(row + x, &f->value, f->element);
    }
}

static CUresult fill(CUdeviceptr to, size_t pitch, uint32_t value, unsigned element, size_t count, size_t height,
                     CUstream handle)
{
    if (to % element != 0 || count > SIZE_MAX / element)
        return CUDA_ERROR_INVALID_VALUE;
    struct fill f = {AT(to), count * element, height, pitch, value, element};
    if (f.width == 0 || height == 0)
        return CUDA_SUCCESS;
    lock();
    struct CUstream_st *stream = stream_of_locked(handle);
    if (!stream)
        return unlock(CUDA_ERROR_INVALID_HANDLE);
    for (size_t y = 0; y < height; y++)
        if (!device_bytes_locked(to + y * pitch, f.width, CU_MEM_ACCESS_FLAGS_PROT_READWRITE))
            return unlock(CUDA_ERROR_INVALID_VALUE);
    struct fill *data = take_memory(sizeof *data);
    *data = f;
    return unlock(stream_submit_locked(stream, fill_run, data, NULL, NODE_MEMSET));
}

#define FILLS(width, type, element)                                                                                    \
    API cuMemsetD##width##_v2(CUdeviceptr to, type value, size_t count)                                                \
    {                                                                                                                  \
        ENTER("cuMemsetD" #width "_v2", CALL_CONTEXT | CALL_UNSAFE, to, count);                                        \
        return fill(to, 0, value, element, count, 1, NULL);                                                            \
    }                                                                                                                  \
    API cuMemsetD##width##Async(CUdeviceptr to, type value, size_t count, CUstream stream)                             \
    {                                                                                                                  \
        ENTER("cuMemsetD" #width "Async", CALL_CONTEXT, to, count);                                                    \
        return fill(to, 0, value, element, count, 1, stream);                                                          \
    }                                                                                                                  \
    API cuMemsetD2D##width##_v2(CUdeviceptr to, size_t pitch, type value, size_t count, size_t height)                 \
    {                                                                                                                  \
        ENTER("cuMemsetD2D" #width "_v2", CALL_CONTEXT | CALL_UNSAFE, to, count);                                      \
        return fill(to, pitch, value, element, count, height, NULL);                                                   \
    }                                                                                                                  \
    API cuMemsetD2D##width##Async(CUdeviceptr to, size_t pitch, type value, size_t count, size_t height,               \
                                  CUstream stream)                                                                     \
    {                                                                                                                  \
        ENTER("cuMemsetD2D" #width "Async", CALL_CONTEXT, to, count);                                                  \
        return fill(to, pitch, value, element, count, height, stream);                                                 \
    }
FILLS(8, unsigned char, 1)
FILLS(16, unsigned short, 2)
FILLS(32, unsigned, 4)

/* ---- What nodes of graphs do. */
/* Told as unified addresses. */
static struct side3d side_of(const char *at, size_t pitch, size_t slice)
{
    return (struct side3d){
        .type = MEMORY_UNIFIED, .device = U64(at), .pitch = pitch, .height = pitch ? slice / pitch : 0};
}

API cuGraphMemcpyNodeGetParams(CUgraphNode node, struct copy3d *out)
{
    ENTER("cuGraphMemcpyNodeGetParams", 0, U64(node), 0);
    lock();
    if (!out || !object_is_locked(OBJECT_NODE, node) || node->type != NODE_MEMCPY)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    const struct shape *s = node->data;
    *out = (struct copy3d){side_of(s->from, s->from_pitch, s->from_slice), side_of(s->to, s->to_pitch, s->to_slice),
                           s->width, s->height, s->depth};
    return unlock(CUDA_SUCCESS);
}

struct fill_params { /* CUDA_MEMSET_NODE_PARAMS */
    CUdeviceptr to;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};

API cuGraphMemsetNodeGetParams(CUgraphNode node, struct fill_params *out)
{
    ENTER("cuGraphMemsetNodeGetParams", 0, U64(node), 0);
    lock();
    if (!out || !object_is_locked(OBJECT_NODE, node) || node->type != NODE_MEMSET)
        return unlock(CUDA_ERROR_INVALID_VALUE);
    const struct fill *f = node->data;
    *out = (struct fill_params){U64(f->to), f->pitch, f->value, f->element, f->width / f->element, f->height};
    return unlock(CUDA_SUCCESS);
}
