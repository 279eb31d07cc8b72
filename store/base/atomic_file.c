/* atomic_file.c - temporary files that are renamed over their final name when they are complete. */
#include "atomic_file.h"
#include "file_mode.h"
#include "os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define MARK ".codecllm-tmp."

enum { NAME_KEPT = 200 }; /* of a long name, so that the temporary one fits into 255 bytes */

static int open_directory(const char *path, struct cws_atomic_file *f, struct cws_error *err)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strlen(name) >= sizeof f->name)
        return cws_fail(err, CWS_E_USAGE, "%s: not a name for an output file", path);
    strcpy(f->name, name);
    char *directory = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    if (!directory)
        return cws_fail(err, -ENOMEM, "%s: not enough memory", path);
    f->dir = cws_os_openat(AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
    free(directory);
    if (f->dir < 0)
        return cws_fail_errno(err, -f->dir, "%s: cannot open its directory", path);
    return 0;
}

static int check_target(const struct cws_atomic_file *f, const struct stat *input, struct cws_error *err)
{
    struct stat st;
    int code = cws_os_fstatat(f->dir, f->name, &st, AT_SYMLINK_NOFOLLOW);
    if (code == -ENOENT)
        return 0;
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot stat", f->path);
    if (S_ISLNK(st.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: the output is a symbolic link; remove it or name the file it points to",
                        f->path);
    if (!S_ISREG(st.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: the output exists and is not a regular file", f->path);
    if (input && input->st_dev == st.st_dev && input->st_ino == st.st_ino)
        return cws_fail(err, CWS_E_USAGE, "%s: the output is the input; name another file", f->path);
    return 0;
}

/* A left-over is only taken away when its process is gone and nobody holds its lock: the process may live in another
 * PID namespace. */
static void remove_if_stale(int dir, const char *name, const char *pid_text)
{
    char *end;
    long pid = strtol(pid_text, &end, 10);
    if (pid <= 0 || *end != '.' || kill((pid_t)pid, 0) == 0 || errno != ESRCH)
        return;
    int fd = cws_os_openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd < 0)
        return;
    struct stat st;
    if (cws_os_fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && cws_os_flock(fd, LOCK_EX | LOCK_NB) == 0)
        (void)cws_os_unlinkat(dir, name);
    cws_os_close(fd);
}

/* Best effort: what cannot be listed or removed is no reason not to write. */
static void remove_stale(const struct cws_atomic_file *f, const char *prefix)
{
    int fd = cws_os_openat(f->dir, ".", O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return;
    DIR *d = fdopendir(fd);
    if (!d) {
        cws_os_close(fd);
        return;
    }
    size_t len = strlen(prefix);
    for (const struct dirent *e; (e = readdir(d));)
        if (strncmp(e->d_name, prefix, len) == 0)
            remove_if_stale(f->dir, e->d_name, e->d_name + len);
    closedir(d);
}

static int make_temporary(struct cws_atomic_file *f, struct cws_error *err)
{
    static atomic_uint serial;
    char prefix[sizeof f->temporary];
    snprintf(prefix, sizeof prefix, ".%.*s" MARK, NAME_KEPT, f->name);
    remove_stale(f, prefix);
    for (unsigned tries = 0; tries < 1000; tries++) {
        unsigned n = atomic_fetch_add(&serial, 1);
        if ((size_t)snprintf(f->temporary, sizeof f->temporary, "%s%ld.%u", prefix, (long)getpid(), n) >=
            sizeof f->temporary)
            break;
        f->fd = cws_os_openat(f->dir, f->temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
        if (f->fd >= 0) {
            (void)cws_os_flock(f->fd, LOCK_EX | LOCK_NB); /* some file systems have no locks */
            return 0;
        }
        if (f->fd != -EEXIST)
            break;
    }
    int code = f->fd < 0 ? f->fd : -ENAMETOOLONG;
    f->fd = -1;
    return cws_fail_errno(err, -code, "%s: cannot create a temporary file beside it", f->path);
}

int cws_atomic_begin(struct cws_atomic_file *f, const char *path, const struct stat *input, struct cws_error *err)
{
    *f = (struct cws_atomic_file){.fd = -1, .dir = -1, .path = path, .has_like = input != NULL};
    if (input)
        f->like = *input;
    int code = open_directory(path, f, err);
    if (code)
        return code;
    code = check_target(f, input, err);
    if (!code)
        code = make_temporary(f, err);
    if (code) {
        cws_os_close(f->dir);
        f->dir = -1;
    }
    return code;
}

int cws_atomic_write(struct cws_atomic_file *f, const void *data, size_t bytes, uint64_t offset, struct cws_error *err)
{
    int code = cws_os_write_full(f->fd, data, bytes, offset);
    return code ? cws_fail_errno(err, -code, "%s: cannot write", f->path) : 0;
}

static int sync_and_rename(struct cws_atomic_file *f, struct cws_error *err)
{
    /* a link that was put there meanwhile would be replaced, not followed; say it all the same */
    struct stat st;
    int code = cws_os_fstatat(f->dir, f->name, &st, AT_SYMLINK_NOFOLLOW);
    if (code && code != -ENOENT)
        return cws_fail_errno(err, -code, "%s: cannot stat", f->path);
    if (!code && !S_ISREG(st.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: the output is no longer a regular file", f->path);
    code = cws_file_mode_take(f->fd, f->has_like ? &f->like : NULL, code ? 0777 : st.st_mode);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot give it its permissions", f->path);
    code = cws_os_fsync(f->fd);
    if (code)
        return cws_fail_errno(err, -code, "%s: cannot flush to disk", f->path);
    code = cws_os_renameat(f->dir, f->temporary, f->name);
    return code ? cws_fail_errno(err, -code, "%s: cannot rename the finished file into place", f->path) : 0;
}

int cws_atomic_commit(struct cws_atomic_file *f, struct cws_error *err)
{
    int code = sync_and_rename(f, err);
    if (code) {
        cws_atomic_abort(f);
        return code;
    }
    code = cws_os_fsync(f->dir);
    if (code == -EINVAL) /* this file system has no such thing for directories */
        code = 0;
    if (code)
        cws_fail_errno(err, -code, "%s: written, but its directory cannot be flushed to disk", f->path);
    cws_os_close(f->fd);
    cws_os_close(f->dir);
    f->fd = f->dir = -1;
    return code;
}

void cws_atomic_abort(struct cws_atomic_file *f)
{
    if (f->fd < 0)
        return;
    (void)cws_os_unlinkat(f->dir, f->temporary);
    cws_os_close(f->fd);
    cws_os_close(f->dir);
    f->fd = f->dir = -1;
}
