/* file.c - ordinary safetensors files as sources: finds the file behind a mapping, and reads one tensor of it. */
#include "file.h"
#include "store/base/lock.h"
#include "store/base/os.h"
#include "store/base/own_fd.h"
#include "store/format/safetensors.h"
#include "store/read/store.h"
#include "mapping.h"
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct cws_gpu_file {
    atomic_uint refs;
    int fd;
    dev_t device;
    ino_t inode;
    uint64_t bytes;
    struct timespec changed; /* as the header was read */
    struct cws_header *header;
    char path[];
};

static int read_all(int fd, uint64_t offset, void *to, size_t bytes)
{
    size_t got;
    int code = cws_os_read_full(fd, to, bytes, offset, &got);
    return code ? code : got == bytes ? 0 : -ENODATA;
}

/* --- files ---------------------------------------------------------------------------------------------- */

/* 0, and *out = NULL if that is no safetensors file; or what kept it from being known. */
static int read_header(const char *path, int fd, uint64_t file_bytes, struct cws_header **out)
{
    uint8_t first[8], *text = NULL;
    uint64_t bytes;
    struct cws_error err = {0};
    int code = file_bytes < sizeof first ? CWS_E_INPUT : read_all(fd, 0, first, sizeof first);
    *out = NULL;
    if (!code)
        code = cws_header_length(path, first, file_bytes, &bytes, &err);
    if (!code && !(text = malloc(bytes)))
        code = -ENOMEM;
    if (!code)
        code = read_all(fd, 0, text, bytes);
    if (!code)
        code = cws_header_parse(path, text, bytes, file_bytes, out, &err);
    free(text);
    return code == CWS_E_INPUT ? 0 : code;
}

static bool same_file(const struct cws_gpu_file *f, const struct stat *st)
{
    return f->device == st->st_dev && f->inode == st->st_ino && f->bytes == (uint64_t)st->st_size &&
           f->changed.tv_sec == st->st_mtim.tv_sec && f->changed.tv_nsec == st->st_mtim.tv_nsec;
}

/* Opens the file by its name, if that is still the mapped one, else through the mapping itself, which needs a
 * privilege. */
static int open_mapped(const struct cws_mapping *m, struct stat *st)
{
    char alias[96];
    snprintf(alias, sizeof alias, "/proc/self/map_files/%lx-%lx", (unsigned long)m->begin, (unsigned long)m->end);
    for (unsigned i = 0; i < 2; i++) {
        int fd = cws_os_openat(AT_FDCWD, i ? alias : m->path, O_RDONLY | O_NONBLOCK, 0);
        if (fd < 0)
            continue;
        /* st_dev of some file systems is not what maps shows: the inode has to do there, and the content hash is taken
         * from the mapping. */
        if (cws_os_fstat(fd, st) == 0 && st->st_ino == m->inode && S_ISREG(st->st_mode))
            return fd;
        cws_os_close(fd);
    }
    return -1;
}

/* Owns fd if it succeeds. NULL: what the file is could not be found out now. */
static struct cws_gpu_file *create_file(const char *path, int fd, const struct stat *st)
{
    struct cws_gpu_file *f = calloc(1, sizeof *f + strlen(path) + 1);
    if (!f)
        return NULL;
    if (read_header(path, fd, (uint64_t)st->st_size, &f->header)) {
        free(f);
        return NULL;
    }
    memcpy(f->path, path, strlen(path) + 1);
    f->fd = cws_own_fd_keep(fd); /* the program cannot close it by mistake */
    f->device = st->st_dev;
    f->inode = st->st_ino;
    f->bytes = (uint64_t)st->st_size;
    f->changed = st->st_mtim;
    atomic_init(&f->refs, 1);
    return f;
}

static struct cws_gpu_file *open_file(const struct cws_mapping *m)
{
    /* the last file: a loader copies one after the other */
    static struct cws_lock lock = CWS_LOCK_OF(CWS_RANK_CUDA_FILE);
    static struct cws_gpu_file *last;
    struct stat st;
    int fd = open_mapped(m, &st);
    if (fd < 0)
        return NULL;
    cws_lock_take(&lock);
    struct cws_gpu_file *f = last && same_file(last, &st) ? cws_gpu_file_retain(last) : NULL;
    if (!f && (f = create_file(m->path, fd, &st)) != NULL) {
        fd = -1;
        cws_gpu_file_release(last);
        /* also one that is none of ours, so that it is not parsed again and again */
        last = cws_gpu_file_retain(f);
    }
    cws_lock_drop(&lock);
    if (fd >= 0)
        cws_os_close(fd);
    return f;
}

static const struct cws_header_tensor *tensor_at(const struct cws_gpu_file *file, uint64_t offset)
{
    const struct cws_header *h = file->header;
    size_t low = 0, high = h ? h->tensor_count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct cws_header_tensor *t = &h->tensors[middle];
        if (h->header_bytes + t->begin == offset && t->end > t->begin)
            return t;
        if (h->header_bytes + t->begin <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

struct cws_gpu_file *cws_gpu_file_of(const void *memory, size_t bytes, uint64_t *out_offset)
{
    struct cws_mapping m;
    if (!bytes || !cws_mapping_find((uintptr_t)memory, bytes, &m) || !cws_mapping_is_clean((uintptr_t)memory, bytes))
        return NULL;
    struct cws_gpu_file *f = open_file(&m);
    if (!f)
        return NULL;
    uint64_t offset = m.offset + ((uintptr_t)memory - m.begin);
    const struct cws_header_tensor *t = tensor_at(f, offset);
    if (!t || t->end - t->begin != bytes) {
        cws_gpu_file_release(f);
        return NULL;
    }
    *out_offset = offset;
    return f;
}

struct cws_gpu_file *cws_gpu_file_retain(struct cws_gpu_file *file)
{
    atomic_fetch_add(&file->refs, 1);
    return file;
}

void cws_gpu_file_release(struct cws_gpu_file *file)
{
    if (!file || atomic_fetch_sub(&file->refs, 1) != 1)
        return;
    cws_os_close(file->fd);
    cws_header_destroy(file->header);
    free(file);
}

const char *cws_gpu_file_path(const struct cws_gpu_file *file) { return file->path; }
const char *cws_gpu_file_tensor(const struct cws_gpu_file *file, uint64_t offset)
{
    return tensor_at(file, offset)->name;
}

/* --- as a source ------------------------------------------------------------------------------------------ */

struct cws_tensor_info *cws_gpu_file_describe(const struct cws_gpu_file *file, uint64_t offset, size_t bytes,
                                              const uint8_t *now)
{
    const struct cws_header_tensor *t = tensor_at(file, offset);
    const struct cws_tensor_info like = {.name = t->name,
                                         .dtype = t->dtype,
                                         .dtype_name = t->dtype_name,
                                         .shape = t->shape,
                                         .ndim = t->ndim,
                                         .begin = offset,
                                         .elems = t->elems};
    return cws_gpu_raw_describe(&like, bytes, now);
}

int cws_gpu_file_read(const struct cws_gpu_file *file, const struct cws_tensor_info *tensor, uint64_t begin,
                      uint64_t end, uint8_t *to, struct cws_error *err)
{
    int code = read_all(file->fd, tensor->begin + begin, to, end - begin);
    if (code == -ENODATA)
        return cws_fail(err, CWS_E_CHANGED, "%s: tensor \"%s\": the file is shorter than when it was loaded",
                        file->path, tensor->name);
    return code ? cws_fail_errno(err, -code, "%s: tensor \"%s\"", file->path, tensor->name) : 0;
}
