/* history.c - predicts the next use: finds the longest stretch of the past that ended as the present does. */
#include "history.h"
#include "order.h"

#include <stdlib.h>

static struct cws_history_use *use_at(const struct cws_history *h, uint64_t index) { return &h->uses[index % h->room]; }
static uint64_t period(const struct cws_history *h) { return h->match ? h->end - h->match : 0; }

void cws_history_init(struct cws_history *h, const struct cws_tuning *tuning)
{
    *h = (struct cws_history){.tuning = tuning};
}

void cws_history_deinit(struct cws_history *h)
{
    free(h->uses);
    cws_history_init(h, h->tuning);
}

void cws_history_reserve(struct cws_history *h, uint64_t uses)
{
    uint64_t most = h->tuning->history_uses_max;
    uses = uses < most ? uses : most;
    if (h->room >= uses)
        return;
    struct cws_history larger = *h;
    larger.room = 2 * uses;
    larger.uses = malloc(larger.room * sizeof *larger.uses);
    if (!larger.uses)
        return;
    for (uint64_t i = h->begin; i < h->end; i++)
        *use_at(&larger, i) = *use_at(h, i);
    free(h->uses);
    *h = larger;
}

void cws_history_forget(struct cws_history *h, struct cws_order_node *n)
{
    if (n->history_at <= h->begin) /* it has none, or too long ago */
        return;
    for (uint64_t b = n->history_at; b > h->begin; b = use_at(h, b - 1)->before)
        use_at(h, b - 1)->node = NULL;
    n->history_at = 0;
    h->holes = h->due = true;
    h->match = h->before_jump = 0;
    h->length = 0;
    h->sure = false;
}

/* A model of thousands of nodes is forgotten at once: what remains is moved together once, before it is looked at. */
static void close_holes(struct cws_history *h)
{
    uint64_t to = h->begin;
    for (uint64_t i = h->begin; i < h->end; i++)
        if (use_at(h, i)->node)
            use_at(h, i)->node->history_at = 0;
    for (uint64_t i = h->begin; i < h->end; i++) {
        struct cws_order_node *node = use_at(h, i)->node;
        if (!node)
            continue;
        *use_at(h, to) = (struct cws_history_use){node, node->history_at};
        node->history_at = ++to;
    }
    h->end = to;
    h->holes = false;
}

struct cws_order_node *cws_history_next(const struct cws_history *h, uint64_t k)
{
    return use_at(h, h->match + (k - 1) % period(h))->node;
}

/* --- the stretch ------------------------------------------------------------------------------------- */

/* How far ahead n is expected, if that is not far; 0: it is not. */
static uint64_t is_ahead(const struct cws_history *h, const struct cws_order_node *n)
{
    uint64_t most = h->tuning->history_skip_max;
    most = period(h) < most ? period(h) : most;
    for (uint64_t k = 1; k <= most; k++)
        if (cws_history_next(h, k) == n)
            return k;
    return 0;
}

/* The last use was out of order: it is ignored. */
static void take_back(struct cws_history *h)
{
    const struct cws_history_use *last = use_at(h, --h->end);
    last->node->history_at = last->before;
    h->match = h->before_jump;
    h->before_jump = 0;
}

/* The use that seemed to be left out comes after all: so the one before this was out of order. */
static bool is_back(const struct cws_history *h, const struct cws_order_node *n)
{
    return h->before_jump > h->begin && use_at(h, h->before_jump)->node == n;
}

bool cws_history_expects(const struct cws_history *h, const struct cws_order_node *n)
{
    return is_ahead(h, n) || is_back(h, n);
}

/* The match moves on with a use of n: to what was expected, or to one of those after it. */
static bool follow(struct cws_history *h, const struct cws_order_node *n)
{
    uint64_t k = is_ahead(h, n);
    if (k != 1 && is_back(h, n)) {
        take_back(h);
        k = 1;
    }
    h->before_jump = k > 1 ? h->match : 0;
    h->match += k;
    h->length += k == 1 && h->length < h->tuning->history_length_max;
    return k == 1;
}

/* Of the length, by a surprise. */
static uint32_t lost(const struct cws_history *h)
{
    uint64_t again = h->tuning->history_loss_again;
    return (uint32_t)(h->surprised ? (h->length + again - 1) / again : h->length / h->tuning->history_loss);
}

void cws_history_push(struct cws_history *h, struct cws_order_node *n)
{
    if (!h->room)
        return;
    if (follow(h, n)) {
        h->surprised = false;
    } else { /* one in a row costs little */
        h->length -= lost(h);
        h->surprised = h->due = true;
    }
    if (h->length < h->tuning->history_sure_still)
        h->sure = false;
    *use_at(h, h->end) = (struct cws_history_use){n, n->history_at};
    n->history_at = ++h->end;
    if (h->end - h->begin > h->room)
        h->begin++;
    if (period(h) > h->room / 2) { /* soon nothing would be known of it */
        h->match = h->before_jump = 0;
        h->length = 0;
        h->sure = false;
    }
}

/* How many uses that end with those at a and b agree, b < a. */
static uint64_t stretch(const struct cws_history *h, uint64_t a, uint64_t b)
{
    uint64_t n = 0, most = h->tuning->history_length_max;
    while (n < most && n <= b - h->begin && use_at(h, a - n)->node == use_at(h, b - n)->node)
        n++;
    return n;
}

static bool is_sure(struct cws_history *h)
{
    h->sure |= h->length >= h->tuning->history_sure;
    return h->sure && h->match;
}

uint64_t cws_history_look(struct cws_history *h)
{
    const struct cws_tuning *t = h->tuning;
    if (!h->due)
        return is_sure(h) ? period(h) : 0;
    h->due = false;
    if (h->holes)
        close_holes(h);
    if (h->end == h->begin)
        return 0;
    uint64_t last = h->end - 1, best = 0, at = 0;
    uint64_t b = use_at(h, last)->before;
    for (uint64_t i = 0;
         i < t->history_look_at && b > h->begin && h->end - b <= h->room / 2 && best < t->history_length_max;
         i++, b = use_at(h, b - 1)->before) {
        uint64_t n = stretch(h, last, b - 1);
        if (n > best) {
            best = n;
            at = b;
        }
    }
    if (best > t->history_better * h->length) { /* what was sure is left only after a second surprise */
        h->match = at;
        h->before_jump = 0;
        h->length = (uint32_t)best;
        h->sure = false;
    }
    return is_sure(h) ? period(h) : 0;
}

struct cws_order_node *cws_history_after(const struct cws_history *h, const struct cws_order_node *before,
                                         const struct cws_order_node *n)
{
    struct cws_order_node *any = NULL;
    uint64_t b = n->history_at;
    if (b == h->end) /* now: not known yet */
        b = b > h->begin ? use_at(h, b - 1)->before : 0;
    for (uint64_t i = 0; i < h->tuning->history_look_at_pairs && b > h->begin; i++, b = use_at(h, b - 1)->before) {
        struct cws_order_node *after = use_at(h, b)->node;
        if (b - 1 > h->begin && use_at(h, b - 2)->node == before)
            return after;
        any = any ? any : after;
    }
    return any;
}
