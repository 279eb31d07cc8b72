/* replay_memory.c - the memory of a simulation: frames that have a size, and the reserve for activations, by the rules
 * of uvm/cuda/frames.c, reserve.c and budget.c. */
#include "uvm/cuda/size_class.h"
#include "replay_sim.h"

#include <string.h>

static uint64_t bytes_of(uint32_t granules) { return granules * SIM_GRANULE; }

uint64_t sim_left(const struct sim_memory *m)
{
    uint64_t used = m->frames + m->granted + m->ring + m->other;
    return used < m->budget ? m->budget - used : 0;
}

uint64_t sim_attainable(const struct sim_memory *m) { return sim_left(m) + m->idle + m->cold; }

uint64_t sim_beside_reserve(const struct sim_memory *m)
{
    uint64_t taken = m->fixed + m->kept + m->ring + m->other;
    return taken < m->budget ? m->budget - taken : 0;
}

uint32_t sim_granules(uint64_t bytes) { return (uint32_t)((bytes + SIM_GRANULE - 1) / SIM_GRANULE); }

/* Of memory for an activation of that size. */
static uint32_t granules_of_block(uint64_t bytes) { return cws_size_class_round(sim_granules(bytes)); }

/* --- frames ------------------------------------------------------------------------------------------------- */

static uint32_t take_idle(struct sim_memory *m, uint32_t at)
{
    uint32_t granules = m->idle_frames[at];
    memmove(m->idle_frames + at, m->idle_frames + at + 1, (--m->idle_count - at) * sizeof *m->idle_frames);
    m->idle -= bytes_of(granules);
    return granules;
}

bool sim_frame_take(struct sim_memory *m, uint32_t granules)
{
    for (uint32_t i = m->idle_count; i-- > 0;)
        if (m->idle_frames[i] == granules)
            return take_idle(m, i) != 0;
    return false;
}

void sim_frame_put(struct sim_memory *m, uint32_t granules)
{
    m->idle_frames[m->idle_count++] = granules;
    m->idle += bytes_of(granules);
}

double sim_frame_create(struct sim *s, uint32_t granules)
{
    const struct replay_costs *c = s->costs;
    s->memory.frames += bytes_of(granules);
    s->sum.frames_made++;
    s->sum.calls += 3;
    return c->create_us + c->map_us + c->access_us;
}

double sim_frame_release(struct sim *s)
{
    struct sim_memory *m = &s->memory;
    const struct replay_costs *c = s->costs;
    double us = c->unmap_us + c->release_us;
    uint32_t granules;
    if (m->idle_count) {
        granules = take_idle(m, 0);
    } else if (m->cold_count) { /* unmapped where the program had it, too */
        granules = m->freed[0].granules;
        memmove(m->freed, m->freed + 1, --m->freed_count * sizeof *m->freed);
        m->cold_count--;
        m->cold -= bytes_of(granules);
        us += c->unmap_us;
        s->sum.calls++;
    } else {
        return 0;
    }
    m->frames -= bytes_of(granules);
    s->sum.calls += 2;
    return us + c->release_us_mib * (double)(bytes_of(granules) >> 20);
}

/* --- allocations of the program ------------------------------------------------------------------------------- */

/* The memory that was freed last of those with this size: all is one stream's. */
static bool take_freed(struct sim_memory *m, uint32_t granules)
{
    for (uint32_t i = m->freed_count; i-- > 0;) {
        if (m->freed[i].granules != granules)
            continue;
        *(i < m->cold_count ? &m->cold : &m->kept) -= bytes_of(granules);
        m->cold_count -= i < m->cold_count;
        memmove(m->freed + i, m->freed + i + 1, (--m->freed_count - i) * sizeof *m->freed);
        return true;
    }
    return false;
}

void sim_alloc(struct sim_memory *m, uint32_t block, uint64_t bytes)
{
    struct sim_block *b = &m->blocks[block];
    b->granules = granules_of_block(bytes);
    b->mapped = take_freed(m, b->granules);
    m->fixed += b->mapped ? bytes_of(b->granules) : 0;
}

void sim_block_mapped(struct sim_memory *m, uint32_t block)
{
    m->blocks[block].mapped = true;
    m->fixed += bytes_of(m->blocks[block].granules);
}

void sim_free(struct sim_memory *m, uint32_t block, uint64_t at)
{
    struct sim_block *b = &m->blocks[block];
    if (!b->mapped)
        return;
    m->freed[m->freed_count++] = (struct sim_freed){b->granules, at};
    m->kept += bytes_of(b->granules);
    m->fixed -= bytes_of(b->granules);
    b->mapped = false;
}

/* The memory that was freed first leaves the reserve. */
static bool cool(struct sim_memory *m)
{
    if (m->cold_count == m->freed_count)
        return false;
    uint64_t bytes = bytes_of(m->freed[m->cold_count++].granules);
    m->kept -= bytes;
    m->cold += bytes;
    return true;
}

void sim_age(struct sim *s)
{
    struct sim_memory *m = &s->memory;
    uint64_t period = cws_order_period(&s->order), keep = period ? 2 * period : s->tuning->reserve_uses;
    while (m->cold_count < m->freed_count && s->order.at - m->freed[m->cold_count].at > keep)
        cool(m);
}

bool sim_steal(struct sim *s, uint64_t bytes)
{
    struct sim_memory *m = &s->memory;
    uint64_t before = m->kept, wanted = sim_attainable(m) + bytes;
    while (sim_attainable(m) < wanted && cool(m)) {
    }
    s->sum.steals += m->kept != before;
    return m->kept != before;
}
