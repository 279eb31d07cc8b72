/* pages.c - the memory of views: mapping it, which of its pages are mapped, present or locked, and with which
 * protection. */
#include "pager.h"

#include <stdlib.h>
#include <string.h>

/* Set from before mlockall(MCL_FUTURE) to behind munlockall: new memory of the process is locked, and so would pages of
 * views be. */
static _Atomic bool future_is_locked;

/* Memory that is locked as it is mapped: without access nothing is made present; then it is unlocked, and may have its
 * protection. */
static long unlocked_memory(void *addr, size_t len, int prot, int flags, int fd, size_t offset)
{
    long at = cws_sys_mmap(addr, len, PROT_NONE, flags & ~MAP_POPULATE, fd, offset);
    if (at < 0 && at > -4096)
        return at;
    int code = cws_sys_munlock((void *)at, len);
    if (!code && prot != PROT_NONE)
        code = cws_sys_mprotect((void *)at, len, prot);
    if (code)
        cws_sys_munmap((void *)at, len);
    return code ? code : at;
}

long cws_view_memory(void *addr, size_t len, int prot, int more, size_t offset)
{
    int fd = cws_pager.zero_fd, flags = MAP_PRIVATE | MAP_NORESERVE | more | (fd < 0 ? MAP_ANONYMOUS : 0);
    if (fd < 0)
        offset = 0;
    if (atomic_load_explicit(&future_is_locked, memory_order_relaxed))
        return unlocked_memory(addr, len, prot, flags, fd, offset);
    return cws_sys_mmap(addr, len, prot, flags, fd, offset);
}

void cws_view_unlock(void *addr, size_t len)
{
    if (atomic_load_explicit(&future_is_locked, memory_order_relaxed))
        cws_sys_munlock(addr, len);
}

int cws_view_lock_all(int flags, int (*call)(int flags))
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.views_lock); /* no view begins meanwhile */
    bool before = atomic_load(&future_is_locked);
    int code = (flags & MCL_CURRENT) && cws_view_any() ? CWS_E_BUDGET : 0;
    if (!code) {
        if (flags & MCL_FUTURE)
            atomic_store(&future_is_locked, true);
        code = call(flags) == 0 ? 0 : -errno;
        if (code || !(flags & MCL_FUTURE)) /* which a call without it ends */
            atomic_store(&future_is_locked, code && before);
    }
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

int cws_view_unlock_all(int (*call)(void))
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.views_lock);
    int code = call() == 0 ? 0 : -errno;
    if (!code)
        atomic_store(&future_is_locked, false);
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

unsigned cws_page_attr(const struct cws_view *v, size_t at)
{
    const uint8_t *attrs = atomic_load_explicit(&v->attrs, memory_order_acquire);
    return attrs ? attrs[at / CWS_PAGE_BYTES] : CWS_ATTR_MAPPED | (unsigned)v->prot;
}

bool cws_page_run(const struct cws_view *v, size_t at, size_t end, size_t *out_begin, size_t *out_end, int *out_prot)
{
    if (v->unmapped)
        return false;
    while (at < end && !(cws_page_attr(v, at) & CWS_ATTR_MAPPED))
        at += CWS_PAGE_BYTES;
    if (at >= end)
        return false;
    unsigned attr = cws_page_attr(v, at);
    *out_begin = at;
    *out_prot = (int)(attr & CWS_ATTR_PROT);
    if (!atomic_load_explicit(&v->attrs, memory_order_acquire))
        at = end; /* an array that comes now says the same of every page that we may look at */
    while (at < end && cws_page_attr(v, at) == attr)
        at += CWS_PAGE_BYTES;
    *out_end = at;
    return true;
}

size_t cws_pages_mapped_bytes(const struct cws_view *v, size_t begin, size_t end)
{
    size_t bytes = 0, from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to)
        bytes += to - from;
    return bytes;
}

int cws_pages_need_attrs(struct cws_view *v)
{
    if (v->attrs)
        return 0;
    size_t pages = v->bytes / CWS_PAGE_BYTES;
    uint8_t *attrs = malloc(pages);
    if (!attrs)
        return -ENOMEM;
    memset(attrs, (int)(CWS_ATTR_MAPPED | (unsigned)v->prot), pages);
    atomic_store_explicit(&v->attrs, attrs, memory_order_release);
    return 0;
}

enum cws_page_presence cws_pages_present(const void *addr, size_t pages)
{
    uint64_t entries[128];
    uintptr_t page = (uintptr_t)addr / CWS_PAGE_BYTES;
    for (size_t n; pages; pages -= n, page += n) {
        n = pages < sizeof entries / sizeof *entries ? pages : sizeof entries / sizeof *entries;
        long bytes = (long)(n * sizeof *entries);
        if (cws_pager.pagemap_fd < 0 ||
            cws_os_pread(cws_pager.pagemap_fd, entries, n * sizeof *entries, page * sizeof *entries) != bytes)
            return CWS_PAGE_UNKNOWN;
        for (size_t i = 0; i < n; i++)
            if (!(entries[i] >> 62)) /* bit 63: present, bit 62: swapped */
                return CWS_PAGE_ABSENT;
    }
    return CWS_PAGE_THERE;
}
