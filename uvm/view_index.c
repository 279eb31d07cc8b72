/* The set of views, by address. Writers hold both locks with signals blocked; readers without a lock (cws_view_overlaps) check a sequence number. */
#include "pager.h"

#include <sched.h>
#include <string.h>

struct entry {
    _Atomic uintptr_t begin, end;
    _Atomic(struct cws_view *) view;
};

static struct entry entries[CWS_VIEWS_MAX];
static _Atomic size_t entry_count;
static _Atomic uint32_t sequence; /* odd: being changed */
static struct cws_view *by_slot[CWS_VIEWS_MAX];
static uint32_t slot_generations[CWS_VIEWS_MAX];

static void entry_copy(struct entry *to, struct entry *from)
{
    atomic_store_explicit(&to->begin, atomic_load_explicit(&from->begin, memory_order_relaxed), memory_order_release);
    atomic_store_explicit(&to->end, atomic_load_explicit(&from->end, memory_order_relaxed), memory_order_release);
    atomic_store_explicit(&to->view, atomic_load_explicit(&from->view, memory_order_relaxed), memory_order_release);
}

/* Between these two, stores to the entries are releases and readers load them with acquire: a reader that saw one of them sees the odd number too. */
static void change_begin(void) { atomic_fetch_add_explicit(&sequence, 1, memory_order_acq_rel); }
static void change_end(void) { atomic_fetch_add_explicit(&sequence, 1, memory_order_release); }

/* Index of the first entry that ends behind `begin`. */
static size_t lower(uintptr_t begin, size_t count)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (atomic_load_explicit(&entries[middle].end, memory_order_acquire) <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int cws_index_insert_locked(struct cws_view *v)
{
    size_t count = atomic_load(&entry_count), slot = 0;
    if (count == CWS_VIEWS_MAX)
        return -ENOMEM;
    while (by_slot[slot])
        slot++;
    by_slot[slot] = v;
    v->slot = (uint32_t)slot;
    v->slot_generation = ++slot_generations[slot];

    size_t at = lower((uintptr_t)v->base, count);
    change_begin();
    for (size_t i = count; i > at; i--)
        entry_copy(&entries[i], &entries[i - 1]);
    atomic_store_explicit(&entries[at].begin, (uintptr_t)v->base, memory_order_release);
    atomic_store_explicit(&entries[at].end, (uintptr_t)v->base + v->bytes, memory_order_release);
    atomic_store_explicit(&entries[at].view, v, memory_order_release);
    atomic_store_explicit(&entry_count, count + 1, memory_order_release);
    change_end();
    return 0;
}

void cws_index_remove_locked(struct cws_view *v)
{
    size_t count = atomic_load(&entry_count), at = lower((uintptr_t)v->base, count);
    by_slot[v->slot] = NULL;
    change_begin();
    for (size_t i = at; i + 1 < count; i++)
        entry_copy(&entries[i], &entries[i + 1]);
    atomic_store_explicit(&entry_count, count - 1, memory_order_release);
    change_end();
}

struct cws_view *cws_index_find_locked(const void *addr, size_t len)
{
    uintptr_t begin = (uintptr_t)addr;
    size_t count = atomic_load_explicit(&entry_count, memory_order_relaxed), at = lower(begin, count);
    if (at == count || len == 0)
        return NULL;
    uintptr_t first = atomic_load_explicit(&entries[at].begin, memory_order_relaxed);
    if (first > begin && first - begin >= len)
        return NULL;
    return atomic_load_explicit(&entries[at].view, memory_order_relaxed);
}

struct cws_view *cws_index_at_locked(size_t i)
{
    return i < atomic_load(&entry_count) ? atomic_load(&entries[i].view) : NULL;
}

size_t cws_index_count_locked(void) { return atomic_load(&entry_count); }

struct cws_view *cws_index_slot_locked(uint32_t slot, uint32_t generation)
{
    struct cws_view *v = slot < CWS_VIEWS_MAX ? by_slot[slot] : NULL;
    return v && v->slot_generation == generation ? v : NULL;
}

bool cws_view_overlaps(const void *addr, size_t len)
{
    uintptr_t begin = (uintptr_t)addr;
    if (atomic_load_explicit(&entry_count, memory_order_acquire) == 0 || len == 0)
        return false;
    for (;;) {
        uint32_t before = atomic_load_explicit(&sequence, memory_order_acquire);
        if (before & 1) {
            sched_yield();
            continue;
        }
        size_t count = atomic_load_explicit(&entry_count, memory_order_acquire);
        size_t at = lower(begin, count);
        bool found = false;
        if (at < count) {
            uintptr_t first = atomic_load_explicit(&entries[at].begin, memory_order_acquire);
            found = first <= begin || first - begin < len;
        }
        if (atomic_load_explicit(&sequence, memory_order_relaxed) == before)
            return found;
    }
}
