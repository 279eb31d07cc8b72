/* layout.c - the cache of parameter layouts of kernels. It has a hash table of its own, because each launch reads it
 * without a lock: open addressing by the function's handle, grown by publishing a larger table. A reader may be
 * anywhere, so tables and layouts that are replaced are never freed. An unload only makes entries be checked again, and
 * what turns out the same is used on, so what is left behind is small. */
#include "layout.h"
#include "store/base/lock.h"

#include <stdlib.h>
#include <string.h>

struct layout_entry {
    CUfunction _Atomic function;
    struct cws_cuda_layout *_Atomic layout;
};

struct layout_table {
    size_t room, used;           /* room: a power of two */
    struct layout_table *before; /* kept for readers */
    struct layout_entry entries[];
};

static struct layout_table *_Atomic current;
static _Atomic uint32_t epoch = 1;
static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_LAYOUT); /* writers */

static size_t slot_of(CUfunction function, size_t room)
{
    return (size_t)(((uintptr_t)function * 0x9e3779b97f4a7c15ull) >> 24) & (room - 1);
}

static struct layout_entry *find(struct layout_table *t, CUfunction function)
{
    for (size_t i = slot_of(function, t->room);; i = (i + 1) & (t->room - 1)) {
        CUfunction there = atomic_load_explicit(&t->entries[i].function, memory_order_acquire);
        if (there == function)
            return &t->entries[i];
        if (!there)
            return NULL;
    }
}

/* --- asking the driver ---------------------------------------------------------------------------- */

enum { PARAMS_MAX = 4096 }; /* 32764 bytes of parameters hold no more words */

/* Asks for one parameter after the other. Count, or -1: not a handle of this kind, or the driver fails (*out_error). */
static int ask(CUfunction function, bool as_kernel, size_t *offsets, size_t *sizes, CUresult *out_error)
{
    const struct cws_driver *d = cws_cuda_driver();
    for (int i = 0; i < PARAMS_MAX; i++) {
        CUresult result = as_kernel ? d->kernel_param((CUkernel)function, (size_t)i, &offsets[i], &sizes[i])
                                    : d->function_param(function, (size_t)i, &offsets[i], &sizes[i]);
        if (result == CUDA_ERROR_INVALID_VALUE)
            return i;
        if (result != CUDA_SUCCESS) {
            *out_error = result == CUDA_ERROR_INVALID_HANDLE ? *out_error : result;
            return -1;
        }
    }
    return -1;
}

/* Words that are aligned in the parameter block, and whole inside one parameter. */
static uint32_t list_words(struct cws_cuda_layout *out, const size_t *offsets, const size_t *sizes, int params)
{
    uint32_t count = 0;
    for (int p = 0; p < params; p++) {
        for (size_t at = ((offsets[p] + 7) & ~(size_t)7) - offsets[p]; at + 8 <= sizes[p]; at += 8) {
            if (out) {
                out->words[count].param = (uint16_t)p;
                out->words[count].at = (uint16_t)at;
            }
            count++;
        }
    }
    return count;
}

const char *cws_cuda_kernel_name(CUfunction function)
{
    typedef CUresult (*name_of)(const char **name, void *function);
    const char *name = NULL;
    name_of kernel_name = (name_of)cws_cuda_symbol(NULL, "cuKernelGetName"),
            function_name = (name_of)cws_cuda_symbol(NULL, "cuFuncGetName");
    if (function_name && function_name(&name, function) == CUDA_SUCCESS)
        return name;
    return kernel_name && kernel_name(&name, function) == CUDA_SUCCESS ? name : NULL;
}

/* ncclDevKernel_..., ncclSym...Kernel_..., before 2.20 ncclKernel_...; the driver's names are mangled ones of C++. */
static bool is_queued(CUfunction function)
{
    const char *name = cws_cuda_kernel_name(function), *nccl = name ? strstr(name, "nccl") : NULL;
    return nccl && strstr(nccl, "Kernel");
}

/* cudaLaunchKernel passes a CUkernel where cuLaunchKernel takes a CUfunction, and each query refuses the other's
 * handles. No parameters at all is believed only of a handle that the driver knows. */
static struct cws_cuda_layout *make(CUfunction function)
{
    size_t *offsets = malloc(2 * PARAMS_MAX * sizeof *offsets), *sizes = offsets + PARAMS_MAX;
    if (!offsets)
        return NULL;
    CUresult error = CUDA_ERROR_INVALID_HANDLE;
    int params = ask(function, /* as_kernel */ false, offsets, sizes, &error);
    if (params <= 0) {
        int others = ask(function, /* as_kernel */ true, offsets, sizes, &error);
        params = others > 0 || params < 0 ? others : params;
    }
    uint32_t words = list_words(NULL, offsets, sizes, params);
    struct cws_cuda_layout *layout = malloc(sizeof *layout + words * sizeof *layout->words);
    if (layout) {
        layout->known = params >= 0;
        layout->error = layout->known ? CUDA_SUCCESS : error;
        layout->queued = is_queued(function);
        layout->count = list_words(layout, offsets, sizes, params);
    }
    free(offsets);
    return layout;
}

/* --- the table --------------------------------------------------------------------------------------- */

static struct layout_table *make_table(size_t room, struct layout_table *before)
{
    struct layout_table *t = calloc(1, sizeof *t + room * sizeof *t->entries);
    if (!t)
        return NULL;
    t->room = room;
    t->before = before;
    for (size_t i = 0; before && i < before->room; i++) {
        CUfunction function = atomic_load(&before->entries[i].function);
        if (!function)
            continue;
        size_t slot = slot_of(function, room);
        while (atomic_load(&t->entries[slot].function))
            slot = (slot + 1) & (room - 1);
        atomic_store(&t->entries[slot].layout, atomic_load(&before->entries[i].layout));
        atomic_store(&t->entries[slot].function, function);
        t->used++;
    }
    return t;
}

static bool same(const struct cws_cuda_layout *a, const struct cws_cuda_layout *b)
{
    return a->known == b->known && a->error == b->error && a->queued == b->queued && a->count == b->count &&
           memcmp(a->words, b->words, a->count * sizeof *a->words) == 0;
}

static const struct cws_cuda_layout *insert_locked(CUfunction function)
{
    uint32_t now = atomic_load(&epoch);
    struct layout_table *t = atomic_load(&current);
    if (!t || t->used + 1 > t->room - t->room / 4) {
        t = make_table(t ? 2 * t->room : 1024, t);
        if (!t)
            return NULL;
        atomic_store_explicit(&current, t, memory_order_release);
    }
    struct layout_entry *e = find(t, function);
    struct cws_cuda_layout *old = e ? atomic_load(&e->layout) : NULL;
    if (old && atomic_load(&old->epoch) == now)
        return old;
    struct cws_cuda_layout *fresh = make(function);
    if (!fresh)
        return NULL;
    bool lasts = fresh->known || fresh->error == CUDA_ERROR_INVALID_HANDLE;
    atomic_store(&fresh->epoch, lasts ? now : now - 1);
    if (old && same(old, fresh)) {
        atomic_store(&old->epoch, atomic_load(&fresh->epoch));
        free(fresh);
        return old;
    }
    if (e) {
        atomic_store_explicit(&e->layout, fresh, memory_order_release);
        return fresh;
    }
    size_t slot = slot_of(function, t->room);
    while (atomic_load(&t->entries[slot].function))
        slot = (slot + 1) & (t->room - 1);
    atomic_store(&t->entries[slot].layout, fresh);
    atomic_store_explicit(&t->entries[slot].function, function, memory_order_release);
    t->used++;
    return fresh;
}

const struct cws_cuda_layout *cws_cuda_layout_of(CUfunction function)
{
    struct layout_table *t = atomic_load_explicit(&current, memory_order_acquire);
    struct layout_entry *e = CWS_UNLIKELY(!t || !function) ? NULL : find(t, function);
    if (e) {
        const struct cws_cuda_layout *layout = atomic_load_explicit(&e->layout, memory_order_acquire);
        if (atomic_load_explicit(&layout->epoch, memory_order_relaxed) ==
            atomic_load_explicit(&epoch, memory_order_relaxed))
            return layout;
    }
    if (!function)
        return NULL;
    cws_lock_take(&lock);
    const struct cws_cuda_layout *layout = insert_locked(function);
    cws_lock_drop(&lock);
    return layout;
}

void cws_cuda_layout_unloaded(void) { atomic_fetch_add(&epoch, 1); }
