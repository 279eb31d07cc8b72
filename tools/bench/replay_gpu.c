/* replay_gpu.c - the device of a simulation: kernels of the program one after the other, slowed by what else runs. */
#include "replay_sim.h"

#include <math.h>
#include <string.h>

#define SPEED_LEAST 0.05 /* of a kernel, whatever runs beside it */

/* The speed at `at`, and until when it is that. */
static double speed(const struct sim_gpu *g, double at, double *until)
{
    double slow = 0;
    *until = INFINITY;
    for (unsigned i = 0; i < g->burden_count; i++) {
        const struct sim_burden *b = &g->burdens[i];
        if (b->end <= at)
            continue;
        if (b->begin <= at)
            slow += b->slow;
        *until = fmin(*until, b->begin <= at ? b->end : b->begin);
    }
    return fmax(1 - slow, SPEED_LEAST);
}

/* Follows the kernel at `index` from *at with `left` of it until it is done, or until `until`. Returns what is left. */
static double follow(const struct sim_gpu *g, double *at, double left, double until)
{
    while (left > 0 && *at < until) {
        double change, rate = speed(g, *at, &change), end = fmin(*at + left / rate, fmin(change, until));
        left = end == *at + left / rate ? 0 : fmax(0, left - (end - *at) * rate);
        *at = end;
    }
    return left;
}

void sim_gpu_queue(struct sim_gpu *g, double at, double work)
{
    if (g->done == g->queued)
        g->left = work;
    g->queue[g->queued++ % SIM_QUEUE] = (struct sim_kernel){at, work};
}

void sim_gpu_burden(struct sim_gpu *g, double begin, double end, double slow)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < g->burden_count; i++)
        if (g->burdens[i].end > g->now)
            g->burdens[kept++] = g->burdens[i];
    g->burden_count = kept;
    if (kept < SIM_BURDENS)
        g->burdens[g->burden_count++] = (struct sim_burden){begin, end, slow};
}

void sim_gpu_advance(struct sim_gpu *g, double until)
{
    while (g->done < g->queued) {
        const struct sim_kernel *k = &g->queue[g->done % SIM_QUEUE];
        double at = fmax(g->now, k->ready), begin = at;
        if (at >= until)
            break;
        g->left = follow(g, &at, g->left, until);
        g->busy += at - begin;
        g->now = at;
        if (g->left > 0)
            break;
        g->done++;
        g->left = g->done < g->queued ? g->queue[g->done % SIM_QUEUE].work : 0;
    }
    g->now = fmax(g->now, until);
}

double sim_gpu_when(const struct sim_gpu *g, uint64_t count)
{
    double at = g->now, left = g->left;
    for (uint64_t i = g->done; i < count && i < g->queued; i++) {
        const struct sim_kernel *k = &g->queue[i % SIM_QUEUE];
        at = fmax(at, k->ready);
        follow(g, &at, i == g->done ? left : k->work, INFINITY);
    }
    return at;
}
