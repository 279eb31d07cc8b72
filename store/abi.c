/* abi.c - the functions of abi.h, each a thin layer over the store's own: they check what a foreign language
 * hands in and turn it into the structs of store.h and writer.h. */
#include "abi.h"
#include "store/base/options.h"
#include "store/read/store.h"
#include "store/read/symbols.h"
#include "store/pack/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int codecllm_abi(void) { return CODECLLM_ABI; }

int codecllm_budget_check(const char *text, struct cws_error *err) { return cws_options_check_budget(text, err); }

int codecllm_open(const char *path, struct cws_store **out, struct cws_error *err)
{
    struct cws_options options;
    *out = NULL;
    int code = cws_options_from_env(&options, err);
    return code ? code : cws_store_open(path, options.io, out, err);
}

int codecllm_open_memory(const void *data, uint64_t bytes, const char *name, struct cws_store **out,
                         struct cws_error *err)
{
    return cws_store_open_memory(data, bytes, name, out, err);
}

void codecllm_close(struct cws_store *s) { cws_store_close(s); }

int codecllm_is_store(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return 0;
    int yes = cws_store_probe_fd(fd);
    close(fd);
    return yes == 1;
}

const uint8_t *codecllm_header(const struct cws_store *s, uint64_t *out_bytes)
{
    return cws_store_header(s, out_bytes);
}

static const char *codec_name(unsigned codec)
{
    switch ((enum cws_codec_id)codec) {
    case CWS_CODEC_RAW: return "raw";
    case CWS_CODEC_ZSTD: return "zstd";
    case CWS_CODEC_SPLIT: return "split";
    case CWS_CODEC_QUANT: return "quant";
    }
    return "unknown";
}

uint64_t codecllm_tensor_count(const struct cws_store *s) { return cws_store_tensor_count(s); }

static int find(const struct cws_store *s, uint64_t i, const struct cws_tensor_info **out, struct cws_error *err)
{
    *out = cws_store_tensor(s, i);
    return *out ? 0
                : cws_fail(err, CWS_E_RANGE, "%s: no tensor %llu of %llu", cws_store_path(s), (unsigned long long)i,
                           (unsigned long long)cws_store_tensor_count(s));
}

int codecllm_tensor(const struct cws_store *s, uint64_t i, struct codecllm_tensor *out, struct cws_error *err)
{
    const struct cws_tensor_info *t;
    int code = find(s, i, &t, err);
    if (code)
        return code;
    *out = (struct codecllm_tensor){
        .name = t->name,
        .dtype = t->dtype_name,
        .codec = codec_name(t->record->codec),
        .shape = t->shape,
        .ndim = t->ndim,
        .elems = t->elems,
        .begin = t->begin,
        .end = t->end,
        .stored_bytes = t->stored_bytes,
        .quant_bits = t->record->quant_bits,
    };
    return 0;
}

int codecllm_read(const struct cws_store *s, unsigned jobs, uint64_t begin, uint64_t end, void *dst,
                  struct cws_error *err)
{
    return cws_store_read_parallel(s, jobs, begin, end, dst, err);
}

int codecllm_unpack(const void *data, uint64_t bytes, unsigned jobs, void *dst, uint64_t dst_bytes,
                    struct cws_error *err)
{
    struct cws_store *s;
    int code = cws_store_open_memory(data, bytes, "compressed tensor", &s, err);
    if (code)
        return code;
    const struct cws_tensor_info *t = cws_store_tensor(s, 0);
    if (cws_store_tensor_count(s) != 1 || t->end - t->begin != dst_bytes)
        code = cws_fail(err, CWS_E_RANGE, "compressed tensor: not one tensor of %llu bytes",
                        (unsigned long long)dst_bytes);
    else
        code = cws_store_read_parallel(s, jobs, t->begin, t->end, dst, err);
    cws_store_close(s);
    return code;
}

static int first_fault(void *arg, const struct cws_verify_fault *fault)
{
    cws_error_set(arg, CWS_E_CORRUPT, "%s", fault->message);
    return 1;
}

int codecllm_verify(const struct cws_store *s, unsigned jobs, struct cws_error *err)
{
    struct cws_error fault = {0};
    int code = cws_store_verify(s, jobs, first_fault, NULL, &fault, &fault);
    if (code && err)
        *err = fault;
    return code == 1 ? CWS_E_CORRUPT : code;
}

int codecllm_entropy(const struct cws_store *s, uint64_t i, double *out_entropy_bits, double *out_plain_bits,
                     struct cws_error *err)
{
    const struct cws_tensor_info *t;
    struct cws_symbols symbols;
    int code = find(s, i, &t, err);
    if (!code)
        code = cws_symbols_count(s, t, &symbols, err);
    if (code)
        return code;
    /* of an element: one symbol each */
    double units = cws_dtype_bits(t->dtype) / (8.0 * cws_dtype_unit(t->dtype));
    *out_entropy_bits = symbols.entropy_bits * units;
    *out_plain_bits = t->record->codec == CWS_CODEC_SPLIT ? 8.0 * (cws_dtype_unit(t->dtype) - 1) * units : 0;
    return 0;
}

/* --- packing ---------------------------------------------------------------------------------------- */

static int parse_mode(const char *mode, enum cws_mode *out, struct cws_error *err)
{
    static const char *const names[] = {"lossless", "q8", "q6"};
    for (unsigned i = 0; i < 3; i++) {
        if (strcmp(mode, names[i]) == 0) {
            *out = (enum cws_mode)i;
            return 0;
        }
    }
    return cws_fail(err, CWS_E_USAGE, "mode '%.40s': use lossless, q8 or q6", mode);
}

/* Sets *out but for `packed`, which it opens; the caller closes it. */
static int take_input(const struct codecllm_input *in, struct cws_memory_tensor *out, struct cws_store **packed,
                      struct cws_error *err)
{
    uint64_t bytes;
    *out = (struct cws_memory_tensor){.name = in->name, .shape = in->shape, .ndim = in->ndim, .data = in->data};
    if (cws_dtype_parse(in->dtype, strlen(in->dtype), &out->dtype) || (out->dtype == CWS_OTHER && !in->packed))
        return cws_fail(err, CWS_E_USAGE, "tensor \"%.100s\": dtype %.20s is not one that safetensors files have here",
                        in->name, in->dtype);
    if (in->packed) {
        int code = cws_store_open_memory(in->packed, in->packed_bytes, in->name, packed, err);
        if (!code && cws_store_tensor_count(*packed) != 1)
            code = cws_fail(err, CWS_E_USAGE, "%.100s: not a store of one tensor", in->name);
        out->packed = *packed;
        return code;
    }
    uint64_t elems = 1;
    bool fits = true;
    for (uint64_t d = 0; d < in->ndim && fits; d++)
        fits = !__builtin_mul_overflow(elems, in->shape[d], &elems);
    if (!fits || !cws_dtype_size(out->dtype, elems, &bytes))
        return cws_fail(err, CWS_E_USAGE,
                        "tensor \"%.100s\": its shape is larger than memory, or no whole number of bytes", in->name);
    if (bytes != in->bytes)
        return cws_fail(err, CWS_E_USAGE, "tensor \"%.100s\": %llu bytes were given; its dtype and shape take %llu",
                        in->name, (unsigned long long)in->bytes, (unsigned long long)bytes);
    return 0;
}

/* To `path`, or where that is NULL to memory. */
static int pack(const struct codecllm_job *job, const char *path, uint8_t **out, uint64_t *out_bytes,
                struct cws_error *err)
{
    struct cws_pack_options options = {.jobs = job->jobs};
    size_t count = job->tensor_count;
    int code = parse_mode(job->mode, &options.mode, err);
    if (code)
        return code;
    struct cws_memory_tensor *tensors = calloc(count + 1, sizeof *tensors);
    struct cws_store **packed = calloc(count + 1, sizeof(struct cws_store *));
    if (!tensors || !packed)
        code = cws_fail(err, -ENOMEM, "not enough memory to pack %zu tensors", count);
    for (size_t i = 0; i < count && !code; i++)
        code = take_input(&job->tensors[i], &tensors[i], &packed[i], err);
    struct cws_memory_model model = {tensors, count, job->metadata, job->metadata_count};
    if (!code)
        code = path ? cws_pack_tensors_to_file(&model, path, &options, NULL, err)
                    : cws_pack_tensors_to_memory(&model, &options, out, out_bytes, err);
    for (size_t i = 0; packed && i < count; i++)
        cws_store_close(packed[i]);
    free(packed);
    free(tensors);
    return code;
}

int codecllm_pack_file(const struct codecllm_job *job, const char *path, struct cws_error *err)
{
    return pack(job, path, NULL, NULL, err);
}

int codecllm_pack_memory(const struct codecllm_job *job, uint8_t **out, uint64_t *out_bytes, struct cws_error *err)
{
    *out = NULL;
    *out_bytes = 0;
    return pack(job, NULL, out, out_bytes, err);
}

int codecllm_extract(const struct cws_store *s, uint64_t i, uint8_t **out, uint64_t *out_bytes, struct cws_error *err)
{
    const struct cws_tensor_info *t;
    *out = NULL;
    *out_bytes = 0;
    int code = find(s, i, &t, err);
    if (code)
        return code;
    struct cws_memory_tensor alone = {
        .name = "tensor", .dtype = t->dtype, .shape = t->shape, .ndim = t->ndim, .packed = s, .packed_index = i};
    struct cws_memory_model model = {.tensors = &alone, .tensor_count = 1};
    struct cws_pack_options options = {.jobs = 0};
    return cws_pack_tensors_to_memory(&model, &options, out, out_bytes, err);
}

void codecllm_free(void *data) { free(data); }
