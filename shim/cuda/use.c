/* use.c - holds the ranges that a call names while the call is made, pins ranges whose pointers are hidden, and says
 * what may be wrong after an illegal address. */
#include "capture.h"
#include "use.h"
#include "shim/say.h"

#include <stdlib.h>
#include <string.h>

/* --- lists --------------------------------------------------------------------------------------- */

static bool grow(struct cws_cuda_list *list)
{
    size_t room = 4 * (list->room + 1);
    CUdeviceptr *more = malloc(room * sizeof *more);
    if (!more) {
        list->lost = true;
        return false;
    }
    memcpy(more, list->at, list->count * sizeof *more);
    cws_cuda_list_deinit(list);
    list->at = more;
    list->room = room;
    return true;
}

void cws_cuda_list_add_near(struct cws_cuda_list *list, CUdeviceptr address)
{
    if (!cws_cuda_owner_slow(address) || (list->count && list->at[list->count - 1] == address))
        return;
    if (list->count == list->room && !grow(list))
        return;
    list->at[list->count++] = address;
}

void cws_cuda_list_add_all(struct cws_cuda_list *list, const struct cws_cuda_list *other)
{
    list->everything |= other->everything;
    list->recent |= other->recent;
    list->lost |= other->lost;
    for (size_t i = 0; i < other->count; i++)
        cws_cuda_list_add(list, other->at[i]);
}

static void add_to(void *list, CUdeviceptr address) { cws_cuda_list_add_near(list, address); }

void cws_cuda_list_add_recent(struct cws_cuda_list *list)
{
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (gpu)
            cws_gpu_recent(gpu, add_to, list);
    }
}

/* Ranges begin on granules, in a span of addresses that the arena keeps dense. */
void cws_cuda_list_add_everything(struct cws_cuda_list *list)
{
    const CUdeviceptr mask = CWS_GPU_GRANULE - 1;
    CUdeviceptr at = atomic_load(&cws_cuda_low), high = atomic_load(&cws_cuda_high), base;
    size_t bytes;
    list->everything = true;
    while (at < high) {
        struct cws_gpu *gpu = cws_cuda_owner_slow(at);
        at = (at & ~mask) + CWS_GPU_GRANULE;
        if (gpu && cws_gpu_extent(gpu, at - CWS_GPU_GRANULE, &base, &bytes)) {
            cws_cuda_list_add_near(list, base);
            at = (base + bytes + mask) & ~mask;
        }
    }
}

void cws_cuda_list_deinit(struct cws_cuda_list *list)
{
    if (list->at != list->few)
        free(list->at);
}

/* --- begin and end --------------------------------------------------------------------------------- */

static CUresult begin_part(CUstream stream, struct cws_gpu *gpu, const CUdeviceptr *at, size_t count,
                           struct cws_cuda_use *use)
{
    CUresult result = cws_gpu_begin(gpu, stream, at, count, &use->parts[use->count].use);
    if (result == CUDA_SUCCESS)
        use->parts[use->count++].gpu = gpu;
    return result;
}

/* The addresses of one manager, out of those of several. */
static CUresult begin_mixed(CUstream stream, const struct cws_cuda_list *list, struct cws_cuda_use *use)
{
    unsigned devices = atomic_load(&cws_cuda_device_count);
    CUresult result = CUDA_SUCCESS;
    CUdeviceptr *own = malloc(list->count * sizeof *own);
    if (!own)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < devices && result == CUDA_SUCCESS; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        size_t count = 0;
        for (size_t k = 0; gpu && k < list->count; k++)
            if (cws_gpu_owns(gpu, list->at[k]))
                own[count++] = list->at[k];
        if (count)
            result = begin_part(stream, gpu, own, count, use);
    }
    free(own);
    if (result != CUDA_SUCCESS)
        cws_cuda_end(use, /* queued */ false);
    return result;
}

CUresult cws_cuda_begin(CUstream stream, const struct cws_cuda_list *list, struct cws_cuda_use *use)
{
    use->count = 0;
    use->order = stream;
    if (CWS_UNLIKELY(list->lost))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!list->count)
        return CUDA_SUCCESS;
    if (atomic_load_explicit(&cws_cuda_device_count, memory_order_relaxed) > 1)
        return begin_mixed(stream, list, use);
    return begin_part(stream, atomic_load_explicit(&cws_cuda_devices[0].gpu, memory_order_relaxed), list->at,
                      list->count, use);
}

/* What this thread queued last named memory that is paged: what it queues next may reach that through pointers which
 * the first one wrote (uvm/cuda/streams.h). */
static _Thread_local bool named_last;

static void settle(void)
{
    unsigned count = atomic_load(&cws_cuda_device_count);
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (gpu)
            cws_gpu_queued_other(gpu);
    }
}

void cws_cuda_end(struct cws_cuda_use *use, bool queued)
{
    if (CWS_UNLIKELY(named_last && !use->count))
        settle();
    named_last = use->count;
    bool runs = queued && use->count && !cws_cuda_is_capturing(use->order);
    for (unsigned i = 0; i < use->count; i++)
        cws_gpu_end(use->parts[i].gpu, &use->parts[i].use, runs);
    use->count = 0;
}

/* --- hidden pointers --------------------------------------------------------------------------------- */

void cws_cuda_scan_copy(const void *from, size_t bytes)
{
    if (bytes > CWS_CUDA_SCAN_BYTES || atomic_load_explicit(&cws_cuda_high, memory_order_relaxed) == 0)
        return;
    const char *at = from;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        CUdeviceptr word, base;
        size_t size;
        memcpy(&word, at + i, sizeof word);
        struct cws_gpu *gpu = cws_cuda_owner(word);
        if (gpu && cws_gpu_extent(gpu, word, &base, &size))
            cws_gpu_pin(gpu, word);
    }
}

bool cws_cuda_is_host(CUdeviceptr from)
{
    unsigned type = 0;
    if (cws_cuda_owner(from))
        return false;
    CUresult result = CWS_CUDA_REAL(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, from);
    return result == CUDA_ERROR_INVALID_VALUE || (result == CUDA_SUCCESS && type == CU_MEMORYTYPE_HOST);
}

void cws_cuda_explain(CUresult result)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    struct cws_gpu_stats s;
    unsigned count = atomic_load(&cws_cuda_device_count);
    if (result != CUDA_ERROR_ILLEGAL_ADDRESS)
        return;
    for (unsigned i = 0; i < count; i++) {
        struct cws_gpu *gpu = atomic_load(&cws_cuda_devices[i].gpu);
        if (!gpu)
            continue;
        cws_gpu_stats_get(gpu, &s);
        if (s.bound_bytes + s.adopted_bytes > s.decoded_bytes && !atomic_flag_test_and_set(&said))
            cws_shim_say("illegal memory access on the GPU while weights are paged out: probably a kernel reached one "
                         "through a pointer "
                         "that lies in device memory; CODEC_PIN=<tensor names, * allowed> keeps such weights resident");
    }
}
