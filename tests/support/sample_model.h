/* sample_model.h - small safetensors files for the tests: same seed, same bytes. */
#ifndef CWS_TEST_SAMPLE_MODEL_H
#define CWS_TEST_SAMPLE_MODEL_H
#include <stddef.h>
#include <stdint.h>

struct bytes {
    uint8_t *data;
    size_t size;
};

/* A safetensors file from its JSON text (padded with spaces to 8 bytes if pad) and data. free(.data). */
struct bytes sample_file(const char *json, int pad, const void *data, size_t data_bytes);

/* Tensors of the usual dtypes, of 0, 1 and many elements, in an odd order, with metadata; scale 1: about 600 KB, 0:
 * about 20 KB. */
struct bytes sample_model(uint64_t seed, int scale);
/* The same of the dtypes that came later, and of two that do not exist; about 40 KB. */
struct bytes sample_later_types(uint64_t seed);

uint64_t sample_random(uint64_t *state);

/* Whole files. Abort the test program on failure. */
void sample_save(const char *path, const void *data, size_t size);
struct bytes sample_load(const char *path);

/* A fresh directory under TMPDIR or /tmp, removed at exit with all that is in it. The path of `name` in it, valid for
 * good; at most 32 names. */
const char *sample_path(const char *name);

#endif
