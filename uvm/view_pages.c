#include "pager.h"

#include <stdlib.h>
#include <string.h>

long cws_view_memory(void *addr, size_t len, int prot, int more, size_t offset)
{
    int fd = cws_pager.zero_fd, flags = MAP_PRIVATE | MAP_NORESERVE | more | (fd < 0 ? MAP_ANONYMOUS : 0);
    return cws_sys_mmap(addr, len, prot, flags, fd, fd < 0 ? 0 : offset);
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
        if (cws_pager.pagemap_fd < 0 || cws_sys_pread(cws_pager.pagemap_fd, entries, n * sizeof *entries, page * sizeof *entries) != bytes)
            return CWS_PAGE_UNKNOWN;
        for (size_t i = 0; i < n; i++)
            if (!(entries[i] >> 62)) /* bit 63: present, bit 62: swapped */
                return CWS_PAGE_ABSENT;
    }
    return CWS_PAGE_THERE;
}
