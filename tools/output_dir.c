/* output_dir.c - makes a directory under a temporary name, renames it when it is complete, and removes what killed runs
 * left. */
#include "output_dir.h"
#include "store/base/file_mode.h"
#include "model_dir.h"
#include "say.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The directory that holds `path`, in fresh memory; NULL without memory. */
static char *parent_of(const char *path)
{
    char *copy = strdup(path), *out = copy ? strdup(dirname(copy)) : NULL;
    free(copy);
    return out;
}

/* 0 if nothing stands at `path` or an empty directory. */
static int check_free(const char *path, struct cws_error *err)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : cws_fail_errno(err, errno, "%s", path);
    if (S_ISLNK(st.st_mode))
        return cws_fail(err, CWS_E_USAGE,
                        "%s: is a symbolic link; outputs are not written through links, name a new directory", path);
    if (!S_ISDIR(st.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: is a file; a directory needs a directory for its output", path);
    DIR *handle = opendir(path);
    if (!handle)
        return cws_fail_errno(err, errno, "%s: cannot list", path);
    bool empty = true;
    for (struct dirent *item; empty && (item = readdir(handle)) != NULL;)
        empty = strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0;
    closedir(handle);
    return empty ? 0
                 : cws_fail(err, CWS_E_USAGE, "%s: exists and is not empty; name a new directory or remove this one",
                            path);
}

/* Refuses an output below the input: it would be scanned as part of the model the next time. */
static int check_apart(const char *in, const char *parent, const char *out, struct cws_error *err)
{
    char *a = realpath(in, NULL), *b = a ? realpath(parent, NULL) : NULL;
    int rc = 0;
    if (!a)
        rc = cws_fail_errno(err, errno, "%s", in);
    else if (!b)
        rc = cws_fail_errno(err, errno, "%s: its directory", out);
    else if (strncmp(a, b, strlen(a)) == 0 && (b[strlen(a)] == '/' || b[strlen(a)] == '\0'))
        rc = cws_fail(err, CWS_E_USAGE, "%s: lies inside the input directory; name a directory beside it", out);
    free(a);
    free(b);
    return rc;
}

/* --- the temporary directory --------------------------------------------------------------------- */

#define TREE "tree"
#define MARKER CWS_PARTIAL_MARKER
static const char marker_text[] =
    "codecllm makes a directory here. When no codecllm is running, this may be removed.\n";

/* of a long name, so that the other fits into 255 bytes */
enum { NAME_KEPT = 200, DEPTH_MAX = 64, SUFFIX = 6 };

/* Removes what stands at name in the directory `at`, and nothing on another file system or behind a link. 0 or -1 with
 * errno. */
static int remove_tree(int at, const char *name, dev_t device, unsigned depth)
{
    struct stat st;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EACCES && fchmodat(at, name, 0700, 0) == 0) /* one that nobody may list */
        fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOTDIR || errno == ELOOP ? unlinkat(at, name, 0) : -1;
    DIR *handle = fstat(fd, &st) == 0 && st.st_dev == device && depth < DEPTH_MAX ? fdopendir(fd) : NULL;
    if (!handle) {
        close(fd);
        return -1;
    }
    (void)!fchmod(fd, 0700); /* a read-only directory of the input is one here, too */
    int rc = 0;
    for (struct dirent *item; !rc && (item = readdir(handle)) != NULL;) {
        if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0)
            rc = remove_tree(fd, item->d_name, device, depth + 1);
    }
    int why = errno;
    closedir(handle);
    errno = why;
    return rc ? rc : unlinkat(at, name, AT_REMOVEDIR);
}

/* Removes the temporary directory `name`; the marker goes last, so that the next run can finish what a kill stops. */
static int remove_temporary(int parent, const char *name)
{
    struct stat st;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int rc = fstat(fd, &st);
    if (!rc && remove_tree(fd, TREE, st.st_dev, 0) != 0 && errno != ENOENT)
        rc = -1;
    if (!rc && unlinkat(fd, MARKER, 0) != 0 && errno != ENOENT)
        rc = -1;
    int why = errno;
    close(fd);
    errno = why;
    return rc ? rc : unlinkat(parent, name, AT_REMOVEDIR);
}

/* Is the marker ours? One without its text yet was left by a kill right after it was made. */
static bool is_marker(int fd)
{
    char text[sizeof marker_text];
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1)
        return false;
    ssize_t bytes = pread(fd, text, sizeof text, 0);
    return bytes == 0 || (bytes == sizeof text - 1 && memcmp(text, marker_text, sizeof text - 1) == 0);
}

/* A left-over is removed when it is this user's, holds our marker, and nobody holds the marker's lock. */
static void remove_if_stale(int parent, const char *name)
{
    struct stat st;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    int marker = fstat(fd, &st) == 0 && st.st_uid == geteuid()
                     ? openat(fd, MARKER, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
                     : -1;
    if (marker >= 0 && is_marker(marker) && flock(marker, LOCK_EX | LOCK_NB) == 0)
        (void)!remove_temporary(parent, name);
    if (marker >= 0)
        close(marker);
    close(fd);
}

/* Best effort: what cannot be listed or removed is no reason not to write. */
static void remove_stale(const char *parent, const char *prefix)
{
    DIR *handle = opendir(parent);
    size_t len = strlen(prefix);
    for (struct dirent *item; handle && (item = readdir(handle)) != NULL;) {
        const char *suffix = item->d_name + len;
        if (strncmp(item->d_name, prefix, len) == 0 && strlen(suffix) == SUFFIX &&
            strspn(suffix, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") == SUFFIX)
            remove_if_stale(dirfd(handle), item->d_name);
    }
    if (handle)
        closedir(handle);
}

/* Makes and locks the marker in d->outer, and the tree. 0, or -1 with errno; EAGAIN: another run took it for a
 * left-over. */
static int fill_temporary(struct cws_output_dir *d)
{
    struct stat st;
    char *marker = cws_path_join(d->outer, MARKER);
    d->lock = open(marker, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    free(marker);
    if (d->lock < 0)
        return -1;
    if (flock(d->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) /* some file systems have no locks */
        return -1;
    if (fstat(d->lock, &st) != 0)
        return -1;
    if (st.st_nlink == 0) {
        errno = EAGAIN;
        return -1;
    }
    if (pwrite(d->lock, marker_text, sizeof marker_text - 1, 0) != sizeof marker_text - 1)
        return -1;
    d->temporary = cws_path_join(d->outer, TREE);
    return mkdir(d->temporary, 0700);
}

static void forget(struct cws_output_dir *d)
{
    if (d->lock >= 0)
        close(d->lock);
    free(d->outer);
    free(d->temporary);
    free(d->final);
    *d = (struct cws_output_dir){.lock = -1};
}

static int make_temporary(struct cws_output_dir *d, const char *parent, struct cws_error *err)
{
    const char *slash = strrchr(d->final, '/');
    char prefix[NAME_KEPT + sizeof "..partial-"];
    snprintf(prefix, sizeof prefix, ".%.*s.partial-", NAME_KEPT, slash ? slash + 1 : d->final);
    remove_stale(parent, prefix);
    for (unsigned tries = 0; tries < 100; tries++) {
        if (asprintf(&d->outer, "%s/%sXXXXXX", parent, prefix) < 0) {
            d->outer = NULL;
            return cws_fail(err, -ENOMEM, "%s: out of memory", d->final);
        }
        int rc = mkdtemp(d->outer) ? 0 : cws_fail_errno(err, errno, "%s: cannot make a directory there", parent);
        bool made = rc == 0;
        if (made && fill_temporary(d) == 0)
            return 0;
        int why = errno;
        if (made) {
            (void)!remove_temporary(AT_FDCWD, d->outer);
            rc = why == EAGAIN ? 0 : cws_fail_errno(err, why, "%s: cannot write in it", d->outer);
        }
        if (d->lock >= 0)
            close(d->lock);
        d->lock = -1;
        free(d->outer);
        free(d->temporary);
        d->outer = d->temporary = NULL;
        if (rc)
            return rc;
    }
    return cws_fail(err, -EAGAIN, "%s: cannot make a directory there that stays", parent);
}

int cws_output_dir_begin(const char *in, const char *out, struct cws_output_dir *d, struct cws_error *err)
{
    *d = (struct cws_output_dir){.final = strdup(out), .lock = -1};
    char *parent = NULL;
    int rc = 0;
    if (!d->final)
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", out);
    for (size_t n = rc ? 0 : strlen(d->final); n > 1 && d->final[n - 1] == '/'; n--)
        d->final[n - 1] = '\0';
    if (!rc && !(parent = parent_of(d->final)))
        rc = cws_fail(err, -ENOMEM, "%s: out of memory", out);
    const char *name = rc ? "" : strrchr(d->final, '/');
    name = name && name[0] ? name + 1 : d->final;
    if (!rc && (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)) /* rename(2) cannot replace these */
        rc = cws_fail(err, CWS_E_USAGE, "%s: cannot be replaced by a new directory; give the output a name", out);
    if (!rc)
        rc = check_free(d->final, err);
    if (!rc)
        rc = check_apart(in, parent, out, err);
    if (!rc && stat(in, &d->like) != 0)
        rc = cws_fail_errno(err, errno, "%s", in);
    if (!rc)
        rc = make_temporary(d, parent, err);
    free(parent);
    if (rc)
        forget(d);
    return rc;
}

void cws_output_dir_abort(struct cws_output_dir *d)
{
    if (d->outer && remove_temporary(AT_FDCWD, d->outer) != 0)
        cws_say_line("%s: could not be removed: %s; remove it by hand", d->outer, cws_strerror(-errno));
    forget(d);
}

/* Gives the tree its permissions and its place. rename(2) takes the place of nothing or of an empty directory, and of
 * nothing else; it asks for write permission on the directory itself, since that gets another parent. 0 or -1 with
 * errno. */
static int put_in_place(struct cws_output_dir *d)
{
    struct stat st, there;
    int fd = open(d->temporary, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int code = cws_file_mode_take(fd, &d->like, lstat(d->final, &there) == 0 ? there.st_mode : 0777);
    int rc = code == 0 && fstat(fd, &st) == 0 ? 0 : -1;
    if (!rc && !(st.st_mode & 0200))
        rc = fchmod(fd, (st.st_mode & 07777) | 0200);
    if (!rc)
        rc = rename(d->temporary, d->final);
    if (!rc && !(st.st_mode & 0200))
        (void)!fchmod(fd, st.st_mode & 07777);
    int why = code ? -code : errno;
    close(fd);
    errno = why;
    return rc;
}

int cws_output_dir_commit(struct cws_output_dir *d, struct cws_error *err)
{
    if (put_in_place(d) != 0) {
        int rc = cws_fail_errno(err, errno, "%s: cannot give the finished directory this name", d->final);
        cws_output_dir_abort(d);
        return rc;
    }
    if (remove_temporary(AT_FDCWD, d->outer) != 0)
        cws_say_line("%s: could not be removed: %s; remove it by hand", d->outer, cws_strerror(-errno));
    char *parent = parent_of(d->final);
    int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)!fsync(fd); /* the files are already safe; some file systems refuse this */
        close(fd);
    }
    free(parent);
    forget(d);
    return 0;
}

int cws_output_file_check(const char *in, const char *out, struct cws_error *err)
{
    struct stat from, to;
    if (stat(out, &to) != 0) /* nothing there, or something that writing will name */
        return 0;
    if (S_ISDIR(to.st_mode))
        return cws_fail(err, CWS_E_USAGE, "%s: is a directory; name the file to write", out);
    if (stat(in, &from) == 0 && from.st_dev == to.st_dev && from.st_ino == to.st_ino)
        return cws_fail(err, CWS_E_USAGE, "%s: is the input itself; name another output", out);
    return 0;
}
