/* plain.c - sizes of what the program takes from the driver itself: a table from address or handle to bytes. Such calls are rare
 * and slow, so one lock does. */
#include "plain.h"

#include <pthread.h>
#include <stdlib.h>

struct plain {
    unsigned long long key;
    size_t bytes; /* 0: free slot */
    struct cws_gpu *gpu;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the table; nothing is called under it */
static struct plain *table;
static size_t room, used; /* room: a power of two; used counts slots that are or were taken */
static _Atomic size_t live;

static size_t slot_of(unsigned long long key) { return (size_t)((key * 0x9e3779b97f4a7c15ull) >> 20) & (room - 1); }

/* A freed slot keeps its key, so that those behind it are still found. */
static struct plain *find_locked(unsigned long long key)
{
    if (!room)
        return NULL;
    for (size_t i = slot_of(key); table[i].key; i = (i + 1) & (room - 1))
        if (table[i].key == key)
            return &table[i];
    return NULL;
}

static void insert_locked(const struct plain *p)
{
    size_t i = slot_of(p->key);
    while (table[i].key && table[i].key != p->key)
        i = (i + 1) & (room - 1);
    used += !table[i].key;
    table[i] = *p;
}

static bool grow_locked(void)
{
    struct plain *old = table;
    size_t old_room = room, wanted = 256;
    while (wanted < 4 * (atomic_load(&live) + 1))
        wanted *= 2;
    struct plain *more = calloc(wanted, sizeof *more);
    if (!more)
        return false;
    table = more;
    room = wanted;
    used = 0;
    for (size_t i = 0; i < old_room; i++)
        if (old[i].bytes)
            insert_locked(&old[i]);
    free(old);
    return true;
}

bool cws_plain_note(unsigned long long key, size_t bytes, struct cws_gpu *gpu)
{
    if (!key || !bytes)
        return true;
    pthread_mutex_lock(&lock);
    bool fits = used + 1 < room - room / 4 || grow_locked();
    if (fits) {
        struct plain *before = find_locked(key);
        if (!before || !before->bytes)
            atomic_fetch_add(&live, 1);
        insert_locked(&(struct plain){key, bytes, gpu});
    }
    pthread_mutex_unlock(&lock);
    return fits;
}

size_t cws_plain_forget(unsigned long long key, struct cws_gpu **out_gpu)
{
    size_t bytes = 0;
    if (!atomic_load_explicit(&live, memory_order_relaxed))
        return 0;
    pthread_mutex_lock(&lock);
    struct plain *p = find_locked(key);
    if (p && p->bytes) {
        bytes = p->bytes;
        *out_gpu = p->gpu;
        p->bytes = 0;
        atomic_fetch_sub(&live, 1);
    }
    pthread_mutex_unlock(&lock);
    return bytes;
}

void cws_plain_forget_manager(struct cws_gpu *gpu)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < room; i++) {
        if (table[i].bytes && table[i].gpu == gpu) {
            table[i].bytes = 0;
            atomic_fetch_sub(&live, 1);
        }
    }
    pthread_mutex_unlock(&lock);
}
