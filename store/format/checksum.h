/* checksum.h - XXH3-64 of a chunk's stored bytes. Pure; any thread. The same value on every machine. */
#ifndef CWS_CHECKSUM_H
#define CWS_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>

uint64_t cws_checksum(const void *data, size_t bytes, uint64_t seed);

/* Its forms: the header-only library is built for the machine that a file is compiled for. */
uint64_t cws_checksum_portable(const void *data, size_t bytes, uint64_t seed);
uint64_t cws_checksum_avx2(const void *data, size_t bytes, uint64_t seed);

#endif
