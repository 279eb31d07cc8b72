/* replay_host.c - simulates the host pager: its policy as it is (uvm/policy/policy.h), without readahead, and the bound
 * that holds for every policy. */
#include "uvm/policy/policy.h"
#include "replay.h"

#include <stdlib.h>

int replay_host(const struct replay_trace *t, const struct replay_machine *m, const struct cws_tuning *tuning,
                enum cws_policy_id id, uint64_t room, uint32_t block_bytes, struct replay_window window,
                struct replay_result *out, struct cws_error *err)
{
    struct cws_policy policy;
    size_t *first = calloc(t->item_count + 1, sizeof *first), at = 0;
    *out = (struct replay_result){0};
    if (!first)
        return cws_fail(err, -12, "out of memory");
    for (size_t i = 0; i < t->item_count; i++)
        first[i + 1] = first[i] + (t->items[i].bytes + block_bytes - 1) / block_bytes;
    struct cws_policy_node *nodes = calloc(first[t->item_count] + 1, sizeof *nodes);
    if (!nodes) {
        free(first);
        return cws_fail(err, -12, "out of memory");
    }
    cws_policy_init(&policy, id, room, block_bytes, tuning);
    policy.total_bytes = first[t->item_count] * block_bytes;
    for (size_t round = 0; round < window.to; round++) {
        if (round == window.from)
            *out = (struct replay_result){.rounds = window.to - window.from};
        for (; at < t->rounds[round]; at++) {
            size_t item = t->uses[at];
            bool hit = true;
            for (size_t b = first[item]; b < first[item + 1]; b++) {
                struct cws_policy_node *n = &nodes[b];
                if (n->place != CWS_PLACE_OUT) /* a hit: nobody tells the policy */
                    continue;
                hit = false;
                while (policy.window.bytes + policy.kept.bytes + block_bytes > room) {
                    struct cws_policy_node *victim = policy.ops->pick_victim(&policy, false);
                    cws_policy_remove(&policy, victim);
                    victim->keeper = false;
                }
                n->bytes = block_bytes;
                policy.ops->on_fill(&policy, n, false);
                out->loaded_bytes += block_bytes;
            }
            out->uses++;
            out->hits += hit;
            out->uses_bytes += (double)t->items[item].bytes;
            out->busy_seconds += m->use_us / 1e6;
        }
    }
    out->seconds = out->busy_seconds + out->loaded_bytes / m->host_gbps / 1e9;
    free(nodes);
    free(first);
    return 0;
}

/* --- the bound --------------------------------------------------------------------------------------------- */

struct part {
    double size, resident;
    size_t next; /* use; SIZE_MAX: none */
};

/* Takes bytes of what is needed last, until `need` are free. */
static void make_room(struct part *parts, size_t count, size_t but, bool whole, double *free_bytes, double need)
{
    while (*free_bytes < need) {
        size_t last = count;
        for (size_t i = 0; i < count; i++)
            if (i != but && parts[i].resident > 0 && (last == count || parts[i].next > parts[last].next))
                last = i;
        if (last == count)
            return; /* it alone is larger than the room */
        double take = !whole && need - *free_bytes < parts[last].resident ? need - *free_bytes : parts[last].resident;
        parts[last].resident -= take;
        *free_bytes += take;
    }
}

static void foresee(const struct replay_trace *t, const struct replay_machine *m, uint64_t room, uint64_t unit,
                    bool whole, struct replay_window window, struct replay_result *out)
{
    struct part *parts = calloc(t->item_count, sizeof *parts);
    size_t *next = malloc(t->use_count * sizeof *next), *seen = malloc(t->item_count * sizeof *seen), at = 0;
    double free_bytes = (double)room;
    *out = (struct replay_result){0};
    if (!parts || !next || !seen)
        goto out;
    for (size_t i = 0; i < t->item_count; i++) {
        seen[i] = SIZE_MAX;
        parts[i] = (struct part){.size = (double)((t->items[i].bytes + unit - 1) / unit * unit), .next = SIZE_MAX};
    }
    for (size_t i = t->use_count; i-- > 0;) {
        next[i] = seen[t->uses[i]];
        seen[t->uses[i]] = i;
    }
    for (size_t round = 0; round < window.to; round++) {
        if (round == window.from)
            *out = (struct replay_result){.rounds = window.to - window.from};
        for (; at < t->rounds[round]; at++) {
            size_t item = t->uses[at];
            struct part *p = &parts[item];
            double missing = p->size - p->resident;
            make_room(parts, t->item_count, item, whole, &free_bytes, missing);
            free_bytes -= missing;
            p->resident = p->size;
            p->next = next[at];
            out->uses++;
            out->hits += missing <= 0;
            out->uses_bytes += (double)t->items[item].bytes;
            out->loaded_bytes += missing / p->size * (double)t->items[item].bytes;
            out->busy_seconds += m->use_us / 1e6 + (double)t->items[item].bytes / m->memory_gbps / 1e9;
        }
    }
    double link = out->loaded_bytes / m->ratio / m->link_gbps / 1e9;
    out->seconds = link > out->busy_seconds ? link : out->busy_seconds;
out:
    free(parts);
    free(next);
    free(seen);
}

void replay_bound(const struct replay_trace *t, const struct replay_machine *m, uint64_t room, uint64_t unit,
                  struct replay_window window, struct replay_result *out)
{
    foresee(t, m, room, unit, /* whole */ false, window, out);
}

void replay_belady(const struct replay_trace *t, const struct replay_machine *m, uint64_t room, uint64_t unit,
                   struct replay_window window, struct replay_result *out)
{
    foresee(t, m, room, unit, /* whole */ true, window, out);
}
