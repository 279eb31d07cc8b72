/* bench_order.c - what the order of uses (uvm/policy/order.h) costs per use, for models of many weights: a mixture of
 * experts, whose uses are surprises, and a plain cycle.
 *   bench_order */
#include "uvm/policy/order.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LAYERS = 58, DENSE = 8, ROUTED = 8, PARTS = 3, RESIDENT = 600, TOKENS = 5, PER_LAYER = DENSE + ROUTED * PARTS };
#define BYTES ((uint64_t)44 << 20)

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

struct resident { /* those that were loaded last */
    struct cws_order_node *nodes[RESIDENT];
    unsigned count, next;
};

static void load(struct cws_order *o, struct resident *r, struct cws_order_node *n)
{
    if (n->in)
        return;
    if (r->count == RESIDENT)
        cws_order_set_in(o, r->nodes[r->next], false);
    else
        r->count++;
    r->nodes[r->next] = n;
    r->next = (r->next + 1) % RESIDENT;
    cws_order_set_in(o, n, true);
}

/* A layer's weights, then ROUTED of its experts, chosen at random (or always the first ones). */
static unsigned choose(unsigned layer, unsigned experts, bool random, unsigned long long *seed,
                       unsigned list[PER_LAYER])
{
    unsigned first = layer * (DENSE + experts * PARTS), count = 0;
    for (unsigned i = 0; i < DENSE; i++)
        list[count++] = first + i;
    for (unsigned e = 0; e < ROUTED; e++) {
        *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
        unsigned expert = random ? (unsigned)(*seed >> 33) % experts : e;
        for (unsigned i = 0; i < PARTS; i++)
            list[count++] = first + DENSE + expert * PARTS + i;
    }
    return count;
}

static void measure(unsigned experts, bool random)
{
    unsigned count = LAYERS * (DENSE + experts * PARTS), uses = 0, list[PER_LAYER];
    struct cws_order_node *nodes = calloc(count, sizeof *nodes);
    struct resident resident = {.count = 0};
    struct cws_order o;
    unsigned long long seed = 1;
    if (!nodes)
        exit(2);
    cws_order_init(&o, CWS_POLICY_NEXT, &cws_tuning_default);
    for (unsigned i = 0; i < count; i++) {
        nodes[i].bytes = BYTES;
        cws_order_add(&o, &nodes[i]);
    }
    double begin = now_us();
    for (unsigned layer = 0; layer < TOKENS * LAYERS; layer++) {
        unsigned n = choose(layer % LAYERS, experts, random, &seed, list);
        for (unsigned i = 0; i < n; i++, uses++) {
            cws_order_use(&o, &nodes[list[i]]);
            load(&o, &resident, &nodes[list[i]]);
            cws_order_walk(&o, RESIDENT * BYTES);
        }
    }
    double used = now_us();
    for (unsigned i = 0; i < count; i++)
        cws_order_forget(&o, &nodes[i]);
    printf("%6u weights, %s: %8.2f us a use and a look at what comes; to forget all %.0f us\n", count,
           random ? "experts at random" : "always the same ", (used - begin) / uses, now_us() - used);
    cws_order_deinit(&o);
    free(nodes);
}

int main(void)
{
    measure(ROUTED, false);
    measure(ROUTED, true);
    measure(256, true);
    return 0;
}
