/* copy_box.c - copies of rectangles and boxes, and batches of copies. Where host memory of a view takes part, they run
 * in groups of rows, or one by one. */
#include "uvm/host/view.h"
#include "copy.h"
#include "shim/say.h"

/* --- boxes ------------------------------------------------------------------------------------------- */

struct side {
    int type;
    const void *host;
    CUdeviceptr device;
    size_t x, y, z, pitch, height;
};

static size_t rows_before(const struct side *s) { return s->z * s->height + s->y; }

/* The first address; 0: an array. */
static CUdeviceptr address_of(const struct side *s)
{
    CUdeviceptr base = 0;
    if (s->type == CU_MEMORYTYPE_HOST)
        base = (uintptr_t)s->host;
    else if (s->type == CU_MEMORYTYPE_DEVICE || s->type == CU_MEMORYTYPE_UNIFIED)
        base = s->device;
    return base ? base + rows_before(s) * s->pitch + s->x : 0;
}

static bool in_view(const struct side *s, size_t row_bytes, size_t rows, size_t layers)
{
    if (s->type != CU_MEMORYTYPE_HOST && s->type != CU_MEMORYTYPE_UNIFIED)
        return false;
    size_t bytes = ((layers - 1) * s->height + rows - 1) * s->pitch + row_bytes;
    return row_bytes && rows && layers && cws_view_overlaps((const void *)(uintptr_t)address_of(s), bytes);
}

static struct side source_2d(const CUDA_MEMCPY2D *c)
{
    return (struct side){c->srcMemoryType,
                         c->srcHost,
                         c->srcDevice,
                         c->srcXInBytes,
                         c->srcY,
                         0,
                         c->srcPitch ? c->srcPitch : c->WidthInBytes,
                         0};
}

static struct side target_2d(const CUDA_MEMCPY2D *c)
{
    return (struct side){c->dstMemoryType,
                         c->dstHost,
                         c->dstDevice,
                         c->dstXInBytes,
                         c->dstY,
                         0,
                         c->dstPitch ? c->dstPitch : c->WidthInBytes,
                         0};
}

static struct side source_3d(const CUDA_MEMCPY3D *c)
{
    return (struct side){c->srcMemoryType,
                         c->srcHost,
                         c->srcDevice,
                         c->srcXInBytes,
                         c->srcY,
                         c->srcZ,
                         c->srcPitch ? c->srcPitch : c->WidthInBytes,
                         c->srcHeight ? c->srcHeight : c->Height};
}

static struct side target_3d(const CUDA_MEMCPY3D *c)
{
    return (struct side){c->dstMemoryType,
                         c->dstHost,
                         c->dstDevice,
                         c->dstXInBytes,
                         c->dstY,
                         c->dstZ,
                         c->dstPitch ? c->dstPitch : c->WidthInBytes,
                         c->dstHeight ? c->dstHeight : c->Height};
}

struct box { /* a 2D copy, or a 3D one */
    CUDA_MEMCPY2D flat;
    CUDA_MEMCPY3D deep;
    bool is_deep;
    CUresult (*call)(const struct box *b);
    void *real;
    CUstream stream;
};

static CUresult call_box(void *arg)
{
    const struct box *b = arg;
    return b->call(b);
}

/* Rows [y, y + rows), bytes [x, x + width) of layer z of the whole. */
static void cut(struct box *piece, const struct box *whole, size_t x, size_t width, size_t y, size_t rows, size_t z)
{
    *piece = *whole;
    if (!piece->is_deep) {
        piece->flat.srcXInBytes += x;
        piece->flat.dstXInBytes += x;
        piece->flat.WidthInBytes = width;
        piece->flat.srcY += y;
        piece->flat.dstY += y;
        piece->flat.Height = rows;
        return;
    }
    CUDA_MEMCPY3D *d = &piece->deep; /* what 0 stands for depends on the box */
    struct side from = source_3d(&whole->deep), to = target_3d(&whole->deep);
    d->srcPitch = from.pitch;
    d->srcHeight = from.height;
    d->dstPitch = to.pitch;
    d->dstHeight = to.height;
    d->srcXInBytes += x;
    d->dstXInBytes += x;
    d->WidthInBytes = width;
    d->srcY += y;
    d->dstY += y;
    d->Height = rows;
    d->srcZ += z;
    d->dstZ += z;
    d->Depth = 1;
}

static CUresult run_pieces(const struct box *b, const struct side *host, bool into, size_t width, size_t rows,
                           size_t layers)
{
    size_t most = cws_view_hold_max();
    size_t width_step = width < most ? width : most,
           row_step = host->pitch && most / host->pitch ? most / host->pitch : 1;
    struct box piece;
    for (size_t z = 0; z < layers; z++) {
        for (size_t y = 0; y < rows; y += row_step) {
            size_t some = rows - y < row_step ? rows - y : row_step;
            for (size_t x = 0; x < width; x += width_step) {
                size_t part = width - x < width_step ? width - x : width_step;
                CUdeviceptr at = address_of(host) + (z * host->height + y) * host->pitch + x;
                cut(&piece, b, x, part, y, some, z);
                CUresult result = cws_cuda_with_view((const void *)(uintptr_t)at, (some - 1) * host->pitch + part, into,
                                                     call_box, &piece);
                if (result != CUDA_SUCCESS)
                    return result;
            }
        }
    }
    return CUDA_SUCCESS;
}

static CUresult run_box(const struct box *b, CUstream order)
{
    struct side from = b->is_deep ? source_3d(&b->deep) : source_2d(&b->flat);
    struct side to = b->is_deep ? target_3d(&b->deep) : target_2d(&b->flat);
    size_t width = b->is_deep ? b->deep.WidthInBytes : b->flat.WidthInBytes;
    size_t rows = b->is_deep ? b->deep.Height : b->flat.Height, layers = b->is_deep ? b->deep.Depth : 1;
    CUdeviceptr first = address_of(&to), second = address_of(&from);
    bool reads = in_view(&from, width, rows, layers), writes = in_view(&to, width, rows, layers);
    if (second && rows == 1 && layers == 1 && from.type == CU_MEMORYTYPE_HOST)
        cws_cuda_scan_copy((const void *)(uintptr_t)second, width);
    return CWS_CUDA_AROUND(order, first, second,
                           reads || writes ? run_pieces(b, reads ? &from : &to, !reads, width, rows, layers)
                                           : b->call(b));
}

#define FLAT(symbol, order_, with, ...)                                                                                \
    static CUresult call_##symbol(const struct box *b) { return ((cws_fn_##symbol)b->real)with; }                      \
    CUresult cws_do_##symbol(cws_fn_##symbol real, CUstream own, const CUDA_MEMCPY2D *copy __VA_ARGS__)                \
    {                                                                                                                  \
        struct box b = {.call = call_##symbol, .real = (void *)real, .stream = order_};                                \
        if (!copy)                                                                                                     \
            return CUDA_ERROR_INVALID_VALUE;                                                                           \
        b.flat = *copy;                                                                                                \
        return run_box(&b, cws_cuda_stream(order_, own));                                                              \
    }
#define DEEP(symbol, order_, with, ...)                                                                                \
    static CUresult call_##symbol(const struct box *b) { return ((cws_fn_##symbol)b->real)with; }                      \
    CUresult cws_do_##symbol(cws_fn_##symbol real, CUstream own, const CUDA_MEMCPY3D *copy __VA_ARGS__)                \
    {                                                                                                                  \
        struct box b = {.call = call_##symbol, .real = (void *)real, .stream = order_, .is_deep = true};               \
        if (!copy)                                                                                                     \
            return CUDA_ERROR_INVALID_VALUE;                                                                           \
        b.deep = *copy;                                                                                                \
        return run_box(&b, cws_cuda_stream(order_, own));                                                              \
    }
#define COMMA ,
FLAT(cuMemcpy2D_v2, NULL, (&b->flat))
FLAT(cuMemcpy2DUnaligned_v2, NULL, (&b->flat))
FLAT(cuMemcpy2DAsync_v2, stream, (&b->flat, b->stream), COMMA CUstream stream)
DEEP(cuMemcpy3D_v2, NULL, (&b->deep))
DEEP(cuMemcpy3DPeer, NULL, (&b->deep))
DEEP(cuMemcpy3DAsync_v2, stream, (&b->deep, b->stream), COMMA CUstream stream)
DEEP(cuMemcpy3DPeerAsync, stream, (&b->deep, b->stream), COMMA CUstream stream)

/* --- batches ------------------------------------------------------------------------------------------- */

struct copy_batch {
    CUdeviceptr *to, *from;
    size_t *bytes, count;
    CUstream stream, own;
};

static CUresult one_of_batch(const struct cws_cuda_copy *c, size_t at, size_t bytes)
{
    return ((cws_fn_cuMemcpyAsync)c->real)(c->to + at, c->from + at, bytes, c->stream);
}

/* Copies of a batch have no order among them, so they may be made one by one. */
static CUresult run_singly(const struct copy_batch *b, size_t *out_failed)
{
    void *real = b->own == CU_STREAM_PER_THREAD ? (void *)CWS_CUDA_REAL(cuMemcpyAsync_ptsz)
                                                : (void *)CWS_CUDA_REAL(cuMemcpyAsync);
    for (size_t i = 0; i < b->count; i++) {
        const struct cws_cuda_copy c = {.call = one_of_batch,
                                        .real = real,
                                        .to = b->to[i],
                                        .from = b->from[i],
                                        .bytes = b->bytes[i],
                                        .order = cws_cuda_stream(b->stream, b->own),
                                        .stream = b->stream};
        CUresult result = cws_cuda_copy_run(&c);
        if (result != CUDA_SUCCESS) {
            if (out_failed)
                *out_failed = i;
            return result;
        }
    }
    return CUDA_SUCCESS;
}

/* True: the batch has to run one copy at a time (run_singly). Else *list names its ranges. */
static bool list_batch(const struct copy_batch *b, struct cws_cuda_list *list)
{
    for (size_t i = 0; i < b->count; i++) {
        if (cws_view_overlaps((const void *)(uintptr_t)b->to[i], b->bytes[i]) ||
            cws_view_overlaps((const void *)(uintptr_t)b->from[i], b->bytes[i]))
            return true;
        cws_cuda_list_add(list, b->to[i]);
        cws_cuda_list_add(list, b->from[i]);
        if (b->bytes[i] <= CWS_CUDA_SCAN_BYTES && atomic_load(&cws_cuda_high) && cws_cuda_is_host(b->from[i]))
            cws_cuda_scan_copy((const void *)(uintptr_t)b->from[i], b->bytes[i]);
    }
    return false;
}

#define RUN_BATCH(b, failed, call)                                                                                     \
    do {                                                                                                               \
        struct cws_cuda_list list;                                                                                     \
        struct cws_cuda_use use;                                                                                       \
        CUresult result;                                                                                               \
        cws_cuda_list_init(&list);                                                                                     \
        if (list_batch(&(b), &list)) {                                                                                 \
            result = run_singly(&(b), failed);                                                                         \
        } else {                                                                                                       \
            result = cws_cuda_begin(cws_cuda_stream((b).stream, own), &list, &use);                                    \
            if (result == CUDA_SUCCESS) {                                                                              \
                result = call;                                                                                         \
                cws_cuda_end(&use, result == CUDA_SUCCESS);                                                            \
            }                                                                                                          \
        }                                                                                                              \
        cws_cuda_list_deinit(&list);                                                                                   \
        return result;                                                                                                 \
    } while (0)

CUresult cws_do_cuMemcpyBatchAsync(cws_fn_cuMemcpyBatchAsync real, CUstream own, CUdeviceptr *to, CUdeviceptr *from,
                                   size_t *bytes, size_t count, CUmemcpyAttributes *attributes, size_t *indices,
                                   size_t attribute_count, size_t *fail, CUstream stream)
{
    const struct copy_batch b = {to, from, bytes, to && from && bytes ? count : 0, stream, own};
    RUN_BATCH(b, fail, real(to, from, bytes, count, attributes, indices, attribute_count, fail, stream));
}

CUresult cws_do_cuMemcpyBatchAsync_v2(cws_fn_cuMemcpyBatchAsync_v2 real, CUstream own, CUdeviceptr *to,
                                      CUdeviceptr *from, size_t *bytes, size_t count, CUmemcpyAttributes *attributes,
                                      size_t *indices, size_t attribute_count, CUstream stream)
{
    const struct copy_batch b = {to, from, bytes, to && from && bytes ? count : 0, stream, own};
    RUN_BATCH(b, NULL, real(to, from, bytes, count, attributes, indices, attribute_count, stream));
}

/* --- batches of boxes ------------------------------------------------------------------------------------ */

/* Adds one side's range. False: it lies in a view. */
static bool add_operand(const CUmemcpy3DOperand *o, const CUDA_MEMCPY3D_BATCH_OP *op, struct cws_cuda_list *list)
{
    if (o->type != CU_MEMCPY_OPERAND_TYPE_POINTER)
        return true;
    size_t row = o->op.ptr.rowLength ? o->op.ptr.rowLength : op->width,
           height = o->op.ptr.layerHeight ? o->op.ptr.layerHeight : op->height;
    cws_cuda_list_add(list, o->op.ptr.ptr);
    return !cws_view_overlaps((const void *)(uintptr_t)o->op.ptr.ptr, row * height * op->depth);
}

static CUresult begin_boxes(size_t count, const CUDA_MEMCPY3D_BATCH_OP *ops, CUstream order, struct cws_cuda_use *use)
{
    struct cws_cuda_list list;
    CUresult result = CUDA_SUCCESS;
    use->count = 0;
    cws_cuda_list_init(&list);
    for (size_t i = 0; ops && i < count && result == CUDA_SUCCESS; i++) {
        if (!add_operand(&ops[i].src, &ops[i], &list) || !add_operand(&ops[i].dst, &ops[i], &list)) {
            cws_shim_say("cuMemcpy3DBatchAsync: memory of a mapped store cannot take part; copy it first");
            result = CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    if (result == CUDA_SUCCESS)
        result = cws_cuda_begin(order, &list, use);
    cws_cuda_list_deinit(&list);
    return result;
}

CUresult cws_do_cuMemcpy3DBatchAsync(cws_fn_cuMemcpy3DBatchAsync real, CUstream own, size_t count,
                                     CUDA_MEMCPY3D_BATCH_OP *ops, size_t *fail, unsigned long long flags,
                                     CUstream stream)
{
    struct cws_cuda_use use;
    CUresult result = begin_boxes(count, ops, cws_cuda_stream(stream, own), &use);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(count, ops, fail, flags, stream);
    cws_cuda_end(&use, result == CUDA_SUCCESS);
    return result;
}

CUresult cws_do_cuMemcpy3DBatchAsync_v2(cws_fn_cuMemcpy3DBatchAsync_v2 real, CUstream own, size_t count,
                                        CUDA_MEMCPY3D_BATCH_OP *ops, unsigned long long flags, CUstream stream)
{
    struct cws_cuda_use use;
    CUresult result = begin_boxes(count, ops, cws_cuda_stream(stream, own), &use);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(count, ops, flags, stream);
    cws_cuda_end(&use, result == CUDA_SUCCESS);
    return result;
}
