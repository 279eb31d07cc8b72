/* pattern_source.h - a source whose bytes are a function of their offset, for tests of the pager; and the loop over all
 * rungs. */
#ifndef PATTERN_SOURCE_H
#define PATTERN_SOURCE_H
#include "uvm/host/pager.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Sizes grow with the page, so that a test has the same layout everywhere: these are what they are called where a page
 * is 4 KiB. */
#define PAGE CWS_PAGE_BYTES
#define KIB (PAGE / 4)
#define MIB (PAGE * 256)

struct pattern {
    struct cws_source base;
    uint64_t region_bytes; /* every region, from `first_region` on; 0: none */
    uint64_t seed;
    _Atomic uint64_t corrupt_begin, corrupt_end; /* fills that touch this range fail */
    _Atomic uint64_t fills;
    _Atomic uint32_t in_slot[CWS_SLOTS_MAX]; /* proves that calls with one slot never overlap */
    _Atomic bool overlapped, destroyed;
    unsigned delay_us;
};

uint8_t pattern_byte(const struct pattern *p, uint64_t offset);
/* The caller owns the first reference; freed with the last one by pattern_free only. */
struct pattern *pattern_new(uint64_t bytes, uint64_t region_bytes);
void pattern_free(struct pattern *p);
/* Index of the first byte of [addr, addr + len) that is not the pattern's at `offset`, or -1. */
long pattern_differs(const struct pattern *p, const uint8_t *addr, size_t len, uint64_t offset);

/* The rung under test ("sigsegv", ...), or what the loop forced. */
const char *rung_under_test(void);
bool rung_is(const char *name);
/* Starts the pager on that rung; budget 0: none. */
void start_pager(uint64_t budget_bytes);
void start_pager_with(struct cws_options options);
void stop_pager(void);

/* Runs this program once for each rung that works here, with CODEC_PAGER set, and says which do not; in such a run
 * calls `tests`. For main(). */
int for_each_rung(int argc, char **argv, int (*tests)(void));

/* Bytes of resident memory of [addr, addr + len) by /proc/self/smaps, as an outsider would count them. */
uint64_t smaps_rss(const void *addr, size_t len);

/* Maps, or fails the test. */
uint8_t *map_view(struct pattern *p, size_t len, int prot, uint64_t offset);
void unmap_view(void *at, size_t len);

/* Runs `body` in a forked child with stderr caught: the wait status; what it wrote, in text. */
int in_child(void (*body)(void *), void *arg, char *text, size_t text_bytes);

/* xorshift, seeded and printed by the test. */
uint64_t next_random(uint64_t *state);
#endif
