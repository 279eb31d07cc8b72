/* Holding: pages that stay while the kernel reads or writes them. */
#include "pager.h"

size_t cws_view_hold_max(void)
{
    uint64_t share = cws_pager.budget / 4, most = 8 << 20;
    return (size_t)(share > most ? most : share < CWS_BLOCK_BYTES_MIN ? CWS_BLOCK_BYTES_MIN : share);
}

/* Does the program's protection allow it on all pages of [from, to) that are the view's? */
static bool allowed(const struct cws_view *v, size_t from, size_t to, bool for_write)
{
    size_t begin, end;
    int prot, need = for_write ? PROT_WRITE : PROT_READ;
    for (size_t at = from; cws_page_run(v, at, to, &begin, &end, &prot); at = end)
        if (!(prot & need))
            return false;
    return true;
}

/* Holds one block. The view is used; may drop the lock. */
static int hold_block_locked(struct cws_view *v, uint32_t block, size_t from, size_t to, bool for_write, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    for (;;) {
        cws_busy_wait_locked(b);
        enum cws_block_state state = cws_block_state(b);
        if (state == CWS_GONE)
            return 0;
        if (!allowed(v, from, to, for_write))
            return cws_fail(err, -EFAULT, "the protection of a view at %p forbids it", (void *)(v->base + from));
        if (state == CWS_FAILED)
            return cws_fail(err, CWS_E_CORRUPT, "the bytes of a view at %p could not be decoded", (void *)(v->base + from));
        if (state == CWS_CLEAN || state == CWS_WRITTEN) {
            if (state == CWS_CLEAN && for_write)
                cws_make_written_locked(v, block);
            b->holds++;
            b->prefetched = false;
            cws_policy_remove(&p->policy, &b->node);
            return 0;
        }
        cws_lock_drop(&p->lock);
        int code = cws_fill(v, block, CWS_FILL_HOLD, err);
        cws_lock_take(&p->lock);
        if (code)
            return code;
    }
}

static void unhold_blocks_locked(struct cws_view *v, size_t from, size_t to)
{
    for (uint32_t i = cws_block_of(v, from); to > from && i <= cws_block_of(v, to - 1); i++) {
        struct cws_block *b = &v->blocks[i];
        if (b->holds == 0) /* the view ended and began anew meanwhile */
            continue;
        if (--b->holds == 0 && cws_block_state(b) == CWS_CLEAN)
            cws_policy_restore(&cws_pager.policy, &b->node);
    }
}

static size_t page_down(size_t n) { return n / CWS_PAGE_BYTES * CWS_PAGE_BYTES; }

/* The part of [addr, addr + len) in view v, widened to pages. */
static void part_of(const struct cws_view *v, const uint8_t *addr, size_t len, size_t *from, size_t *to)
{
    *from = addr > v->base ? page_down((size_t)(addr - v->base)) : 0;
    size_t end = (size_t)(addr + len - v->base);
    end = page_down(end + CWS_PAGE_BYTES - 1);
    *to = addr + len < v->base + v->bytes && end < v->bytes ? end : v->bytes;
}

int cws_view_hold(const void *addr, size_t len, bool for_write, struct cws_error *err)
{
    const uint8_t *begin = addr, *end = begin + len;
    int code = 0;
    if (!cws_view_overlaps(addr, len))
        return 0;
    struct cws_signal_mask mask = cws_signals_block();
    cws_lock_take(&cws_pager.lock);
    struct cws_view *v;
    const uint8_t *at = begin;
    while (!code && at < end && (v = cws_index_find_locked(at, (size_t)(end - at))) != NULL) {
        size_t from, to;
        part_of(v, begin, len, &from, &to);
        cws_view_use_locked(v);
        const uint8_t *next = v->base + v->bytes;
        for (uint32_t i = cws_block_of(v, from); !code && i <= cws_block_of(v, to - 1); i++) {
            size_t first = cws_block_begin(v, i), last = cws_block_end(v, i);
            code = hold_block_locked(v, i, from > first ? from : first, to < last ? to : last, for_write, err);
            if (code) { /* undo what was held: all blocks before this one */
                unhold_blocks_locked(v, from, first > from ? first : from);
                end = v->base;
            }
        }
        cws_view_unuse_locked(v);
        at = next;
    }
    cws_lock_drop(&cws_pager.lock);
    cws_signals_restore(mask);
    if (code && end > begin)
        cws_view_unhold(begin, (size_t)(end - begin));
    return code;
}

void cws_view_unhold(const void *addr, size_t len)
{
    const uint8_t *begin = addr, *end = begin + len;
    if (!cws_view_overlaps(addr, len))
        return;
    struct cws_signal_mask mask = cws_signals_block();
    cws_lock_take(&cws_pager.lock);
    struct cws_view *v;
    for (const uint8_t *at = begin; at < end && (v = cws_index_find_locked(at, (size_t)(end - at))) != NULL; at = v->base + v->bytes) {
        size_t from, to;
        part_of(v, begin, len, &from, &to);
        unhold_blocks_locked(v, from, to);
    }
    cws_lock_drop(&cws_pager.lock);
    cws_signals_restore(mask);
}
