/* history.c - predicts the next use: finds the longest stretch of the past that ended as the present does. */
#include "history.h"
#include "order.h"

#include <stdlib.h>

enum {
    SURE = 32,         /* a stretch of this length is no chance */
    SURE_STILL = 8,    /* and goes on while so much of it is left */
    LENGTH_MAX = 128,  /* longer ones are trusted no more */
    SKIP_MAX = 8,      /* uses that are left out are found in so many */
    LOOK_AT = 64,      /* ends of stretches, at most */
    LOOK_AT_PAIRS = 4, /* uses of a node, for one that came after the same node as now */
    USES_MAX = 1 << 15,
};

static struct cws_history_use *use_at(const struct cws_history *h, uint64_t index) { return &h->uses[index % h->room]; }
static uint64_t period(const struct cws_history *h) { return h->match ? h->end - h->match : 0; }

void cws_history_deinit(struct cws_history *h)
{
    free(h->uses);
    *h = (struct cws_history){0};
}

void cws_history_reserve(struct cws_history *h, uint64_t uses)
{
    uses = uses < USES_MAX ? uses : USES_MAX;
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
    uint64_t most = period(h) < SKIP_MAX ? period(h) : SKIP_MAX;
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
    h->length += k == 1 && h->length < LENGTH_MAX;
    return k == 1;
}

void cws_history_push(struct cws_history *h, struct cws_order_node *n)
{
    if (!h->room)
        return;
    if (follow(h, n)) {
        h->surprised = false;
    } else { /* one in a row costs little */
        h->length -= h->surprised ? (h->length + 1) / 2 : h->length / 4;
        h->surprised = h->due = true;
    }
    if (h->length < SURE_STILL)
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
    uint64_t n = 0;
    while (n < LENGTH_MAX && n <= b - h->begin && use_at(h, a - n)->node == use_at(h, b - n)->node)
        n++;
    return n;
}

static bool is_sure(struct cws_history *h)
{
    h->sure |= h->length >= SURE;
    return h->sure && h->match;
}

uint64_t cws_history_look(struct cws_history *h)
{
    if (!h->due)
        return is_sure(h) ? period(h) : 0;
    h->due = false;
    if (h->holes)
        close_holes(h);
    if (h->end == h->begin)
        return 0;
    uint64_t last = h->end - 1, best = 0, at = 0;
    uint64_t b = use_at(h, last)->before;
    for (unsigned i = 0; i < LOOK_AT && b > h->begin && h->end - b <= h->room / 2 && best < LENGTH_MAX;
         i++, b = use_at(h, b - 1)->before) {
        uint64_t n = stretch(h, last, b - 1);
        if (n > best) {
            best = n;
            at = b;
        }
    }
    if (best > 2 * (uint64_t)h->length) { /* what was sure is left only after a second surprise */
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
    for (unsigned i = 0; i < LOOK_AT_PAIRS && b > h->begin; i++, b = use_at(h, b - 1)->before) {
        struct cws_order_node *after = use_at(h, b)->node;
        if (b - 1 > h->begin && use_at(h, b - 2)->node == before)
            return after;
        any = any ? any : after;
    }
    return any;
}
