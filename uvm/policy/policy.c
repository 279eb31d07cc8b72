/* policy.c - the two lists of blocks that every policy for views is made of, and their accounts. */
#include "policy.h"

static struct cws_policy_list *list_of(struct cws_policy *p, unsigned place)
{
    return place == CWS_PLACE_KEPT ? &p->kept : &p->window;
}

static void list_init(struct cws_policy_list *l)
{
    cws_list_init(&l->head);
    l->bytes = 0;
}

void cws_policy_init(struct cws_policy *p, enum cws_policy_id id, uint64_t budget_bytes, uint64_t unit_bytes,
                     const struct cws_tuning *tuning)
{
    *p = (struct cws_policy){
        .ops = id == CWS_POLICY_LRU ? &cws_policy_lru : &cws_policy_next,
        .tuning = tuning,
        .unit_bytes = unit_bytes,
    };
    cws_policy_set_budget(p, budget_bytes);
    list_init(&p->window);
    list_init(&p->kept);
}

void cws_policy_set_budget(struct cws_policy *p, uint64_t budget_bytes)
{
    /* Large enough for what all threads need at the same instant and for their readahead (a matrix product walks over
     * as many parts of a weight as it has threads): with 4 blocks every block decoded ahead was dropped before its use.
     * All the rest is for keepers. */
    uint64_t units = budget_bytes / p->unit_bytes / p->tuning->views_window_share;
    uint64_t least = p->tuning->views_window_least, most = p->tuning->views_window_most;
    p->budget_bytes = budget_bytes;
    p->window_bytes = (units < least ? least : units > most ? most : units) * p->unit_bytes;
}

void cws_policy_append(struct cws_policy *p, struct cws_policy_node *n, enum cws_policy_place place)
{
    struct cws_policy_list *l = list_of(p, place);
    n->place = (uint8_t)place;
    n->keeper = place == CWS_PLACE_KEPT;
    cws_list_add_before(&l->head, &n->link);
    l->bytes += n->bytes;
}

void cws_policy_remove(struct cws_policy *p, struct cws_policy_node *n)
{
    if (n->place == CWS_PLACE_OUT)
        return;
    list_of(p, n->place)->bytes -= n->bytes;
    cws_list_remove(&n->link);
    n->place = CWS_PLACE_OUT;
}

void cws_policy_restore(struct cws_policy *p, struct cws_policy_node *n)
{
    if (n->place == CWS_PLACE_OUT)
        cws_policy_append(p, n, n->keeper ? CWS_PLACE_KEPT : CWS_PLACE_WINDOW);
}

void cws_policy_forget(struct cws_policy *p, struct cws_policy_node *n)
{
    cws_policy_remove(p, n);
    if (n->seen)
        p->seen_bytes -= n->bytes;
    n->seen = false;
}

static bool list_check(const struct cws_policy_list *l, unsigned place)
{
    uint64_t bytes = 0;
    for (const struct cws_list *at = l->head.next; at != &l->head; at = at->next) {
        const struct cws_policy_node *n = CWS_LIST_OF(at, const struct cws_policy_node, link);
        if (n->place != place || at->next->prev != at)
            return false;
        bytes += n->bytes;
    }
    return bytes == l->bytes;
}

bool cws_policy_check(const struct cws_policy *p)
{
    return list_check(&p->window, CWS_PLACE_WINDOW) && list_check(&p->kept, CWS_PLACE_KEPT);
}
