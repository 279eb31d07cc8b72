/* lru.c - the policy "lru" for views: the block that was asked for longest ago goes first. It is the baseline: a cyclic
 * scan that does not fit gets no hit at all. */
#include "policy.h"

static void on_fill(struct cws_policy *p, struct cws_policy_node *n, bool prefetched)
{
    (void)prefetched;
    if (!n->seen)
        p->seen_bytes += n->bytes;
    n->seen = true;
    cws_policy_append(p, n, CWS_PLACE_WINDOW);
}

static void on_fault(struct cws_policy *p, struct cws_policy_node *n)
{
    if (n->place == CWS_PLACE_OUT)
        return;
    cws_policy_remove(p, n);
    cws_policy_append(p, n, CWS_PLACE_WINDOW);
}

static struct cws_policy_node *pick_victim(struct cws_policy *p, bool for_prefetch)
{
    return for_prefetch && p->window.bytes <= p->window_bytes ? NULL : cws_policy_oldest(&p->window);
}

const struct cws_policy_ops cws_policy_lru = {"lru", on_fill, on_fault, pick_victim};
