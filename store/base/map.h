/* map.h - a hash map from 64-bit keys (addresses, handles) to values of one size.
 *
 * Open addressing in one array that doubles. Each value lies in that array, so a pointer to one is valid until the next
 * cws_map_put or removal: what must keep its address is allocated by the caller, and its pointer is the value.
 * Ownership: the map owns its array; what values point to is the caller's. Threads: the caller serialises, readers too;
 * where readers may not take a lock this is the wrong map (shim/cuda/layout.c has one of its own). Only cws_map_put
 * allocates. Not for signal handlers. */
#ifndef CWS_MAP_H
#define CWS_MAP_H
#include "error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cws_map {
    size_t value_bytes; /* of each value; multiple of 8, set by the caller; all else starts as zero */
    size_t count;       /* keys */
    size_t room;        /* of the array: 0 or a power of two, and at least a quarter of it is free */
    uint64_t *slots;    /* a key, or 0 where there is none, and the value behind it */
};

/* An empty map of values of `type`: the initialiser of a struct cws_map. */
#define CWS_MAP_OF(type)                                                                                               \
    {                                                                                                                  \
        .value_bytes = (sizeof(type) + 7) / 8 * 8                                                                      \
    }

/* Frees the array. The map is empty then, and may be used on. */
void cws_map_deinit(struct cws_map *m);

/* The value of `key`, or NULL: not there. Key 0 is never there. */
void *cws_map_find(const struct cws_map *m, uint64_t key);

/* The value of `key`, which is all zero if the key was not there. NULL: no memory, or key 0, and the map is
 * unchanged. */
CWS_MUST_CHECK void *cws_map_put(struct cws_map *m, uint64_t key);

/* False: was not there. */
bool cws_map_remove(struct cws_map *m, uint64_t key);

/* Removes the keys for whose value is_gone() is true. It may be asked twice about one that stays; it may not use the
 * map. */
void cws_map_remove_if(struct cws_map *m, bool (*is_gone)(uint64_t key, void *value, void *arg), void *arg);
#endif
