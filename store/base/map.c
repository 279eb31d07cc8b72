/* map.c - the hash map: linear probing, and removal that closes the gap, so that no marks of what was removed pile
 * up. */
#include "map.h"

#include <stdlib.h>
#include <string.h>

enum { ROOM_FIRST = 64 };

static size_t slot_words(const struct cws_map *m) { return 1 + m->value_bytes / 8; }
static uint64_t *slot_at(const struct cws_map *m, size_t i) { return m->slots + i * slot_words(m); }
static size_t next_of(const struct cws_map *m, size_t i) { return (i + 1) & (m->room - 1); }

/* Addresses are multiples of something: the product's upper half depends on all their bits. */
static size_t home_of(const struct cws_map *m, uint64_t key)
{
    return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (m->room - 1);
}

/* Where the key is, or where it would go. There is always a free slot. */
static size_t place_of(const struct cws_map *m, uint64_t key)
{
    size_t i = home_of(m, key);
    while (*slot_at(m, i) && *slot_at(m, i) != key)
        i = next_of(m, i);
    return i;
}

void cws_map_deinit(struct cws_map *m)
{
    free(m->slots);
    *m = (struct cws_map){.value_bytes = m->value_bytes};
}

void *cws_map_find(const struct cws_map *m, uint64_t key)
{
    if (!m->room || !key)
        return NULL;
    uint64_t *slot = slot_at(m, place_of(m, key));
    return *slot ? slot + 1 : NULL;
}

static bool grow(struct cws_map *m)
{
    struct cws_map more = *m;
    more.room = m->room ? 2 * m->room : ROOM_FIRST;
    more.slots = calloc(more.room, slot_words(m) * sizeof *more.slots);
    if (!more.slots)
        return false;
    for (size_t i = 0; i < m->room; i++)
        if (*slot_at(m, i))
            memcpy(slot_at(&more, place_of(&more, *slot_at(m, i))), slot_at(m, i), slot_words(m) * sizeof *m->slots);
    free(m->slots);
    m->slots = more.slots;
    m->room = more.room;
    return true;
}

void *cws_map_put(struct cws_map *m, uint64_t key)
{
    void *value = cws_map_find(m, key);
    if (value || !key)
        return value;
    if (m->count + 1 > m->room - m->room / 4 && !grow(m))
        return NULL;
    uint64_t *slot = slot_at(m, place_of(m, key));
    *slot = key;
    m->count++;
    return slot + 1;
}

/* Moves into the gap what would not be found any more behind it, and so on up to the next free slot. */
static void remove_at(struct cws_map *m, size_t gap)
{
    for (size_t i = next_of(m, gap); *slot_at(m, i); i = next_of(m, i)) {
        size_t distance = (i - home_of(m, *slot_at(m, i))) & (m->room - 1);
        if (distance < ((i - gap) & (m->room - 1))) /* its home is behind the gap */
            continue;
        memcpy(slot_at(m, gap), slot_at(m, i), slot_words(m) * sizeof *m->slots);
        gap = i;
    }
    memset(slot_at(m, gap), 0, slot_words(m) * sizeof *m->slots);
    m->count--;
}

bool cws_map_remove(struct cws_map *m, uint64_t key)
{
    size_t i = m->room && key ? place_of(m, key) : 0;
    if (!m->room || !key || !*slot_at(m, i))
        return false;
    remove_at(m, i);
    return true;
}

void cws_map_remove_if(struct cws_map *m, bool (*is_gone)(uint64_t key, void *value, void *arg), void *arg)
{
    for (size_t i = 0; i < m->room;) {
        uint64_t *slot = slot_at(m, i);
        if (*slot && is_gone(*slot, slot + 1, arg))
            remove_at(m, i); /* which may have moved another one here */
        else
            i++;
    }
}
