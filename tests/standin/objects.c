#include "state.h"

#include <stdlib.h>
#include <string.h>

static struct {
    void **items;
    size_t count, room;
} lists[OBJECT_KINDS];

void *take_memory(size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory)
        abort();
    return memory;
}

void object_add_locked(enum object_kind kind, void *object)
{
    if (lists[kind].count == lists[kind].room) {
        size_t room = lists[kind].room ? 2 * lists[kind].room : 64;
        void **items = realloc(lists[kind].items, room * sizeof *items);
        if (!items)
            abort();
        lists[kind].items = items;
        lists[kind].room = room;
    }
    lists[kind].items[lists[kind].count++] = object;
}

bool object_is_locked(enum object_kind kind, const void *object)
{
    for (size_t i = lists[kind].count; i-- > 0;) /* the youngest are used most */
        if (lists[kind].items[i] == object)
            return true;
    return false;
}

void object_remove_locked(enum object_kind kind, void *object)
{
    for (size_t i = lists[kind].count; i-- > 0;)
        if (lists[kind].items[i] == object) {
            lists[kind].items[i] = lists[kind].items[--lists[kind].count];
            break;
        }
    if (lists[kind].count == 0) {
        free(lists[kind].items);
        memset(&lists[kind], 0, sizeof lists[kind]);
    }
}

size_t object_count_locked(enum object_kind kind) { return lists[kind].count; }
void *object_index_locked(enum object_kind kind, size_t index)
{
    return index < lists[kind].count ? lists[kind].items[index] : NULL;
}
void *object_any_locked(enum object_kind kind) { return object_index_locked(kind, 0); }
