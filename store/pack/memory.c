/* memory.c - packing of tensors that lie in memory, into a file or into memory. */
#include "store/base/os.h"
#include "run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { JOB_BYTES = 1 << 20 }; /* a thread has buffers of several MiB: less than this is not worth one */

struct growing {
    uint8_t *data;
    uint64_t bytes, room;
};

static int write_memory(void *arg, const void *data, size_t bytes, uint64_t offset, struct cws_error *err)
{
    struct growing *g = arg;
    uint64_t end = offset + bytes;
    if (end > g->room) {
        uint64_t room = g->room + g->room / 2 > end ? g->room + g->room / 2 : end;
        uint8_t *more = realloc(g->data, room);
        if (!more)
            return cws_fail(err, -ENOMEM, "not enough memory for a store of more than %llu bytes",
                            (unsigned long long)end);
        g->data = more;
        g->room = room;
    }
    if (offset > g->bytes)
        memset(g->data + g->bytes, 0, offset - g->bytes);
    memcpy(g->data + offset, data, bytes);
    g->bytes = end;
    return 0;
}

/* No more threads than there is work for. */
static struct cws_pack_options with_jobs(const struct cws_pack_options *options, const struct cws_pack_input *in)
{
    struct cws_pack_options o = *options;
    uint64_t most = in->source->data_bytes / JOB_BYTES + 1;
    o.jobs = o.jobs ? o.jobs : cws_os_cpu_count();
    if (most < o.jobs)
        o.jobs = (unsigned)most;
    return o;
}

int cws_pack_tensors_to_file(const struct cws_memory_model *model, const char *out_path,
                             const struct cws_pack_options *options, struct cws_pack_result *result,
                             struct cws_error *err)
{
    struct cws_pack_input in;
    int code = cws_pack_input_memory(&in, model, out_path, options, err);
    if (code)
        return code;
    struct cws_pack_options o = with_jobs(options, &in);
    code = cws_pack_input_to_file(&in, out_path, &o, result, err);
    cws_pack_input_close(&in);
    return code;
}

int cws_pack_tensors_to_memory(const struct cws_memory_model *model, const struct cws_pack_options *options,
                               uint8_t **out, uint64_t *out_bytes, struct cws_error *err)
{
    struct cws_pack_input in;
    struct growing g = {0};
    struct cws_pack_sink sink = {write_memory, &g};
    *out = NULL;
    *out_bytes = 0;
    int code = cws_pack_input_memory(&in, model, "memory", options, err);
    if (code)
        return code;
    struct cws_pack_options o = with_jobs(options, &in);
    code = cws_pack_run(&in, &sink, &o, NULL, err);
    cws_pack_input_close(&in);
    if (code) {
        free(g.data);
        return code;
    }
    uint8_t *whole = realloc(g.data, g.bytes);
    *out = whole ? whole : g.data;
    *out_bytes = g.bytes;
    return 0;
}
