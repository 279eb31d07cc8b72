/* budget.c - the account of a device's memory. */
#include "budget.h"

void cws_gpu_budget_init(struct cws_gpu_budget *b, struct cws_gpu_core *core, uint64_t bytes)
{
    *b = (struct cws_gpu_budget){.core = core, .bytes = bytes};
}

void cws_gpu_budget_set(struct cws_gpu_budget *b, uint64_t bytes, uint64_t was)
{
    b->bytes = bytes;
    b->was = was;
}

/* --- asked -------------------------------------------------------------------------------------------- */

uint64_t cws_gpu_budget_used(const struct cws_gpu_budget *b)
{
    return b->frames + b->granted + b->ring + b->plain + b->pools;
}

uint64_t cws_gpu_budget_undroppable(const struct cws_gpu_budget *b)
{
    return b->of_class[CWS_CLASS_FIXED] + b->ring + b->plain + b->pools;
}

static uint64_t rest(const struct cws_gpu_budget *b, uint64_t taken) { return taken < b->bytes ? b->bytes - taken : 0; }

uint64_t cws_gpu_budget_left(const struct cws_gpu_budget *b) { return rest(b, cws_gpu_budget_used(b)); }

uint64_t cws_gpu_budget_attainable(const struct cws_gpu_budget *b)
{
    return cws_gpu_budget_left(b) + b->of_class[CWS_CLASS_IDLE];
}

uint64_t cws_gpu_budget_margin(const struct cws_gpu_budget *b)
{
    const struct cws_tuning *t = b->core->tuning;
    uint64_t part = b->bytes / t->pool_margin_share;
    if (b->pools == 0)
        return 0;
    return part < t->pool_step_bytes ? part : t->pool_step_bytes;
}

/* What weights that nobody waits for leave alone. */
static uint64_t left_alone(const struct cws_gpu_budget *b) { return b->expected + cws_gpu_budget_margin(b); }

static uint64_t without_expected(const struct cws_gpu_budget *b, uint64_t bytes)
{
    return bytes > left_alone(b) ? bytes - left_alone(b) : 0;
}

uint64_t cws_gpu_budget_left_ahead(const struct cws_gpu_budget *b)
{
    return without_expected(b, cws_gpu_budget_left(b));
}

uint64_t cws_gpu_budget_attainable_ahead(const struct cws_gpu_budget *b)
{
    return without_expected(b, cws_gpu_budget_attainable(b));
}

uint64_t cws_gpu_budget_for_weights(const struct cws_gpu_budget *b) { return rest(b, cws_gpu_budget_undroppable(b)); }

uint64_t cws_gpu_budget_beside_reserve(const struct cws_gpu_budget *b)
{
    return rest(b, cws_gpu_budget_undroppable(b) + b->of_class[CWS_CLASS_RESERVE] + left_alone(b));
}

uint64_t cws_gpu_budget_weights(const struct cws_gpu_budget *b)
{
    uint64_t others = b->of_class[CWS_CLASS_IDLE] + b->of_class[CWS_CLASS_RESERVE] + b->of_class[CWS_CLASS_FIXED];
    return others < b->frames ? b->frames - others : 0; /* what is being made counts as fixed before it has a frame */
}

/* --- granted ------------------------------------------------------------------------------------------ */

/* Room that was granted to a pool does not count towards the peak until the pool has taken it. */
static uint64_t taken(const struct cws_gpu_budget *b) { return cws_gpu_budget_used(b) - b->pool_granted; }

static void note_peak(struct cws_gpu_budget *b) { b->peak = taken(b) > b->peak ? taken(b) : b->peak; }

void cws_gpu_budget_grant(struct cws_gpu_budget *b, uint64_t bytes, bool to_pool)
{
    b->granted += bytes;
    b->pool_granted += to_pool ? bytes : 0;
    note_peak(b);
}

static bool grant_drops_lock(struct cws_gpu_budget *b, struct cws_gpu_room room)
{
    struct cws_gpu_room **link = &b->rooms;
    if (!b->rooms && cws_gpu_budget_left(b) >= room.bytes + (room.to_pool ? 0 : cws_gpu_budget_margin(b))) {
        cws_gpu_budget_grant(b, room.bytes, room.to_pool);
        return true;
    }
    while (*link)
        link = &(*link)->next;
    *link = &room;
    cws_gpu_wake_locked(b->core);
    while (!room.granted && !room.refused)
        cws_gpu_changed_wait_drops_lock(b->core);
    return room.granted; /* the loader took it off the list and counted it */
}

bool cws_gpu_budget_grant_drops_lock(struct cws_gpu_budget *b, uint64_t bytes, bool to_pool)
{
    return grant_drops_lock(b, (struct cws_gpu_room){.bytes = bytes, .to_pool = to_pool});
}

bool cws_gpu_budget_grant_easily_drops_lock(struct cws_gpu_budget *b, uint64_t bytes)
{
    return grant_drops_lock(b, (struct cws_gpu_room){.bytes = bytes, .to_pool = true, .easy = true});
}

void cws_gpu_budget_ungrant(struct cws_gpu_budget *b, uint64_t bytes, bool to_pool)
{
    b->granted -= bytes;
    b->pool_granted -= to_pool ? bytes : 0;
    if (b->rooms)
        cws_gpu_wake_locked(b->core);
}

void cws_gpu_budget_serve(struct cws_gpu_budget *b, bool granted)
{
    struct cws_gpu_room *room = b->rooms;
    b->rooms = room->next;
    room->granted = granted;
    room->refused = !granted;
    if (granted)
        cws_gpu_budget_grant(b, room->bytes, room->to_pool);
    cws_gpu_changed_locked(b->core);
}

/* --- taken and given back ------------------------------------------------------------------------------- */

void cws_gpu_budget_frame_made(struct cws_gpu_budget *b, uint64_t bytes)
{
    b->granted -= bytes;
    b->frames += bytes;
    note_peak(b);
}

void cws_gpu_budget_frame_gone(struct cws_gpu_budget *b, uint64_t bytes) { b->frames -= bytes; }

void cws_gpu_budget_move(struct cws_gpu_budget *b, enum cws_gpu_class from, enum cws_gpu_class to, uint64_t bytes)
{
    if (from != CWS_CLASS_NONE)
        b->of_class[from] -= bytes;
    if (to != CWS_CLASS_NONE)
        b->of_class[to] += bytes;
}

void cws_gpu_budget_bind(struct cws_gpu_budget *b, uint64_t bytes) { b->bound += bytes; }
void cws_gpu_budget_unbind(struct cws_gpu_budget *b, uint64_t bytes) { b->bound -= bytes; }

/* Wakes the loader if memory that nobody made room for has outgrown the budget, or taken of the margin. */
static void look(struct cws_gpu_budget *b)
{
    note_peak(b);
    if (taken(b) + cws_gpu_budget_margin(b) > b->bytes)
        cws_gpu_wake_locked(b->core);
}

void cws_gpu_budget_plain_taken(struct cws_gpu_budget *b, uint64_t granted, uint64_t plain)
{
    b->granted -= granted;
    b->plain += plain;
    look(b);
    if (plain < granted && b->rooms)
        cws_gpu_wake_locked(b->core);
}

void cws_gpu_budget_plain_freed(struct cws_gpu_budget *b, uint64_t bytes)
{
    b->plain -= bytes;
    cws_gpu_wake_locked(b->core);
}

void cws_gpu_budget_set_pools(struct cws_gpu_budget *b, uint64_t bytes)
{
    b->pools = bytes;
    look(b);
}

void cws_gpu_budget_set_ring(struct cws_gpu_budget *b, uint64_t bytes) { b->ring = bytes; }

void cws_gpu_budget_expect(struct cws_gpu_budget *b, uint64_t bytes) { b->expected = bytes; }

void cws_gpu_budget_note_least(struct cws_gpu_budget *b, uint64_t bytes)
{
    b->least = bytes > b->least ? bytes : b->least;
}

const char *cws_gpu_budget_check(const struct cws_gpu_budget *b)
{
    if (b->of_class[CWS_CLASS_NONE])
        return "budget: memory is counted that there is not";
    if (b->pool_granted > b->granted)
        return "budget: pools were granted more than was granted";
    if (b->of_class[CWS_CLASS_IDLE] + b->of_class[CWS_CLASS_RESERVE] > b->frames)
        return "budget: more memory is idle than there is";
    uint64_t most = b->was > b->bytes ? b->was : b->bytes;
    return b->frames + b->granted + b->ring > most ? "I4: the budget is exceeded" : NULL;
}
