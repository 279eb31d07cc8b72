#include "own_fd.h"

#include <stdatomic.h>
#include <stdint.h>

/* A set bit means: the descriptor is open and ours. A cleared bit means that the program may do what it likes. */
static _Atomic uint64_t marks[CWS_OWN_FD_MAX / 64];
static _Atomic int marked; /* lower bound test for the common case: nothing is ours */

int cws_own_fd_note(int fd)
{
    if (fd >= 0 && fd < CWS_OWN_FD_MAX) {
        uint64_t bit = UINT64_C(1) << (fd % 64);
        if (!(atomic_fetch_or(&marks[fd / 64], bit) & bit))
            atomic_fetch_add(&marked, 1);
    }
    return fd;
}

void cws_own_fd_forget(int fd)
{
    if (fd >= 0 && fd < CWS_OWN_FD_MAX) {
        uint64_t bit = UINT64_C(1) << (fd % 64);
        if (atomic_fetch_and(&marks[fd / 64], ~bit) & bit)
            atomic_fetch_sub(&marked, 1);
    }
}

bool cws_own_fd_is(int fd)
{
    if (atomic_load_explicit(&marked, memory_order_relaxed) == 0 || fd < 0 || fd >= CWS_OWN_FD_MAX)
        return false;
    return atomic_load(&marks[fd / 64]) >> (fd % 64) & 1;
}

int cws_own_fd_next(int first)
{
    if (atomic_load_explicit(&marked, memory_order_relaxed) == 0 || first >= CWS_OWN_FD_MAX)
        return -1;
    if (first < 0)
        first = 0;
    uint64_t word = atomic_load(&marks[first / 64]) & (UINT64_MAX << (first % 64));
    for (int i = first / 64;;) {
        if (word)
            return i * 64 + __builtin_ctzll(word);
        if (++i == CWS_OWN_FD_MAX / 64)
            return -1;
        word = atomic_load(&marks[i]);
    }
}
