/* budget.c - the budget of views: reserving room for a block, evicting others for it, decoder slots, and the count of
 * busy blocks. */
#include "pager.h"

#include <inttypes.h>
#include <string.h>

void cws_busy_begin_locked(struct cws_block *b, enum cws_block_state to)
{
    cws_block_set(b, to);
    atomic_fetch_add(&cws_pager.busy, 1);
}

void cws_busy_end_locked(struct cws_block *b, enum cws_block_state to)
{
    struct cws_view *v = b->view;
    if (cws_block_set(b, to)) {
        uint32_t block = (uint32_t)(b - v->blocks);
        cws_pager.rung->wake(v, cws_block_begin(v, block), cws_block_end(v, block));
    }
    if (atomic_fetch_sub(&cws_pager.busy, 1) == 1)
        cws_wake(&cws_pager.busy);
}

void cws_busy_wait_locked(struct cws_block *b)
{
    for (;;) {
        uint32_t word = atomic_load(&b->word), forking = atomic_load(&cws_pager.forking);
        bool busy = cws_block_is_busy((enum cws_block_state)(word & CWS_BLOCK_STATE_MASK));
        if (!busy && !forking)
            return;
        cws_lock_drop(&cws_pager.lock);
        if (busy)
            cws_wait(&b->word, word);
        else
            cws_wait(&cws_pager.forking, forking);
        cws_lock_take(&cws_pager.lock);
    }
}

/* Evicts one clean block, and drops the lock meanwhile. False: its pages could not be dropped, so it stays, and is
 * picked last from now on. */
static bool evict_locked(struct cws_block *b)
{
    struct cws_pager *p = &cws_pager;
    struct cws_view *v = b->view;
    uint32_t block = (uint32_t)(b - v->blocks);
    cws_policy_remove(&p->policy, &b->node);
    b->node.keeper = false;
    cws_busy_begin_locked(b, CWS_EVICTING);
    p->evictions_running++;
    cws_lock_drop(&p->lock);
    bool traced = cws_block_trace_begin(v, block, CWS_TRACE_EVICT, NULL);
    cws_phase(CWS_PHASE_EVICTING, v, block);
    int code = p->rung->drop(v, cws_block_begin(v, block), cws_block_end(v, block));
    cws_phase(CWS_PHASE_DROPPED, v, block);
    cws_trace_end(CWS_TRACE_EVICT, traced);
    cws_lock_take(&p->lock);
    p->evictions_running--;
    if (code) {
        if (!p->warned_stuck)
            cws_say("pages of a view could not be dropped (%s), so the budget may be passed", strerror(-code));
        p->warned_stuck = true;
        cws_busy_end_locked(b, CWS_CLEAN);
        cws_policy_restore(&p->policy, &b->node);
    } else {
        p->resident -= b->node.bytes;
        p->evictions++;
        cws_pager_trace_counts_locked();
        b->prefetched = false;
        cws_busy_end_locked(b, CWS_ABSENT);
    }
    atomic_fetch_add(&p->evicting, 1);
    cws_wake(&p->evicting);
    return !code;
}

bool cws_budget_reserve_locked(uint64_t bytes, bool for_prefetch)
{
    struct cws_pager *p = &cws_pager;
    while (p->resident + p->in_flight + bytes > p->budget) {
        struct cws_policy_node *n = p->policy.ops->pick_victim(&p->policy, for_prefetch);
        if (n && evict_locked((struct cws_block *)((char *)n - offsetof(struct cws_block, node))))
            continue;
        if (for_prefetch)
            return false;
        if (n || p->evictions_running == 0)
            /* all that is left is held or in flight, or stays: go past the budget rather than stop the program */
            break;
        uint32_t seen = atomic_load(&p->evicting);
        cws_lock_drop(&p->lock);
        cws_wait(&p->evicting, seen);
        cws_lock_take(&p->lock);
    }
    p->in_flight += bytes;
    if (p->resident + p->in_flight > p->peak)
        p->peak = p->resident + p->in_flight;
    return true;
}

void cws_budget_written_locked(uint64_t bytes)
{
    struct cws_pager *p = &cws_pager;
    p->written += bytes;
    if (p->written > p->budget && !p->warned_written && bytes) {
        p->warned_written = true;
        cws_say("the program has written to %" PRIu64 " bytes of mapped weights, more than the budget of %" PRIu64
                "; written blocks stay in memory (copy weights before changing them, or raise CODEC_VRAM_BUDGET)",
                p->written, p->budget);
    }
}

unsigned cws_slot_take_locked(void)
{
    struct cws_pager *p = &cws_pager;
    for (;;) {
        for (unsigned i = 0; i < p->slot_count; i++) {
            if (!(p->slots_taken & (1u << i))) {
                p->slots_taken |= 1u << i;
                return i;
            }
        }
        uint32_t seen = atomic_load(&p->slot_word);
        cws_lock_drop(&p->lock);
        cws_wait(&p->slot_word, seen);
        cws_lock_take(&p->lock);
    }
}

void cws_slot_give_locked(unsigned slot)
{
    cws_pager.slots_taken &= ~(1u << slot);
    atomic_fetch_add(&cws_pager.slot_word, 1);
    cws_wake(&cws_pager.slot_word);
}

int cws_slot_need(unsigned slot, size_t bytes)
{
    struct cws_decoder_slot *s = &cws_pager.slots[slot];
    /* A rung that moves pages needs exactly what it will move. */
    if (s->staging && (s->staging_bytes == bytes || (cws_pager.rung->userfault && s->staging_bytes > bytes)))
        return 0;
    if (s->staging)
        cws_sys_munmap(s->staging, s->staging_bytes);
    long at = cws_view_memory(NULL, bytes, PROT_READ | PROT_WRITE, MAP_POPULATE, 0);
    s->staging = at < 0 && at > -4096 ? NULL : (uint8_t *)at;
    s->staging_bytes = s->staging ? bytes : 0;
    return s->staging ? 0 : -ENOMEM;
}
