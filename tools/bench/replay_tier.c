/* replay_tier.c - the third tier of a simulation: weights that stay compressed in the memory of their device. How much
 * of the model, uvm/policy/tier.c says; which, is chosen here: of what streams, evenly over the round. */
#include "uvm/policy/plan.h"
#include "uvm/policy/tier.h"
#include "replay_sim.h"

#include <math.h>

/* What may stream: the few tensors that are larger than all that streams now would need a window of their size, and the
 * smallest ones, which are little together, would each cost their calls. */
static bool may_stream(const struct sim *s, const struct sim_weight *w)
{
    return w->node.comes == 1 && w->node.bytes <= s->tier_most && w->node.bytes > s->tier_least;
}

/* The smallest size above `size` of what comes in a round; 0: there is none. */
static uint64_t next_size(const struct sim *s, uint64_t size)
{
    uint64_t next = 0;
    for (uint32_t i = 0; i < s->weight_count; i++) {
        const struct cws_order_node *n = &s->weights[i].node;
        next = n->comes && n->bytes > size && (!next || n->bytes < next) ? n->bytes : next;
    }
    return next;
}

/* Of what comes in a round and is no larger. */
static uint64_t bytes_up_to(const struct sim *s, uint64_t size)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < s->weight_count; i++)
        bytes += s->weights[i].node.comes && s->weights[i].node.bytes <= size ? s->weights[i].node.bytes : 0;
    return bytes;
}

static void find_bounds(struct sim *s)
{
    uint64_t little = bytes_up_to(s, UINT64_MAX) / s->tuning->tier_small_share;
    s->tier_most = s->tier_least = 0;
    for (uint32_t i = 0; i < s->weight_count; i++) {
        const struct cws_order_node *n = &s->weights[i].node;
        s->tier_most = n->comes && !n->keeper && n->bytes > s->tier_most ? n->bytes : s->tier_most;
    }
    for (uint64_t size = 0; (size = next_size(s, size)) != 0 && bytes_up_to(s, size) <= little;)
        s->tier_least = size;
}

/* That stream at a time where nothing but what may not stream stays; with what is on its way in and out. */
static double streaming_bytes(const struct sim *s, bool apart)
{
    uint64_t now = 0, most = 0, wide = s->tuning->order_quota_uses;
    for (uint32_t i = 0; i < s->weight_count; i++) {
        now += may_stream(s, &s->weights[i]) ? s->weights[i].node.bytes : 0;
        now -= i >= wide && may_stream(s, &s->weights[i - wide]) ? s->weights[i - wide].node.bytes : 0;
        most = now > most ? now : most;
    }
    return (double)((1 + apart) * most + s->tuning->order_in_flight_bytes);
}

static struct cws_tier_round describe(struct sim *s, bool apart)
{
    const struct replay_costs *c = s->costs;
    find_bounds(s);
    struct cws_tier_round r = {
        .room = (double)sim_beside_reserve(&s->memory) - streaming_bytes(s, apart),
        .link = c->link_gbps * c->link_share,
        /* kernels give up what decodes and hashes take */
        .decode = 1 / (1 / c->decode_gbps + 1 / c->hash_gbps) / c->slow_decode,
        .host_ns = 1e3 * s->own_host_us,
        .device_ns = 1e3 * s->own_device_us,
        .host_call_ns = 1e3 * c->lock_share * (c->map_us + c->access_us + c->unmap_us),
    };
    for (uint32_t i = 0; i < s->weight_count; i++) {
        const struct sim_weight *w = &s->weights[i];
        if (may_stream(s, w)) {
            r.bytes += (double)w->node.bytes;
            r.stored += (double)w->stored;
            r.count++;
        } else if (w->node.comes) {
            r.room -= (double)w->node.bytes;
        }
    }
    return r;
}

/* What streams over the link and has the lowest rank: evenly over the round. */
static struct sim_weight *next_of(struct sim *s, uint64_t left)
{
    struct sim_weight *best = NULL;
    for (uint32_t i = 0; i < s->weight_count; i++) {
        struct sim_weight *w = &s->weights[i];
        bool may = may_stream(s, w) && !w->node.keeper && !w->in_tier && w->stored <= left;
        if (may && (!best || cws_order_rank(&w->node) < cws_order_rank(&best->node)))
            best = w;
    }
    return best;
}

static void fill(struct sim *s)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < s->weight_count; i++) {
        struct sim_weight *w = &s->weights[i];
        w->in_tier &= !w->node.keeper;
        w->node.near &= w->in_tier;
        used += w->in_tier ? w->stored : 0;
    }
    for (struct sim_weight *w; used < s->tier_bytes && (w = next_of(s, s->tier_bytes - used)); used += w->stored)
        w->in_tier = true;
}

void sim_tier_round(struct sim *s)
{
    unsigned begin = s->what->rounds / 4;
    if (s->program.round == begin) {
        struct cws_tier_round r = describe(s, /* apart */ false);
        struct cws_tier_shares shares = cws_tier_plan(&r, s->tuning);
        double own = fmax(r.host_ns, r.device_ns);
        if (shares.compressed > 0 && shares.link_ns < own * (1 + 1 / (double)s->tuning->tier_apart_share)) {
            r = describe(s, /* apart */ true); /* the link must have work all the time */
            shares = cws_tier_plan(&r, s->tuning);
            s->order.near_apart = true;
        }
        s->tier_bytes = (uint64_t)(shares.compressed * r.stored / (double)SIM_GRANULE) * SIM_GRANULE;
        s->memory.other += s->tier_bytes;
        cws_order_plan_again(&s->order);
    }
    /* keepers for the room that is left are known a round later; a plan by time may move a few again */
    if (s->program.round > begin && s->program.round < s->what->rounds / 2)
        fill(s);
}
