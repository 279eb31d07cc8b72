/* content_hash.h - the order-sensitive 128-bit hash of a tensor's decoded bytes.
 *
 * The bytes are cut into 16-byte words (lo, hi: two little-endian u64; the last word is zero-padded).
 * hash = sum over words i of (lo + K(2i)) * (hi + K(2i+1)) modulo 2^128, where
 * K(j) = z ^ (z >> 29), z = (y ^ (y >> 32)) * 0xd6e8feb86659fd93, y = key[j & 1] + (j >> 1) * 0x9e3779b97f4a7c15.
 * (NH of UMAC with derived position keys: a changed word goes unseen with probability about 2^-64 under a
 * random key.) Sums of parts add up: parallel and grid-independent. Threads: any. No allocation. */
#ifndef CWS_CONTENT_HASH_H
#define CWS_CONTENT_HASH_H
#include <stddef.h>
#include <stdint.h>

struct cws_hash128 {
    uint64_t lo, hi;
};

/* The fixed key of the form that is stored in files. */
extern const uint64_t cws_content_key[2];

/* Adds `bytes` bytes at byte offset `first_byte` of the tensor (multiple of 16) to *sum.
 * Every part but a tensor's last must be a multiple of 16 bytes long. */
void cws_content_hash_add(struct cws_hash128 *sum, const uint64_t key[2], const void *data, size_t bytes,
                          uint64_t first_byte);

/* *sum += part, modulo 2^128. */
void cws_hash128_add(struct cws_hash128 *sum, struct cws_hash128 part);
#endif
