/* Stores in memory, both ways. Odd first byte: the rest is a store of arbitrary bytes, opened and read where it lies,
 * in memory of exactly its size. Even: the rest is a tensor of some dtype, shape and mode, packed, opened and read
 * back. */
#include "fuzz_sign.h"
#include "store/read/store.h"
#include "store/pack/writer.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(void *arg, const struct cws_verify_fault *f)
{
    (void)f;
    ++*(int *)arg;
    return 0;
}

/* What verify calls sound must be readable; nothing else is promised. */
static void read_all(const struct cws_store *s, int faults)
{
    struct cws_error err = {0};
    uint64_t bytes = cws_store_logical_bytes(s);
    if (bytes > 1 << 22)
        return;
    uint8_t *out = malloc(bytes);
    int code = cws_store_read_parallel(s, 1 + bytes % 2, 0, bytes, out, &err);
    if (code && (!faults || !err.message[0]))
        abort();
    free(out);
}

static void open_any(const uint8_t *data, size_t size)
{
    struct cws_store *s;
    struct cws_error err = {0};
    int faults = 0;
    uint8_t *exact = malloc(size + !size);
    memcpy(exact, data, size);
    if (size % 2)
        fuzz_sign(exact, size);
    int code = cws_store_open_memory(exact, size, "blob", &s, &err);
    if ((code == 0) != (s != NULL) || (code && (err.code != code || !err.message[0])))
        abort();
    if (!code) {
        if (cws_store_verify(s, 1, count, NULL, &faults, &err) < 0)
            abort();
        read_all(s, faults);
        /* As a part of another store: taken whole, or refused. */
        const struct cws_tensor_info *t = cws_store_tensor(s, 0);
        struct cws_memory_tensor again = {.name = "again", .packed = s};
        struct cws_memory_model model = {.tensors = &again, .tensor_count = 1};
        struct cws_pack_options o = {.jobs = 1};
        uint8_t *out = NULL;
        uint64_t out_bytes;
        if (t) {
            again.dtype = t->dtype, again.shape = t->shape, again.ndim = t->ndim;
            code = cws_pack_tensors_to_memory(&model, &o, &out, &out_bytes, &err);
            struct cws_store *whole = NULL;
            if (!code && cws_store_open_memory(out, out_bytes, "again", &whole, &err))
                abort();
            cws_store_close(whole);
        }
        free(out);
    }
    cws_store_close(s);
    free(exact);
}

static void pack_any(uint8_t first, const uint8_t *data, size_t size)
{
    enum cws_dtype dtype = (enum cws_dtype)((first >> 1) % CWS_OTHER);
    uint64_t columns = size ? 1 + data[0] : 1, elems = size / ((cws_dtype_bits(dtype) + 7) / 8),
             shape[2] = {elems / columns, columns};
    struct cws_error err = {0};
    struct cws_memory_tensor t = {.name = "t", .dtype = dtype, .shape = shape, .ndim = 2, .data = data};
    struct cws_memory_model model = {.tensors = &t, .tensor_count = 1};
    for (int mode = CWS_MODE_LOSSLESS; mode <= CWS_MODE_Q6; mode++) {
        struct cws_pack_options o = {.mode = (enum cws_mode)mode, .jobs = 1};
        struct cws_store *s;
        uint8_t *out;
        uint64_t out_bytes, bytes;
        int faults = 0;
        if (!cws_dtype_size(dtype, shape[0] * shape[1], &bytes)) {
            if (cws_pack_tensors_to_memory(&model, &o, &out, &out_bytes, &err) != CWS_E_INPUT)
                abort();
            continue;
        }
        if (cws_pack_tensors_to_memory(&model, &o, &out, &out_bytes, &err) ||
            cws_store_open_memory(out, out_bytes, "t", &s, &err) ||
            cws_store_verify(s, 1, count, NULL, &faults, &err) || faults)
            abort();
        const struct cws_tensor_info *info = cws_store_tensor(s, 0);
        uint8_t *back = malloc(bytes + !bytes);
        if (cws_store_read_parallel(s, 1, info->begin, info->end, back, &err) || info->end - info->begin != bytes ||
            (!cws_store_is_lossy(s) && memcmp(back, data, bytes) != 0) ||
            (cws_store_is_lossy(s) && mode == CWS_MODE_LOSSLESS))
            abort();
        free(back);
        cws_store_close(s);
        free(out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 1 << 17)
        return 0;
    if (data[0] & 1)
        open_any(data + 1, size - 1);
    else
        pack_any(data[0], data + 1, size - 1);
    return 0;
}
