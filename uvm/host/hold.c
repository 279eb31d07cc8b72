/* hold.c - holds: makes pages present and keeps them, while the kernel reads or writes them in a system call. */
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
static int hold_block_locked(struct cws_view *v, uint32_t block, size_t from, size_t to, bool for_write,
                             struct cws_error *err)
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
            return cws_fail(err, CWS_E_CORRUPT, "the bytes of a view at %p could not be decoded",
                            (void *)(v->base + from));
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

/* The next piece of a view in [at, end), widened to pages; *out_next is where the search goes on. */
static bool next_piece_locked(const uint8_t *at, const uint8_t *end, struct cws_piece *piece, const uint8_t **out_next)
{
    if (at >= end || !cws_index_find_locked(at, (size_t)(end - at), piece))
        return false;
    *out_next = piece->view->base + piece->to;
    piece->from = page_down(piece->from);
    piece->to = page_down(piece->to + CWS_PAGE_BYTES - 1);
    return true;
}

int cws_view_hold(const void *addr, size_t len, bool for_write, struct cws_error *err)
{
    const uint8_t *begin = addr, *end = begin + len, *at = begin, *next;
    int code = 0;
    if (!cws_view_overlaps(addr, len))
        return 0;
    struct cws_guard guard = cws_guard_begin();
    struct cws_piece piece;
    cws_lock_take(&cws_pager.lock);
    while (!code && next_piece_locked(at, end, &piece, &next)) {
        struct cws_view *v = piece.view;
        cws_view_use_locked(v);
        for (uint32_t i = cws_block_of(v, piece.from); !code && i <= cws_block_of(v, piece.to - 1); i++) {
            size_t first = cws_block_begin(v, i), last = cws_block_end(v, i);
            code = hold_block_locked(v, i, piece.from > first ? piece.from : first, piece.to < last ? piece.to : last,
                                     for_write, err);
            if (code) /* undo what was held: the blocks before this one, and the pieces before this one */
                unhold_blocks_locked(v, piece.from, first > piece.from ? first : piece.from);
        }
        cws_view_unuse_locked(v);
        if (!code)
            at = next;
    }
    cws_lock_drop(&cws_pager.lock);
    cws_guard_end(&guard);
    if (code && at > begin)
        cws_view_unhold(begin, (size_t)(at - begin));
    return code;
}

void cws_view_unhold(const void *addr, size_t len)
{
    const uint8_t *at = addr, *end = at + len, *next;
    if (!cws_view_overlaps(addr, len))
        return;
    struct cws_guard guard = cws_guard_begin();
    struct cws_piece piece;
    cws_lock_take(&cws_pager.lock);
    for (; next_piece_locked(at, end, &piece, &next); at = next)
        unhold_blocks_locked(piece.view, piece.from, piece.to);
    cws_lock_drop(&cws_pager.lock);
    cws_guard_end(&guard);
}
