/* outside.c - weights that the program copies out of views, into memory of its own that no budget bounds.
 *
 * Nothing tells who reads a page, so copies are seen by what they leave behind: anonymous memory of the process outside
 * of views that grows, while weights are read for the first time or shortly after, by as much as was read. That is what
 * a loader does that stacks the experts of a layer, or converts to another dtype. (transformers reads all experts of a
 * model before it stacks the first ones, so a growth at each read cannot be asked for.) A first pass through a model
 * reads all weights, too, but its activations are small beside them.
 *
 *   phase   begins with a block that is filled for the first time; ends when nothing was decoded for PHASE_SECONDS, or
 *           when everything was decoded PHASE_ROUNDS times since the last such block: the program computes by then
 *   copied  the least of what the phase has read for the first time and what memory outside has grown by since it
 * began */
#include "pager.h"

#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

enum {
    SAMPLE_PART = 16, /* a sample each time this part of what is mapped was decoded */
    WARN_PART = 2,    /* the line is written when this part of what is mapped was copied */
    PHASE_SECONDS = 10,
    PHASE_ROUNDS = 4,
};
#define SAMPLE_BYTES_LEAST ((uint64_t)2 << 20)
#define WARN_BYTES_LEAST ((uint64_t)16 << 20) /* imports and threads of a program take as much */

/* Anonymous memory of the process that is no view's, from statm ("size resident shared ..." in pages). False: not
 * known. */
static bool outside_locked(uint64_t *out)
{
    struct cws_pager *p = &cws_pager;
    char text[128], *end;
    long n = p->statm_fd < 0 ? -1 : cws_os_pread(p->statm_fd, text, sizeof text - 1, 0);
    if (n <= 0)
        return false;
    text[n] = '\0';
    strtoull(text, &end, 10);
    uint64_t resident = strtoull(end, &end, 10), shared = strtoull(end, &end, 10);
    uint64_t anonymous = resident > shared ? (resident - shared) * CWS_PAGE_BYTES : 0,
             views = p->resident + p->in_flight + p->written;
    *out = anonymous > views ? anonymous - views : 0;
    return true;
}

uint64_t cws_outside_bytes_locked(void)
{
    uint64_t bytes;
    return outside_locked(&bytes) ? bytes : 0;
}

static time_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec;
}

static void warn(uint64_t copied, uint64_t read)
{
    cws_say("the program has copied about %.1f MiB of the %.1f MiB of weights that it has read so far; its copies are "
            "not paged and not in the budget. Experts that transformers merges while loading: save the model once with "
            "save_original_format=False, and pack that. Quantised while loading: save it once, and pack that. Another "
            "dtype than the file's: pack with --dtype",
            (double)copied / (1 << 20), (double)read / (1 << 20));
}

static void sample_locked(void)
{
    struct cws_pager *p = &cws_pager;
    struct cws_outside *o = &p->outside;
    uint64_t now, mapped = p->policy.total_bytes;
    if (!outside_locked(&now))
        return;
    uint64_t grown = now > o->base ? now - o->base : 0;
    o->copied = grown < o->read ? grown : o->read;
    o->sampled = p->decoded;
    if (!o->warned && o->copied >= mapped / WARN_PART && o->copied >= WARN_BYTES_LEAST) {
        o->warned = true;
        warn(o->copied + o->copied_before, o->read + o->read_before);
    }
    if (seconds() - o->decoded_at < PHASE_SECONDS && p->decoded - o->read_at < PHASE_ROUNDS * mapped)
        return;
    o->active = false;
    o->copied_before += o->copied;
    o->read_before += o->read;
    o->copied = o->read = 0;
}

void cws_outside_filled_locked(struct cws_block *b, uint64_t bytes)
{
    struct cws_pager *p = &cws_pager;
    struct cws_outside *o = &p->outside;
    if (o->off || p->child || p->rung->whole)
        return;
    if (!b->seen && !o->active) {
        o->active = outside_locked(&o->base);
        o->sampled = p->decoded;
        if (o->active)
            cws_workers_kick(1); /* one that sleeps without an end would not look */
    }
    if (!o->active)
        return;
    o->decoded_at = seconds();
    if (!b->seen) {
        b->seen = true;
        o->read += bytes;
        o->read_at = p->decoded;
    }
    uint64_t step = p->policy.total_bytes / SAMPLE_PART;
    if (p->decoded - o->sampled >= (step > SAMPLE_BYTES_LEAST ? step : SAMPLE_BYTES_LEAST))
        sample_locked();
}

void cws_outside_look(void)
{
    cws_lock_take(&cws_pager.lock);
    if (cws_pager.outside.active)
        sample_locked();
    cws_lock_drop(&cws_pager.lock);
}

void cws_pager_copies_are_elsewhere(void)
{
    struct cws_guard guard = cws_guard_begin();
    cws_lock_take(&cws_pager.lock);
    cws_pager.outside.off = true;
    cws_pager.outside.active = false;
    cws_lock_drop(&cws_pager.lock);
    cws_guard_end(&guard);
}
