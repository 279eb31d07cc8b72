/* input.c - the input of packing: a safetensors file, or tensors in memory that stand for one. */
#include "input.h"
#include "convert.h"
#include "store/format/header_text.h"
#include "store/base/os.h"
#include "store/read/store.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int read_exactly(const struct cws_pack_input *in, void *dst, size_t bytes, uint64_t offset,
                        struct cws_error *err)
{
    size_t got;
    int code = cws_os_read_full(in->fd, dst, bytes, offset, &got);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot read offset %" PRIu64, in->path, offset);
    if (got < bytes)
        return cws_fail(err, CWS_E_CHANGED,
                        "%s: the file became shorter while it was read (it ends at offset %" PRIu64 ")", in->path,
                        offset + got);
    return 0;
}

static int read_header(struct cws_pack_input *in, struct cws_error *err)
{
    uint64_t file_bytes = (uint64_t)in->opened.st_size, header_bytes;
    uint8_t first[8] = {0};
    int code = file_bytes < sizeof first ? 0 : read_exactly(in, first, sizeof first, 0, err);
    if (!code)
        code = cws_header_length(in->path, first, file_bytes, &header_bytes, err);
    if (code)
        return code;
    in->header_text = malloc(header_bytes);
    if (!in->header_text)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for a header of %" PRIu64 " bytes", in->path,
                        header_bytes);
    code = read_exactly(in, in->header_text, header_bytes, 0, err);
    if (!code && memcmp(first, in->header_text, sizeof first) != 0)
        code = cws_fail(err, CWS_E_CHANGED, "%s: the file changed while it was read", in->path);
    return code ? code : cws_header_parse(in->path, in->header_text, header_bytes, file_bytes, &in->source, err);
}

static int find_excluded(struct cws_pack_input *in, const struct cws_pack_options *options, struct cws_error *err)
{
    in->excluded = calloc(in->source->tensor_count + 1, sizeof *in->excluded);
    if (!in->excluded)
        return cws_fail(err, -ENOMEM, "%s: not enough memory", in->path);
    for (size_t i = 0; i < in->source->tensor_count; i++)
        for (const char *const *glob = options->exclude; glob && *glob && !in->excluded[i]; glob++)
            in->excluded[i] = fnmatch(*glob, in->source->tensors[i].name, 0) == 0;
    return 0;
}

/* The header after conversion: the same names, metadata and order, other dtypes and offsets. */
static int convert_header(struct cws_pack_input *in, enum cws_dtype dtype, struct cws_error *err)
{
    const struct cws_header *from = in->source;
    size_t count = from->tensor_count, converted = 0;
    struct cws_header *to = malloc(sizeof *to);
    in->shapes = malloc((count + 1) * sizeof *in->shapes);
    if (!to || !in->shapes) {
        free(to);
        return cws_fail(err, -ENOMEM, "%s: not enough memory", in->path);
    }
    *to = *from;
    to->tensors = in->shapes;
    in->logical = to;
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        struct cws_header_tensor *t = &to->tensors[i];
        *t = from->tensors[i];
        if (!in->excluded[i] && cws_convert_possible(t->dtype, dtype)) {
            t->dtype = dtype;
            t->dtype_name = cws_dtype_name(dtype);
            converted++;
        }
        uint64_t bytes = t->end - t->begin;
        bool fits = t->dtype == from->tensors[i].dtype || cws_dtype_size(t->dtype, t->elems, &bytes);
        t->begin = at;
        if (!fits || __builtin_add_overflow(bytes, at, &t->end) || t->end > INT64_MAX)
            return cws_fail(err, CWS_E_INPUT, "%s: too large to be converted", in->path);
        at = t->end;
    }
    to->data_bytes = at;
    if (!converted) {
        free(to);
        in->logical = in->source;
        return 0;
    }
    free(in->header_text);
    in->header_text = NULL;
    return cws_header_write(in->path, to, &in->header_text, &to->header_bytes, err);
}

static int open_input(struct cws_pack_input *in, const struct cws_pack_options *options, struct cws_error *err)
{
    in->fd = cws_os_openat(AT_FDCWD, in->path, O_RDONLY | O_NONBLOCK, 0);
    if (in->fd < 0)
        return cws_fail_errno(err, -in->fd, "%s: cannot open", in->path);
    int code = cws_os_fstat(in->fd, &in->opened);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot stat", in->path);
    if (!S_ISREG(in->opened.st_mode))
        return cws_fail(err, CWS_E_INPUT, "%s: not a regular file", in->path);
    code = cws_store_probe_fd(in->fd);
    if (code < 0)
        return cws_fail_errno(err, -code, "%s: cannot read", in->path);
    if (code == 1)
        return cws_fail(err, CWS_E_USAGE, "%s: already a codecllm store; to pack it anew, unpack it first", in->path);
    code = read_header(in, err);
    if (code)
        return code;
    in->logical = in->source;
    code = find_excluded(in, options, err);
    return code || !options->convert ? code : convert_header(in, options->dtype, err);
}

int cws_pack_input_open(struct cws_pack_input *in, const char *path, const struct cws_pack_options *options,
                        struct cws_error *err)
{
    *in = (struct cws_pack_input){.path = path, .fd = -1};
    int code = open_input(in, options, err);
    if (code)
        cws_pack_input_close(in);
    return code;
}

/* --- tensors in memory ---------------------------------------------------------------------------- */

static int by_size_and_name(const void *a, const void *b)
{
    const struct cws_memory_tensor *x = *(const struct cws_memory_tensor *const *)a,
                                   *y = *(const struct cws_memory_tensor *const *)b;
    unsigned xs = cws_dtype_bits(x->dtype), ys = cws_dtype_bits(y->dtype);
    return xs != ys ? (xs < ys ? 1 : -1) : strcmp(x->name, y->name);
}

/* *out: the header's entry of a tensor that begins at `at`. */
static int describe(const struct cws_pack_input *in, const struct cws_memory_tensor *m, size_t position, uint64_t at,
                    struct cws_header_tensor *out, struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    *out = (struct cws_header_tensor){.name = m->name,
                                      .shape = m->shape,
                                      .ndim = m->ndim,
                                      .elems = 1,
                                      .begin = at,
                                      .position = position,
                                      .dtype = m->dtype,
                                      .dtype_name = cws_dtype_name(m->dtype)};
    uint64_t bytes = 0;
    bool fits = true;
    for (size_t d = 0; d < m->ndim && fits; d++)
        fits = !__builtin_mul_overflow(out->elems, m->shape[d], &out->elems);
    if (m->dtype == CWS_OTHER && m->packed && cws_store_tensor(m->packed, m->packed_index)) {
        const struct cws_tensor_info *t = cws_store_tensor(m->packed, m->packed_index);
        out->dtype_name = t->dtype_name;
        bytes = t->end - t->begin;
    } else {
        fits = fits && cws_dtype_size(m->dtype, out->elems, &bytes);
    }
    if (!fits || __builtin_add_overflow(bytes, at, &out->end) || out->end > INT64_MAX)
        return cws_fail(err, CWS_E_INPUT,
                        "%s: tensor \"%s\": its shape is larger than memory, or no whole number of bytes", in->path,
                        cws_name_shown(m->name, shown));
    if (!m->packed && !m->data && out->elems)
        return cws_fail(err, CWS_E_USAGE, "%s: tensor \"%s\": no data", in->path, cws_name_shown(m->name, shown));
    return 0;
}

static int make_header(struct cws_pack_input *in, const struct cws_memory_model *model, struct cws_error *err)
{
    size_t count = model->tensor_count;
    struct cws_header h = {
        .tensor_count = count, .metadata_count = model->metadata_count, .has_metadata = model->metadata_count > 0};
    h.tensors = calloc(count + 1, sizeof *h.tensors);
    h.metadata = calloc(model->metadata_count + 1, sizeof *h.metadata);
    in->memory = calloc(count + 1, sizeof *in->memory);
    int code = h.tensors && h.metadata && in->memory ? 0 : cws_fail(err, -ENOMEM, "%s: not enough memory", in->path);
    for (size_t i = 0; i < count && !code; i++) {
        in->memory[i] = &model->tensors[i];
        if (!cws_dtype_bits(model->tensors[i].dtype) &&
            (model->tensors[i].dtype != CWS_OTHER || !model->tensors[i].packed))
            code = cws_fail(err, CWS_E_USAGE, "%s: tensor %zu has an unknown dtype", in->path, i);
    }
    if (!code)
        qsort(in->memory, count, sizeof *in->memory, by_size_and_name);
    for (size_t i = 0; i < count && !code; i++) {
        code = describe(in, in->memory[i], i, h.data_bytes, &h.tensors[i], err);
        h.data_bytes = h.tensors[i].end;
    }
    for (size_t i = 0; i < model->metadata_count && !code; i++)
        h.metadata[i] = (struct cws_header_metadata){model->metadata[2 * i], model->metadata[2 * i + 1]};
    if (!code)
        code = cws_header_write(in->path, &h, &in->header_text, &h.header_bytes, err);
    if (!code) /* what it holds must be what a file may hold: names, metadata */
        code = cws_header_parse(in->path, in->header_text, h.header_bytes, UINT64_MAX, &in->source, err);
    if (!code && (in->source->tensor_count != count || in->source->metadata_count != model->metadata_count))
        code = cws_fail(err, CWS_E_INPUT, "%s: a tensor cannot be called __metadata__", in->path);
    free(h.tensors);
    free(h.metadata);
    return code;
}

static int check_packed(const struct cws_pack_input *in, const struct cws_memory_tensor *m, struct cws_error *err)
{
    char shown[CWS_NAME_SHOWN_BYTES];
    const struct cws_tensor_info *t = cws_store_tensor(m->packed, m->packed_index);
    if (!t || t->dtype != m->dtype || t->ndim != m->ndim ||
        (m->ndim && memcmp(t->shape, m->shape, m->ndim * sizeof *m->shape) != 0) ||
        t->record->chunk_bytes > CWS_CHUNK_BYTES)
        return cws_fail(err, CWS_E_USAGE,
                        "%s: tensor \"%s\": what it is said to be packed in is no tensor of its dtype and shape",
                        in->path, cws_name_shown(m->name, shown));
    return 0;
}

int cws_pack_input_memory(struct cws_pack_input *in, const struct cws_memory_model *model, const char *path,
                          const struct cws_pack_options *options, struct cws_error *err)
{
    *in = (struct cws_pack_input){.path = path, .fd = -1};
    int code = options->convert ? cws_fail(err, CWS_E_USAGE, "%s: tensors in memory are not converted", path) : 0;
    if (!code)
        code = make_header(in, model, err);
    for (size_t i = 0; i < model->tensor_count && !code; i++)
        if (in->memory[i]->packed)
            code = check_packed(in, in->memory[i], err);
    if (!code) {
        in->logical = in->source;
        in->opened.st_size = (off_t)(in->source->header_bytes + in->source->data_bytes);
        code = find_excluded(in, options, err);
    }
    if (code)
        cws_pack_input_close(in);
    return code;
}

void cws_pack_input_close(struct cws_pack_input *in)
{
    if (in->fd >= 0)
        cws_os_close(in->fd);
    if (in->logical != in->source)
        free(in->logical);
    cws_header_destroy(in->source);
    free(in->header_text);
    free(in->shapes);
    free(in->excluded);
    free(in->memory);
    *in = (struct cws_pack_input){.fd = -1};
}

int cws_pack_input_read(const struct cws_pack_input *in, size_t t, uint64_t begin, size_t bytes, void *dst,
                        void *scratch, struct cws_error *err)
{
    const struct cws_header_tensor *from = &in->source->tensors[t], *to = &in->logical->tensors[t];
    uint64_t file_offset = in->source->header_bytes + from->begin;
    if (from->dtype == to->dtype)
        return read_exactly(in, dst, bytes, file_offset + begin, err);
    unsigned from_bytes = cws_dtype_unit(from->dtype), to_bytes = cws_dtype_unit(to->dtype);
    size_t count = bytes / to_bytes;
    int code = read_exactly(in, scratch, count * from_bytes, file_offset + begin / to_bytes * from_bytes, err);
    if (!code)
        cws_convert(from->dtype, to->dtype, scratch, dst, count);
    return code;
}

int cws_pack_input_changed(const struct cws_pack_input *in, struct cws_error *err)
{
    struct stat now;
    const struct stat *then = &in->opened;
    if (in->memory)
        return 0;
    int code = cws_os_fstat(in->fd, &now);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot stat", in->path);
    if (now.st_size != then->st_size || now.st_mtim.tv_sec != then->st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != then->st_mtim.tv_nsec)
        return cws_fail(err, CWS_E_CHANGED,
                        "%s: the file changed while it was packed; pack it again when it is at rest", in->path);
    return 0;
}
