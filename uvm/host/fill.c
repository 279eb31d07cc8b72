/* fill.c - filling a block after a fault, a hold or a guess: ABSENT -> FILLING -> CLEAN or WRITTEN, or FAILED. */
#include "pager.h"

#include <inttypes.h>
#include <string.h>

/* Decodes bytes [begin, end) of the view (page multiples) to the start of the slot's staging. Zeros behind the end of
 * the source. */
static int decode(struct cws_view *v, unsigned slot, size_t begin, size_t end, struct cws_error *err)
{
    int code = cws_slot_need(slot, end - begin);
    if (code)
        return cws_fail(err, code, "no memory to decode %zu bytes of a mapped store", end - begin);
    uint8_t *dst = cws_pager.slots[slot].staging;
    uint64_t from = v->offset + begin, to = v->offset + end;
    uint64_t stop = to < v->source->bytes ? to : v->source->bytes;
    if (stop > from)
        code = v->source->ops->fill(v->source, slot, from, stop, dst, err);
    else
        stop = from;
    if (!code && stop < to)
        memset(dst + (stop - from), 0, to - stop);
    return code;
}

/* From now on a touch of [begin, end) raises SIGBUS, also where decoded pages are already. */
static void close_off(struct cws_view *v, size_t begin, size_t end)
{
    if (cws_pager.rung->drop(v, begin, end)) {
        cws_rung_map_hole(v, begin, end);
        cws_pager.rung->wake(v, begin, end);
    } else {
        cws_pager.rung->poison(v, begin, end);
    }
}

/* The result of a claimed fill, under the lock. */
static void commit_locked(struct cws_view *v, uint32_t block, enum cws_fill_why why, uint64_t reserved, int code,
                          bool given_up)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    p->in_flight -= reserved;
    if (given_up) {
        cws_busy_end_locked(b, CWS_ABSENT);
        return;
    }
    if (code) {
        p->errors++;
        cws_busy_end_locked(b, CWS_FAILED);
        return;
    }
    b->node.bytes = (uint32_t)reserved;
    p->decoded += reserved;
    cws_outside_filled_locked(b, reserved);
    if (why == CWS_FILL_WRITE_FAULT) {
        cws_budget_written_locked(reserved);
        p->write_faults++;
        cws_pager_trace_counts_locked();
        cws_busy_end_locked(b, CWS_WRITTEN);
        return;
    }
    p->resident += reserved;
    b->prefetched = why == CWS_FILL_AHEAD;
    p->prefetched += why == CWS_FILL_AHEAD;
    p->policy.ops->on_fill(&p->policy, &b->node, why == CWS_FILL_AHEAD);
    cws_pager_trace_counts_locked();
    cws_busy_end_locked(b, CWS_CLEAN);
}

static void say_failed(struct cws_view *v, uint32_t block, const struct cws_error *err)
{
    cws_say("%s; the program gets SIGBUS when it touches bytes %" PRIu64 " to %" PRIu64 " of the file", err->message,
            v->offset + cws_block_begin(v, block), v->offset + cws_block_end(v, block));
}

static int fill(struct cws_view *v, uint32_t block, enum cws_fill_why why, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    size_t begin = cws_block_begin(v, block), end = cws_block_end(v, block);
    struct cws_error own = {0};

    cws_lock_take(&p->lock);
    cws_busy_wait_locked(b);
    if (cws_block_state(b) != CWS_ABSENT) {
        cws_lock_drop(&p->lock);
        return 0;
    }
    cws_busy_begin_locked(b, CWS_FILLING);
    unsigned slot = cws_slot_take_locked();
    uint64_t bytes = cws_pages_mapped_bytes(v, begin, end);
    if (!cws_budget_reserve_locked(bytes, why == CWS_FILL_AHEAD)) {
        cws_slot_give_locked(slot);
        cws_busy_end_locked(b, CWS_ABSENT);
        cws_lock_drop(&p->lock);
        return 0;
    }
    if (why == CWS_FILL_FAULT || why == CWS_FILL_WRITE_FAULT) {
        p->faults++;
        cws_readahead_fault_locked(v, block);
    }
    cws_lock_drop(&p->lock);

    cws_phase(CWS_PHASE_RESERVED, v, block);
    int code = decode(v, slot, begin, end, &own);
    cws_phase(CWS_PHASE_DECODED, v, block);
    if (!code) {
        bool traced = cws_block_trace_begin(v, block, CWS_TRACE_PUBLISH, NULL);
        code = p->rung->publish(v, &p->slots[slot], begin, end, why == CWS_FILL_WRITE_FAULT, /* missing_only */ false);
        cws_trace_end(CWS_TRACE_PUBLISH, traced);
        if (code)
            cws_fail_errno(&own, -code, "decoded bytes could not be mapped");
    }
    /* A guess that fails leaves no trace: the fault that may follow tries again, and says why. */
    bool given_up = code && why == CWS_FILL_AHEAD && p->rung->drop(v, begin, end) == 0;
    if (code && !given_up) {
        say_failed(v, block, &own); /* first: the poison may end the process */
        close_off(v, begin, end);   /* a part may be there */
        if (err)
            *err = own;
    }
    cws_phase(CWS_PHASE_PUBLISHED, v, block);

    cws_lock_take(&p->lock);
    commit_locked(v, block, why, bytes, code, given_up);
    cws_slot_give_locked(slot);
    cws_lock_drop(&p->lock);
    return given_up ? 0 : code;
}

int cws_fill(struct cws_view *v, uint32_t block, enum cws_fill_why why, struct cws_error *err)
{
    static const struct {
        enum cws_trace_kind kind;
        const char *why;
    } as[] = {
        [CWS_FILL_FAULT] = {CWS_TRACE_FAULT, "read"},
        [CWS_FILL_WRITE_FAULT] = {CWS_TRACE_FAULT, "write"},
        [CWS_FILL_HOLD] = {CWS_TRACE_HOLD, NULL},
        [CWS_FILL_AHEAD] = {CWS_TRACE_PREFETCH, NULL},
    };
    bool traced = cws_block_trace_begin(v, block, as[why].kind, as[why].why);
    int code = fill(v, block, why, err);
    cws_trace_end(as[why].kind, traced);
    return code;
}

void cws_make_written_locked(struct cws_view *v, uint32_t block)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    cws_policy_remove(&p->policy, &b->node);
    p->resident -= b->node.bytes;
    cws_budget_written_locked(b->node.bytes);
    p->write_faults++;
    b->prefetched = false;
    cws_block_trace_mark(v, block, CWS_TRACE_WRITTEN);
    cws_pager_trace_counts_locked();
    cws_block_set(b, CWS_WRITTEN);
    p->rung->allow_write(v, cws_block_begin(v, block), cws_block_end(v, block));
}

int cws_refill(struct cws_view *v, uint32_t block, size_t begin, size_t end, bool replace, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    struct cws_block *b = &v->blocks[block];
    struct cws_error own = {0};

    cws_lock_take(&p->lock);
    enum cws_block_state state = (enum cws_block_state)b->under;
    if (!replace) {
        cws_busy_wait_locked(b);
        state = cws_block_state(b);
        if (state != CWS_CLEAN && state != CWS_WRITTEN) {
            cws_lock_drop(&p->lock);
            return 0;
        }
        cws_policy_remove(&p->policy, &b->node);
        cws_busy_begin_locked(b, CWS_FILLING);
    }
    unsigned slot = cws_slot_take_locked();
    cws_lock_drop(&p->lock);

    bool as_it_was = replace;
    int code = decode(v, slot, begin, end, &own);
    if (!code && replace && p->rung->userfault && (code = p->rung->drop(v, begin, end)) != 0)
        cws_fail_errno(&own, -code, "pages of a view could not be dropped");
    if (!code) {
        as_it_was = false;
        code = p->rung->publish(v, &p->slots[slot], begin, end, state == CWS_WRITTEN, !replace);
        if (code)
            cws_fail_errno(&own, -code, "decoded bytes could not be mapped");
    }
    if (code && as_it_was) {
        cws_say("%s; bytes %" PRIu64 " to %" PRIu64 " of the file keep what the program wrote there", own.message,
                v->offset + begin, v->offset + end);
    } else if (code) { /* what the program asked to forget cannot come back; the rest of the block stays as it is */
        say_failed(v, block, &own);
        if (replace)
            close_off(v, begin, end);
        else
            p->rung->poison(v, begin, end);
    }
    if (err)
        *err = own;

    cws_lock_take(&p->lock);
    p->decoded += code ? 0 : end - begin;
    p->errors += code != 0;
    cws_slot_give_locked(slot);
    if (!replace) {
        cws_busy_end_locked(b, state);
        if (state == CWS_CLEAN && b->holds == 0)
            cws_policy_restore(&p->policy, &b->node);
    }
    cws_lock_drop(&p->lock);
    return code;
}
