/* race_range.h - what code that ThreadSanitizer does not look into is about to read or write.
 *
 * Decoders, encoders and hashes touch each byte several times, and only bytes they are given: they are built without it
 * (store/CMakeLists.txt), and who calls them says which. Nothing in other builds. */
#ifndef CWS_RACE_RANGE_H
#define CWS_RACE_RANGE_H
#include <stddef.h>

#ifdef CWS_TSAN
void __tsan_read_range(void *addr, long size);
void __tsan_write_range(void *addr, long size);
static inline void cws_race_read(const void *from, size_t bytes)
{
    __tsan_read_range((void *)(size_t)from, (long)bytes);
}
static inline void cws_race_write(void *to, size_t bytes) { __tsan_write_range(to, (long)bytes); }
#else
static inline void cws_race_read(const void *from, size_t bytes) { (void)from, (void)bytes; }
static inline void cws_race_write(void *to, size_t bytes) { (void)to, (void)bytes; }
#endif

#endif
