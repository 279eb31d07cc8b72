/* list.h - the doubly linked circular list whose links lie in what it lists.
 *
 * A head is a link that belongs to no element: head.next is the first, head.prev the last, and an empty list's head
 * names itself. So does the link of an element that is in no list, which is why removing it twice does no harm.
 * Ownership: the caller's, of heads and elements; nothing is allocated. Errors: none. Threads: the caller serialises.
 * Every function is O(1), and safe in a signal handler that did not interrupt a change of the same list. */
#ifndef CWS_LIST_H
#define CWS_LIST_H
#include <stdbool.h>
#include <stddef.h>

struct cws_list {
    struct cws_list *prev, *next;
};

/* The element of `type` whose field `member` is *link. */
#define CWS_LIST_OF(link, type, member) ((type *)((char *)(link)-offsetof(type, member)))

/* An empty list, or a link in no list. */
static inline void cws_list_init(struct cws_list *l) { l->prev = l->next = l; }

static inline bool cws_list_is_empty(const struct cws_list *head) { return head->next == head; }

/* Puts `l`, which is in no list, before `at`: before a head is the list's end. */
static inline void cws_list_add_before(struct cws_list *at, struct cws_list *l)
{
    l->prev = at->prev;
    l->next = at;
    l->prev->next = l;
    at->prev = l;
}

/* Takes `l` out of its list. In none: nothing happens. */
static inline void cws_list_remove(struct cws_list *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    cws_list_init(l);
}
#endif
