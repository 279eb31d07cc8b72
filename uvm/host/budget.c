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

/* --- another budget ----------------------------------------------------------------------------------- */

enum { HOLDS_WAIT_MS = 1, HOLDS_WAITS = 2000 };

/* Evicts until no more than this is in memory or on its way there. False: the rest is held, and stayed so, or its pages
 * cannot be dropped. once: what is there now goes once, and what is held is not waited for. */
static bool shrink_locked(uint64_t bytes, bool once)
{
    struct cws_pager *p = &cws_pager;
    unsigned waits = 0, stuck = 0;
    uint64_t now = p->resident + p->in_flight, gone_bytes = 0;
    while (p->resident + p->in_flight > bytes && !(once && gone_bytes >= now)) {
        uint32_t forking = atomic_load(&p->forking);
        struct cws_policy_node *n = forking ? NULL : p->policy.ops->pick_victim(&p->policy, false);
        if (n) {
            uint64_t of_block = n->bytes;
            bool gone = evict_locked((struct cws_block *)((char *)n - offsetof(struct cws_block, node)));
            stuck = gone ? 0 : stuck + 1;
            gone_bytes += gone ? of_block : 0;
            if (stuck > CWS_BLOCKS_RESIDENT_MAX)
                return false;
            continue;
        }
        if (!forking && ((once && !p->in_flight) || waits++ == HOLDS_WAITS))
            return false;
        uint32_t seen = atomic_load(&p->evicting);
        cws_lock_drop(&p->lock);
        if (forking)
            cws_wait(&p->forking, forking);
        else
            cws_wait_ms(&p->evicting, seen, HOLDS_WAIT_MS);
        cws_lock_take(&p->lock);
    }
    return true;
}

static void set_locked(uint64_t bytes)
{
    cws_pager.budget = bytes;
    cws_pager.options.budget_bytes = bytes;
    cws_policy_set_budget(&cws_pager.policy, bytes);
}

/* The most that the views allow: each block that is in memory may take two mappings, of which there are not many. */
static uint64_t most_locked(void)
{
    uint64_t most = CWS_BUDGET_UNLIMITED;
    const struct cws_view *v;
    for (uint32_t i = 0; (v = cws_index_next_locked(&i)) != NULL;) {
        uint64_t of_view = (uint64_t)v->block_bytes * CWS_BLOCKS_RESIDENT_MAX;
        if (v->bytes > of_view && of_view < most)
            most = of_view;
    }
    return most;
}

static int set_budget_locked(uint64_t bytes, struct cws_error *err)
{
    struct cws_pager *p = &cws_pager;
    uint64_t before = p->budget, least = cws_pager_least_budget_now();
    if (!p->running)
        return cws_fail(err, CWS_E_BUSY, "no packed file was mapped yet, so there is no paging of host memory");
    if (p->rung->whole)
        return cws_fail(err, CWS_E_UNSUPPORTED,
                        "mapped stores are decoded whole here, so no budget can be kept (codecllm doctor says why)");
    if (bytes < least)
        return cws_fail(err, CWS_E_BUDGET,
                        "a budget of %" PRIu64 " bytes of host memory cannot be met now: with blocks of %" PRIu64
                        " KiB, as this process has, the least is %" PRIu64 "; it stays at %" PRIu64,
                        bytes, p->block_bytes >> 10, least, before);
    if (bytes > before && bytes > most_locked())
        return cws_fail(err, CWS_E_BUDGET,
                        "a budget of %" PRIu64
                        " bytes of host memory cannot be met now: a file was mapped in blocks for "
                        "a smaller one, with which the most is %" PRIu64 "; it stays at %" PRIu64,
                        bytes, most_locked(), before);
    set_locked(bytes);
    if (shrink_locked(bytes, false))
        return 0;
    uint64_t held = p->resident + p->in_flight;
    set_locked(before);
    return cws_fail(err, CWS_E_BUDGET,
                    "a budget of %" PRIu64 " bytes of host memory cannot be met now: calls that are under way hold "
                    "%" PRIu64 "; it stays at %" PRIu64,
                    bytes, held, before);
}

int cws_pager_set_budget(uint64_t bytes, struct cws_error *err)
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.lock);
    int code = set_budget_locked(bytes < CWS_BUDGET_UNLIMITED ? bytes : CWS_BUDGET_UNLIMITED, err);
    cws_lock_drop(&cws_pager.lock);
    cws_guard_end(&guard);
    return code;
}

void cws_pager_sleep(void)
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.lock);
    if (cws_pager.running && !cws_pager.rung->whole) {
        cws_readahead_forget_locked();
        shrink_locked(0, /* once */ true);
    }
    cws_lock_drop(&cws_pager.lock);
    cws_guard_end(&guard);
}

/* --- decoders ------------------------------------------------------------------------------------------- */

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
