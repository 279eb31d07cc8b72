/* next.c - the policy "next" for views: made for a program that walks over its weights again and again, as a
 * transformer does. On such a walk the block that was used last is the one whose next use is farthest away, so recency
 * is no guide. What matters is that a part of the walk stays, spread evenly so that the fetches are spread too.
 *
 *   kept    keepers. They stay until rotated out. A block becomes one when it is filled, at the rate (room for keepers)
 *           / (bytes that compete for it), counted in the order of the fills: every second or every fifth of them, so
 *           evenly over the walk whatever its order is.
 *   window  the others: a queue. Demand and readahead stream through it; its newest are the ones in use.
 *
 * The first fill of a block counts against all bytes of all views. What is asked for again after it was dropped is
 * surely part of a walk: such fills take what room is left (a part of the views may never be touched). When the room is
 * full, one keeper in views_rotate is exchanged, the oldest first, in the time of one walk: hits are invisible, and
 * this is how keepers that nobody uses any more are found out, at the price of one hit in views_rotate. */
#include "policy.h"

static uint64_t keep_bytes(const struct cws_policy *p)
{
    return p->budget_bytes > p->window_bytes ? p->budget_bytes - p->window_bytes : 0;
}

static bool spend(double *credit, double rate)
{
    *credit += rate < 1 ? rate : 1;
    if (*credit < 1)
        return false;
    *credit -= 1;
    return true;
}

static bool becomes_keeper(struct cws_policy *p, const struct cws_policy_node *n)
{
    uint64_t room = keep_bytes(p);
    bool fits = p->kept.bytes + n->bytes <= room;
    if (!n->seen) {
        bool due = spend(&p->first_credit, p->total_bytes ? (double)room / (double)p->total_bytes : 1);
        return due && fits;
    }
    uint64_t in = p->window.bytes + p->kept.bytes;
    uint64_t competing = p->seen_bytes > in ? p->seen_bytes - in : p->unit_bytes;
    if (fits)
        return spend(&p->again_credit, (double)(room - p->kept.bytes) / (double)competing);
    struct cws_policy_node *oldest = cws_policy_oldest(&p->kept);
    if (!oldest || !spend(&p->rotate_credit, (double)room / (double)competing / (double)p->tuning->views_rotate))
        return false;
    cws_policy_remove(p, oldest);
    /* First in the queue to go. */
    oldest->place = CWS_PLACE_WINDOW;
    oldest->keeper = false;
    cws_list_add_before(p->window.head.next, &oldest->link);
    p->window.bytes += oldest->bytes;
    return p->kept.bytes + n->bytes <= room;
}

static void on_fill(struct cws_policy *p, struct cws_policy_node *n, bool prefetched)
{
    (void)prefetched;
    bool keeper = becomes_keeper(p, n);
    if (!n->seen)
        p->seen_bytes += n->bytes;
    n->seen = true;
    cws_policy_append(p, n, keeper ? CWS_PLACE_KEPT : CWS_PLACE_WINDOW);
}

static void on_fault(struct cws_policy *p, struct cws_policy_node *n)
{
    if (n->place != CWS_PLACE_WINDOW)
        return;
    cws_policy_remove(p, n);
    cws_policy_append(p, n, CWS_PLACE_WINDOW);
}

static struct cws_policy_node *pick_victim(struct cws_policy *p, bool for_prefetch)
{
    uint64_t newest = p->window_bytes / p->tuning->views_newest_share;
    struct cws_policy_node *streamed = cws_policy_oldest(&p->window), *kept = cws_policy_oldest(&p->kept);
    if (for_prefetch)
        return p->window.bytes > newest ? streamed : NULL;
    /* The newest of the window are what instructions wait for right now: below that a keeper pays. */
    return streamed && (p->window.bytes > newest || !kept) ? streamed : kept;
}

const struct cws_policy_ops cws_policy_next = {"next", on_fill, on_fault, pick_victim};
