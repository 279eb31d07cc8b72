/* index.c - from an address to its view: an entry for each contiguous piece of a view, sorted by address, none
 * overlapping. Writers hold both locks with signals blocked. cws_view_overlaps takes no lock: it checks a sequence
 * number. */
#include "pager.h"

#include <sched.h>
#include <string.h>

struct index_entry {
    _Atomic uintptr_t begin, end;
    _Atomic(struct cws_view *) view;
};

static struct index_entry entries[CWS_VIEWS_MAX];
static _Atomic size_t entry_count;
static _Atomic uint32_t sequence; /* odd: being changed */
static struct cws_view *by_slot[CWS_VIEWS_MAX];
static uint32_t slot_generations[CWS_VIEWS_MAX];
static size_t slot_end, view_count; /* pager lock */
static size_t slot_free;            /* pager lock; no slot before it is free */

static void entry_copy(struct index_entry *to, struct index_entry *from)
{
    atomic_store_explicit(&to->begin, atomic_load_explicit(&from->begin, memory_order_relaxed), memory_order_release);
    atomic_store_explicit(&to->end, atomic_load_explicit(&from->end, memory_order_relaxed), memory_order_release);
    atomic_store_explicit(&to->view, atomic_load_explicit(&from->view, memory_order_relaxed), memory_order_release);
}

/* Between these two, stores to the entries are releases and readers load them with acquire: a reader that saw one of
 * them sees the odd number too. */
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

static void entry_set(size_t i, uintptr_t begin, uintptr_t end, struct cws_view *v)
{
    atomic_store_explicit(&entries[i].begin, begin, memory_order_release);
    atomic_store_explicit(&entries[i].end, end, memory_order_release);
    atomic_store_explicit(&entries[i].view, v, memory_order_release);
}

/* Opens a gap at `at`, or closes the one between `at` and `at` + n. Between change_begin and change_end. */
static void shift_up(size_t at, size_t count)
{
    for (size_t i = count; i > at; i--)
        entry_copy(&entries[i], &entries[i - 1]);
    atomic_store_explicit(&entry_count, count + 1, memory_order_release);
}
static void shift_down(size_t at, size_t n, size_t count)
{
    for (size_t i = at; i + n < count; i++)
        entry_copy(&entries[i], &entries[i + n]);
    atomic_store_explicit(&entry_count, count - n, memory_order_release);
}

bool cws_index_can_cut_locked(const void *addr, size_t len)
{
    uintptr_t from = (uintptr_t)addr;
    size_t count = atomic_load(&entry_count), at = lower(from, count);
    if (count < CWS_VIEWS_MAX || at == count)
        return true;
    return atomic_load(&entries[at].begin) >= from || atomic_load(&entries[at].end) <= from + len;
}

int cws_index_insert_locked(struct cws_view *v)
{
    size_t count = atomic_load(&entry_count), slot = slot_free;
    while (slot < CWS_VIEWS_MAX && by_slot[slot])
        slot++;
    if (count == CWS_VIEWS_MAX || slot == CWS_VIEWS_MAX)
        return -ENOMEM;
    slot_free = slot + 1;
    by_slot[slot] = v;
    slot_end = slot >= slot_end ? slot + 1 : slot_end;
    v->slot = (uint32_t)slot;
    v->slot_generation = ++slot_generations[slot];
    view_count++;

    size_t at = lower((uintptr_t)v->base, count);
    change_begin();
    shift_up(at, count);
    entry_set(at, (uintptr_t)v->base, (uintptr_t)v->base + v->bytes, v);
    change_end();
    return 0;
}

void cws_index_cut_locked(const void *addr, size_t len)
{
    uintptr_t from = (uintptr_t)addr, to = from + len;
    size_t count = atomic_load(&entry_count), at = lower(from, count);
    change_begin();
    if (at < count) {
        uintptr_t begin = atomic_load(&entries[at].begin), end = atomic_load(&entries[at].end);
        if (begin < from && end > to) { /* cut in two */
            shift_up(at, count);
            atomic_store_explicit(&entries[at].end, from, memory_order_release);
            atomic_store_explicit(&entries[at + 1].begin, to, memory_order_release);
            change_end();
            return;
        }
        if (begin < from) {
            atomic_store_explicit(&entries[at].end, from, memory_order_release);
            at++;
        }
    }
    size_t last = at;
    while (last < count && atomic_load(&entries[last].end) <= to)
        last++;
    if (last < count && atomic_load(&entries[last].begin) < to)
        atomic_store_explicit(&entries[last].begin, to, memory_order_release);
    shift_down(at, last - at, count);
    change_end();
}

void cws_index_forget_locked(struct cws_view *v)
{
    by_slot[v->slot] = NULL;
    slot_free = v->slot < slot_free ? v->slot : slot_free;
    view_count--;
}

bool cws_index_find_locked(const void *addr, size_t len, struct cws_piece *out)
{
    uintptr_t begin = (uintptr_t)addr;
    size_t count = atomic_load_explicit(&entry_count, memory_order_relaxed), at = lower(begin, count);
    if (at == count || len == 0)
        return false;
    uintptr_t first = atomic_load_explicit(&entries[at].begin, memory_order_relaxed);
    uintptr_t end = atomic_load_explicit(&entries[at].end, memory_order_relaxed);
    if (first > begin && first - begin >= len)
        return false;
    struct cws_view *v = atomic_load_explicit(&entries[at].view, memory_order_relaxed);
    first = first > begin ? first : begin;
    end = end - begin < len ? end : begin + len;
    *out = (struct cws_piece){.view = v, .from = first - (uintptr_t)v->base, .to = end - (uintptr_t)v->base};
    return true;
}

struct cws_view *cws_index_next_locked(uint32_t *slot)
{
    while (*slot < slot_end) {
        struct cws_view *v = by_slot[(*slot)++];
        if (v)
            return v;
    }
    return NULL;
}

size_t cws_index_count_locked(void) { return view_count; }

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

bool cws_view_any(void) { return atomic_load_explicit(&entry_count, memory_order_acquire) != 0; }
