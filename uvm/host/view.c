/* view.c - the calls on views: map, munmap, protect, advise and remap. Whoever changes pages claims their blocks first
 * (CHANGING), so that no fill, eviction or fault is at work on them. README.md has the order of locks. */
#include "pager.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static size_t page_up(size_t n) { return (n + CWS_PAGE_BYTES - 1) / CWS_PAGE_BYTES * CWS_PAGE_BYTES; }
static bool range_is_bad(const void *addr, size_t len)
{
    return (uintptr_t)addr % CWS_PAGE_BYTES || page_up(len) < len || (uintptr_t)addr + page_up(len) < (uintptr_t)addr;
}

/* --- claiming ---------------------------------------------------------------------------------------- */

/* Makes every block of [first, last] that is not GONE the caller's. The views lock is held, the pager lock is not. */
static void claim_range(struct cws_view *v, uint32_t first, uint32_t last)
{
    cws_lock_take(&cws_pager.lock);
    for (uint32_t i = first; i <= last; i++) {
        struct cws_block *b = &v->blocks[i];
        cws_busy_wait_locked(b);
        if (cws_block_state(b) == CWS_GONE)
            continue;
        cws_policy_remove(&cws_pager.policy, &b->node);
        cws_busy_begin_locked(b, CWS_CHANGING);
    }
    cws_lock_drop(&cws_pager.lock);
}

static void release_block_locked(struct cws_block *b, enum cws_block_state to)
{
    if (cws_block_state(b) != CWS_CHANGING)
        return;
    cws_busy_end_locked(b, to);
    if (to == CWS_CLEAN && b->holds == 0)
        cws_policy_restore(&cws_pager.policy, &b->node);
}

/* Gives the blocks back as they were. */
static void release_range(struct cws_view *v, uint32_t first, uint32_t last)
{
    cws_lock_take(&cws_pager.lock);
    for (uint32_t i = first; i <= last; i++)
        release_block_locked(&v->blocks[i], (enum cws_block_state)v->blocks[i].under);
    cws_lock_drop(&cws_pager.lock);
}

/* The first piece of a view in [addr, addr + len). */
static bool find(const uint8_t *addr, size_t len, struct cws_piece *out)
{
    cws_lock_take(&cws_pager.lock);
    bool found = cws_index_find_locked(addr, len, out);
    cws_lock_drop(&cws_pager.lock);
    return found;
}
static uint8_t *piece_end(const struct cws_piece *p) { return p->view->base + p->to; }

/* --- unmapping --------------------------------------------------------------------------------------- */

/* The accounts and the state of a claimed block some of whose pages are unmapped now. */
static void forget_pages_locked(struct cws_view *v, uint32_t block)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    if (cws_block_state(b) != CWS_CHANGING)
        return;
    enum cws_block_state was = (enum cws_block_state)b->under;
    uint64_t left = cws_pages_mapped_bytes(v, cws_block_begin(v, block), cws_block_end(v, block));
    if (was == CWS_CLEAN)
        p->resident -= b->node.bytes - left;
    if (was == CWS_WRITTEN)
        p->written -= b->node.bytes - left;
    if ((was == CWS_CLEAN || was == CWS_WRITTEN) && left == 0)
        cws_block_trace_mark(v, block, CWS_TRACE_UNMAPPED);
    cws_pager_trace_counts_locked();
    if (b->node.seen)
        p->policy.seen_bytes -= b->node.bytes - left;
    if (b->node.seen || was == CWS_CLEAN || was == CWS_WRITTEN)
        b->node.bytes = (uint32_t)left;
    if (left == 0) {
        cws_policy_forget(&p->policy, &b->node);
        b->holds = 0;
    }
    release_block_locked(b, left ? was : CWS_GONE);
}

static void end_view(struct cws_view *v)
{
    uint32_t users;
    while ((users = atomic_load(&v->users)) != 0)
        cws_wait(&v->users, users);
    cws_pager.rung->close(v);
    if (v->source->ops->counters) { /* the last view of a source leaves its counters behind */
        uint64_t reads = 0, bytes = 0;
        bool shared = false;
        struct cws_view *other;
        cws_lock_take(&cws_pager.lock);
        for (uint32_t i = 0; (other = cws_index_next_locked(&i)) != NULL;)
            shared |= other->source == v->source;
        if (!shared)
            v->source->ops->counters(v->source, &reads, &bytes);
        cws_pager.dead_reads += reads;
        cws_pager.dead_read_bytes += bytes;
        cws_lock_drop(&cws_pager.lock);
    }
    cws_source_release(v->source);
    free(v->blocks);
    free(v->attrs);
    free(v);
}

/* Has an earlier piece of [addr, piece) the block, too? Between two pieces of one view there may lie pieces of
 * others. */
static bool claimed_already(uint8_t *addr, const struct cws_piece *piece, uint32_t block)
{
    struct cws_piece p;
    uint8_t *stop = piece->view->base + piece->from;
    for (uint8_t *at = addr; at < stop && find(at, (size_t)(stop - at), &p); at = piece_end(&p))
        if (p.view == piece->view && cws_block_of(p.view, p.to - 1) == block)
            return true;
    return false;
}

/* Claims all blocks of [addr, end), so that no other thread works on them. -ENOMEM: nothing is claimed. */
static int unmap_prepare(uint8_t *addr, uint8_t *end)
{
    struct cws_piece piece;
    cws_lock_take(&cws_pager.lock);
    bool room = cws_index_can_cut_locked(addr, (size_t)(end - addr));
    cws_lock_drop(&cws_pager.lock);
    if (!room)
        return -ENOMEM;
    for (uint8_t *at = addr; at < end && find(at, (size_t)(end - at), &piece); at = piece_end(&piece))
        if (piece.to - piece.from < piece.view->bytes && cws_pages_need_attrs(piece.view))
            return -ENOMEM;
    for (uint8_t *at = addr; at < end && find(at, (size_t)(end - at), &piece); at = piece_end(&piece)) {
        uint32_t first = cws_block_of(piece.view, piece.from), last = cws_block_of(piece.view, piece.to - 1);
        if (claimed_already(addr, &piece, first))
            first++;
        if (first <= last)
            claim_range(piece.view, first, last);
    }
    return 0;
}

static void unmapped_piece_locked(const struct cws_piece *piece)
{
    struct cws_view *v = piece->view;
    v->mapped_pages -= (piece->to - piece->from) / CWS_PAGE_BYTES;
    cws_pager.policy.total_bytes -= piece->to - piece->from;
    if (v->attrs)
        memset(v->attrs + piece->from / CWS_PAGE_BYTES, 0, (piece->to - piece->from) / CWS_PAGE_BYTES);
    else
        v->unmapped = true;
}

/* Ends the claims of one piece, after all pieces were unmapped: one block may lie in several. */
static void release_piece_locked(const struct cws_piece *piece, struct cws_view **ending)
{
    struct cws_view *v = piece->view;
    for (uint32_t i = cws_block_of(v, piece->from); i <= cws_block_of(v, piece->to - 1); i++)
        forget_pages_locked(v, i);
    /* threads that faulted there try again, and find that it is gone */
    cws_pager.rung->wake(v, piece->from, piece->to);
    if (v->mapped_pages == 0 && !v->ending) {
        v->ending = true;
        v->next_ending = *ending;
        *ending = v;
    }
}

static int unmap_raw(uint8_t *addr, size_t len, bool reserve)
{
    if (!reserve)
        return cws_sys_munmap(addr, len);
    long at = cws_sys_mmap(addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (at < 0 && at > -4096)
        return (int)at;
    cws_view_unlock(addr, len);
    return 0;
}

/* munmap for a range that touches views. The views lock is held. `reserve`: something is about to be mapped there, so
 * the range is not free in between, or another thread's memory would come to lie in it and be replaced. */
static int unmap_views(uint8_t *addr, size_t len, bool reserve)
{
    struct cws_pager *p = &cws_pager;
    uint8_t *end = addr + len;
    struct cws_view *v, *ending = NULL;
    struct cws_piece piece;
    int code = unmap_prepare(addr, end);
    if (code)
        return code;
    /* From here to the cut no thread may take the range for a view's: the address can be another mapping's as soon as
     * it is free. */
    cws_lock_take(&p->lock);
    code = unmap_raw(addr, len, reserve);
    for (uint8_t *at = addr; !code && at < end && cws_index_find_locked(at, (size_t)(end - at), &piece);
         at = piece_end(&piece))
        unmapped_piece_locked(&piece);
    for (uint8_t *at = addr; at < end && cws_index_find_locked(at, (size_t)(end - at), &piece); at = piece_end(&piece))
        release_piece_locked(&piece, &ending);
    if (!code)
        cws_index_cut_locked(addr, len);
    for (v = ending; v; v = v->next_ending)
        cws_index_forget_locked(v);
    cws_lock_drop(&p->lock);
    while (ending) {
        v = ending;
        ending = v->next_ending;
        end_view(v);
    }
    return code;
}

static int unmap(void *addr, size_t len, bool reserve)
{
    if (range_is_bad(addr, len) || len == 0)
        return -EINVAL;
    len = page_up(len);
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.views_lock);
    int code = unmap_views(addr, len, reserve);
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

int cws_view_munmap(void *addr, size_t len) { return unmap(addr, len, /* reserve */ false); }
int cws_view_reserve(void *addr, size_t len) { return unmap(addr, len, /* reserve */ true); }

/* --- mapping ----------------------------------------------------------------------------------------- */

static int check_map(const struct cws_source *s, size_t length, int prot, uint64_t offset, struct cws_error *err)
{
    if (prot != PROT_READ && prot != (PROT_READ | PROT_WRITE))
        return cws_fail(err, CWS_E_UNSUPPORTED,
                        "a view can be mapped for reading, or for reading and writing (protection %#x was asked for)",
                        (unsigned)prot);
    if (offset % CWS_PAGE_BYTES || length == 0)
        return cws_fail(err, CWS_E_USAGE,
                        "a view starts at a multiple of the page size and is not empty (offset %" PRIu64
                        ", length %zu)",
                        offset, length);
    uint64_t end = (s->bytes + CWS_PAGE_BYTES - 1) / CWS_PAGE_BYTES * CWS_PAGE_BYTES;
    if (page_up(length) < length || offset > end || page_up(length) > end - offset)
        return cws_fail(err, CWS_E_RANGE,
                        "bytes %" PRIu64 " to %" PRIu64 " are behind the end of the file of %" PRIu64 " bytes", offset,
                        offset + length, s->bytes);
    return 0;
}

static uint32_t block_bytes_for(size_t bytes)
{
    uint64_t most = cws_pager.budget < bytes ? cws_pager.budget : bytes, size = cws_pager.block_bytes;
    while (most / size > CWS_BLOCKS_RESIDENT_MAX && size < (UINT64_C(1) << 30))
        size *= 2;
    return (uint32_t)size;
}

static struct cws_view *new_view(struct cws_source *s, size_t bytes, int prot, uint64_t offset)
{
    struct cws_view *v = calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->bytes = bytes;
    v->offset = offset;
    v->prot = prot;
    v->uffd = -1;
    v->mapped_pages = bytes / CWS_PAGE_BYTES;
    v->block_bytes = block_bytes_for(bytes);
    v->block_count = (uint32_t)((bytes + v->block_bytes - 1) / v->block_bytes);
    v->blocks = calloc(v->block_count, sizeof *v->blocks);
    if (!v->blocks) {
        free(v);
        return NULL;
    }
    for (uint32_t i = 0; i < v->block_count; i++)
        v->blocks[i].view = v;
    v->source = s;
    cws_source_retain(s);
    return v;
}

/* Puts the view into the index. */
static int announce(struct cws_view *v, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    cws_lock_take(&p->lock);
    int code = cws_index_insert_locked(v);
    if (!code)
        p->policy.total_bytes += v->bytes;
    cws_lock_drop(&p->lock);
    if (code)
        return cws_fail(err, code,
                        "the program has %d mappings of packed files, and there can be no more; it has to unmap some, "
                        "or to load the model unpacked "
                        "(codecllm unpack)",
                        CWS_VIEWS_MAX);
    return 0;
}

static int map_locked(struct cws_view *v, void *hint, int flags, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    int how = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    bool replaces = (how & MAP_FIXED) && cws_view_overlaps(hint, v->bytes);
    int code = replaces ? unmap_views(hint, v->bytes, /* reserve */ true) : 0;
    if (code)
        return cws_fail_errno(err, -code, "cannot replace a view");
    long at = cws_view_memory(hint, v->bytes, v->prot, how, 0);
    if (at < 0 && at > -4096 && replaces)
        cws_sys_munmap(hint, v->bytes);
    if (at < 0 && at > -4096)
        return cws_fail_errno(err, (int)-at, "cannot reserve %zu bytes of address space for a view", v->bytes);
    v->base = (uint8_t *)at;
    /* kernels before 4.17 take it for a hint */
    code = (how & MAP_FIXED_NOREPLACE) && v->base != hint ? -EEXIST : 0;
    if (code)
        cws_fail_errno(err, -code, "cannot map a view at %p", hint);
    if (!code)
        code = p->rung->open(v, err);
    if (!code)
        code = announce(v, err);
    if (code) {
        cws_sys_munmap(v->base, v->bytes);
        p->rung->close(v);
    }
    return code;
}

int cws_view_map_source(struct cws_source *s, void *hint, size_t length, int prot, int flags, uint64_t offset,
                        void **out_addr, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    *out_addr = NULL;
    int code = check_map(s, length, prot, offset, err);
    if (code)
        return code;
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&p->views_lock);
    struct cws_view *v = NULL;
    if (!p->running)
        code = cws_fail(err, CWS_E_USAGE, "the pager is not running");
    else if (!(v = new_view(s, page_up(length), prot, offset)))
        code = cws_fail(err, -ENOMEM, "no memory for the state of a view of %zu bytes", length);
    if (!code)
        code = map_locked(v, hint, flags, err);
    /* a block that fails was reported and raises SIGBUS when it is touched, as on every rung */
    if (!code && p->rung->whole)
        for (uint32_t i = 0; i < v->block_count; i++)
            (void)!cws_fill(v, i, CWS_FILL_HOLD, NULL);
    if (!code) {
        *out_addr = v->base;
    } else if (v) {
        cws_source_release(v->source);
        free(v->blocks);
        free(v);
    }
    cws_lock_drop(&p->views_lock);
    cws_guard_end(&guard);
    return code;
}

/* --- protection -------------------------------------------------------------------------------------- */

static int keep_first(int code, int next) { return code ? code : next; }

typedef int range_fn(struct cws_view *v, uint32_t block, size_t from, size_t to, int argument);
typedef int raw_fn(uint8_t *addr, size_t len, int argument);

static int protect_raw(uint8_t *addr, size_t len, int prot) { return cws_sys_mprotect(addr, len, prot); }

static int protect_part(struct cws_view *v, uint32_t block, size_t from, size_t to, int prot)
{
    struct cws_block *b = &v->blocks[block];
    size_t begin, end;
    int before, code = 0;
    claim_range(v, block, block);
    for (size_t at = from; !code && cws_page_run(v, at, to, &begin, &end, &before); at = end) {
        code = cws_pager.rung->protect(v, begin, end, prot, b->under);
        if (code)
            break;
        cws_lock_take(&cws_pager.lock);
        memset(v->attrs + begin / CWS_PAGE_BYTES, (int)(CWS_ATTR_MAPPED | (unsigned)prot),
               (end - begin) / CWS_PAGE_BYTES);
        cws_lock_drop(&cws_pager.lock);
    }
    release_range(v, block, block);
    return code;
}

/* Walks over [addr, addr + len): pieces of views go to `ours` block by block, all else to `raw`. Goes on after an
 * error, returns the first. */
static int walk(uint8_t *addr, size_t len, range_fn *ours, raw_fn *raw, int argument)
{
    uint8_t *end = addr + len;
    struct cws_piece piece;
    int code = 0;
    while (addr < end) {
        bool found = find(addr, (size_t)(end - addr), &piece);
        uint8_t *stop = found ? piece.view->base + piece.from : end;
        if (stop > addr)
            code = keep_first(code, raw(addr, (size_t)(stop - addr), argument));
        if (!found)
            break;
        for (size_t at = piece.from; at < piece.to;) {
            size_t block_end = cws_block_end(piece.view, cws_block_of(piece.view, at));
            size_t to = block_end < piece.to ? block_end : piece.to;
            code = keep_first(code, ours(piece.view, cws_block_of(piece.view, at), at, to, argument));
            at = to;
        }
        addr = piece_end(&piece);
    }
    return code;
}

int cws_view_protect(void *addr, size_t len, int prot)
{
    if (prot & PROT_EXEC)
        return -EACCES;
    if (range_is_bad(addr, len) || (prot & ~(PROT_READ | PROT_WRITE)))
        return -EINVAL;
    if (prot & PROT_WRITE)
        prot |= PROT_READ; /* as the hardware has it */
    len = page_up(len);
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.views_lock);
    int code = 0;
    struct cws_piece piece;
    uint8_t *end = (uint8_t *)addr + len;
    for (uint8_t *at = addr; !code && at < end && find(at, (size_t)(end - at), &piece); at = piece_end(&piece))
        code = cws_pages_need_attrs(piece.view);
    if (!code)
        code = walk(addr, len, protect_part, protect_raw, prot);
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

/* --- advice ------------------------------------------------------------------------------------------ */

static int advise_raw(uint8_t *addr, size_t len, int advice) { return cws_sys_madvise(addr, len, advice); }

/* MADV_DONTNEED: the bytes of the file come back. */
static int forget_part(struct cws_view *v, uint32_t block, size_t from, size_t to, int advice)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    size_t begin = cws_block_begin(v, block), end = cws_block_end(v, block);
    (void)advice;
    claim_range(v, block, block);
    enum cws_block_state was = (enum cws_block_state)b->under, now = was;
    bool all = from == begin && to == end;
    int code = 0;
    if (cws_block_state(b) != CWS_CHANGING)
        return 0;
    if (was == CWS_WRITTEN || (p->rung->whole && was == CWS_CLEAN)) {
        /* Held, or only in part: the old bytes are put back at once. Whole: at the next touch. */
        if (!all || b->holds || p->rung->whole)
            code = cws_refill(v, block, from, to, /* replace */ true, NULL);
        else
            now = CWS_ABSENT;
    } else if (was == CWS_CLEAN && b->holds == 0) {
        now = CWS_ABSENT; /* unwritten, so it may go as a whole */
    }
    if (now == CWS_ABSENT && was != CWS_ABSENT && (code = p->rung->drop(v, begin, end)) != 0)
        now = was;
    cws_lock_take(&p->lock);
    if (now == CWS_ABSENT && was == CWS_CLEAN)
        p->resident -= b->node.bytes;
    if (now == CWS_ABSENT && was == CWS_WRITTEN)
        p->written -= b->node.bytes;
    if (now == CWS_ABSENT && (was == CWS_CLEAN || was == CWS_WRITTEN))
        cws_block_trace_mark(v, block, CWS_TRACE_UNMAPPED);
    cws_pager_trace_counts_locked();
    release_block_locked(b, now);
    cws_lock_drop(&p->lock);
    return code < -4095 ? -EIO : code;
}

static int want_part(struct cws_view *v, uint32_t block, size_t from, size_t to, int advice)
{
    (void)from, (void)to, (void)advice;
    cws_lock_take(&cws_pager.lock);
    bool pushed = cws_pager.worker_count && cws_readahead_push_locked(v, block);
    cws_lock_drop(&cws_pager.lock);
    if (pushed)
        cws_workers_kick(1);
    return 0;
}

static int nothing_part(struct cws_view *v, uint32_t block, size_t from, size_t to, int advice)
{
    (void)v, (void)block, (void)from, (void)to, (void)advice;
    return 0;
}

/* MADV_POPULATE_*: piece by piece, so that the budget holds. */
static int populate(uint8_t *addr, size_t len, bool for_write)
{
    for (size_t done = 0; done < len;) {
        size_t piece = len - done < CWS_BLOCK_BYTES_MIN ? len - done : CWS_BLOCK_BYTES_MIN;
        int code = cws_view_hold(addr + done, piece, for_write, NULL);
        if (code)
            return code == CWS_E_CORRUPT ? -EFAULT : code < -4095 ? -EIO : code;
        cws_view_unhold(addr + done, piece);
        done += piece;
    }
    return 0;
}

int cws_view_advise(void *addr, size_t len, int advice)
{
    range_fn *ours = nothing_part;
    if (range_is_bad(addr, len))
        return -EINVAL;
    len = page_up(len);
    switch (advice) {
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED: ours = forget_part; break;
    case MADV_WILLNEED: ours = want_part; break;
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE: return populate(addr, len, advice == MADV_POPULATE_WRITE);
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_COLLAPSE:
    case MADV_DONTDUMP:
    case MADV_DODUMP:
    case MADV_COLD:
    case MADV_PAGEOUT: break;
    default: return -EINVAL; /* MADV_FREE, MADV_REMOVE, MADV_WIPEONFORK: what a private file mapping says */
    }
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.views_lock);
    int code = walk(addr, len, ours, advise_raw, advice);
    cws_lock_drop(&cws_pager.views_lock);
    cws_guard_end(&guard);
    return code;
}

int cws_view_remap(void *addr, size_t old_len, size_t new_len, int flags, void **out_addr)
{
    if (range_is_bad(addr, old_len) || range_is_bad(addr, new_len) || new_len == 0)
        return -EINVAL;
    old_len = page_up(old_len);
    new_len = page_up(new_len);
    if (new_len > old_len || (flags & ~MREMAP_MAYMOVE) || old_len == 0)
        return -ENOMEM;
    int code = new_len < old_len ? cws_view_munmap((uint8_t *)addr + new_len, old_len - new_len) : 0;
    if (!code)
        *out_addr = addr;
    return code;
}
