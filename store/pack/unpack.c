/* unpack.c - a store back into the safetensors file that was packed. */
#include "store/base/atomic_file.h"
#include "store/read/internal.h"
#include "writer.h"

#include <errno.h>
#include <pthread.h>

struct unpacking {
    struct cws_atomic_file out;
    pthread_mutex_t lock;   /* protects error */
    struct cws_error error; /* the first one */
};

static int unpack_chunk(void *arg, const struct cws_walk_item *item)
{
    struct unpacking *u = arg;
    struct cws_error err = {0};
    int code = item->code;
    if (code)
        cws_fail(&err, code, "%s", item->message);
    else
        code = cws_atomic_write(&u->out, item->decoded, item->bytes, item->logical_begin, &err);
    if (code) {
        pthread_mutex_lock(&u->lock);
        if (!u->error.code)
            u->error = err;
        pthread_mutex_unlock(&u->lock);
    }
    return code;
}

static int unpack_into(const struct cws_store *s, struct unpacking *u, const struct cws_walk *walk,
                       struct cws_error *err)
{
    uint64_t header_bytes;
    const uint8_t *header = cws_store_header(s, &header_bytes);
    int code = cws_atomic_write(&u->out, header, header_bytes, 0, err);
    if (code)
        return code;
    code = cws_store_walk(s, walk, err);
    if (!code || !u->error.code)
        return code;
    if (err)
        *err = u->error;
    return u->error.code;
}

int cws_unpack_file(const char *in_path, const char *out_path, enum cws_io_engine io, unsigned jobs,
                    void (*progress)(void *arg, uint64_t done, uint64_t total), void *arg, const volatile int *cancel,
                    struct cws_error *err)
{
    struct cws_store *s;
    struct unpacking u = {.out = {.fd = -1}};
    struct cws_walk walk = {
        .jobs = jobs,
        .chunk = unpack_chunk,
        .progress = progress,
        .arg = &u,
        .progress_arg = arg,
        .cancel = cancel,
    };
    int code = cws_store_open(in_path, io, &s, err);
    if (code)
        return code;
    pthread_mutex_init(&u.lock, NULL);
    code = cws_atomic_begin(&u.out, out_path, &s->opened, err);
    if (!code) {
        code = unpack_into(s, &u, &walk, err);
        if (code)
            cws_atomic_abort(&u.out);
        else
            code = cws_atomic_commit(&u.out, err);
    }
    pthread_mutex_destroy(&u.lock);
    cws_store_close(s);
    return code;
}
