/* stat.c - hooks of stat and its kin: a store has the size of its logical file, and as many blocks as if it had no
 * holes. */
#include "file_table.h"
#include "hooks.h"
#include "shim/state.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>

enum { BLOCK_BYTES = 512 }; /* the unit of st_blocks */

static void show(struct stat *st, uint64_t bytes)
{
    st->st_size = (off_t)bytes;
    st->st_blocks = (blkcnt_t)((bytes + BLOCK_BYTES - 1) / BLOCK_BYTES);
}

/* Names of files that a program looks at by the thousand while it starts, and that are no models. */
static bool is_program_file(const char *path)
{
    static const char *const endings[] = {".py", ".pyc", ".so", ".json", ".txt", ".h", ".c", ".md", ".toml"};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0)
            return true;
    return false;
}

static int after_path(int result, int dir, const char *path, struct stat *st, int flags)
{
    if (result == 0 && cws_shim_active() && cws_stores_plausible(st) && !is_program_file(path)) {
        int64_t bytes = cws_stores_logical_bytes(dir, path, st, flags);
        if (bytes > 0)
            show(st, (uint64_t)bytes);
        if (bytes < 0) {
            errno = (int)-bytes;
            return -1;
        }
    }
    return result;
}

static int after_fd(int result, int fd, struct stat *st)
{
    if (result == 0 && cws_file_is_tracked(fd)) {
        struct cws_guard guard = cws_guard_begin();
        struct cws_file *f = cws_file_get(fd);
        uint64_t bytes = f ? cws_file_bytes(f) : 0; /* of no store it is 0 */
        cws_file_put(f);
        cws_guard_end(&guard);
        if (bytes) /* outside: st may lie in a view */
            show(st, bytes);
    }
    return result;
}

static int after_at(int result, int dir, const char *path, struct stat *st, int flags)
{
    if ((flags & AT_EMPTY_PATH) && (!path || !*path))
        return after_fd(result, dir, st);
    return after_path(result, dir, path, st, flags & AT_SYMLINK_NOFOLLOW);
}

int cws_hook_stat(const char *path, struct stat *out)
{
    return after_path(CWS_REAL(stat)(path, out), AT_FDCWD, path, out, 0);
}
CWS_SAME(stat64, stat);

int cws_hook_lstat(const char *path, struct stat *out)
{
    return after_path(CWS_REAL(lstat)(path, out), AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}
CWS_SAME(lstat64, lstat);

int cws_hook_fstat(int fd, struct stat *out) { return after_fd(CWS_REAL(fstat)(fd, out), fd, out); }
CWS_SAME(fstat64, fstat);

int cws_hook_fstatat(int dir, const char *path, struct stat *out, int flags)
{
    return after_at(CWS_REAL(fstatat)(dir, path, out, flags), dir, path, out, flags);
}
CWS_SAME(fstatat64, fstatat);

/* The forms of programs linked against a C library before 2.33. */
int cws_hook___xstat(int version, const char *path, struct stat *out)
{
    return after_path(CWS_REAL(__xstat)(version, path, out), AT_FDCWD, path, out, 0);
}
CWS_SAME(__xstat64, __xstat);

int cws_hook___lxstat(int version, const char *path, struct stat *out)
{
    return after_path(CWS_REAL(__lxstat)(version, path, out), AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
}
CWS_SAME(__lxstat64, __lxstat);

int cws_hook___fxstat(int version, int fd, struct stat *out)
{
    return after_fd(CWS_REAL(__fxstat)(version, fd, out), fd, out);
}
CWS_SAME(__fxstat64, __fxstat);

int cws_hook___fxstatat(int version, int dir, const char *path, struct stat *out, int flags)
{
    return after_at(CWS_REAL(__fxstatat)(version, dir, path, out, flags), dir, path, out, flags);
}
CWS_SAME(__fxstatat64, __fxstatat);

/* statx may have been asked for less than tells the file's identity, so a plausible answer is looked at by fstatat. */
int cws_hook_statx(int dir, const char *path, int flags, unsigned mask, struct statx *out)
{
    struct stat st;
    int result = CWS_REAL(statx)(dir, path, flags, mask, out);
    bool by_fd = (flags & AT_EMPTY_PATH) && (!path || !*path);
    if (result != 0 || !cws_shim_active() || !(out->stx_mask & (STATX_SIZE | STATX_BLOCKS)) ||
        (by_fd ? !cws_file_is_tracked(dir) : is_program_file(path)))
        return result;
    if ((out->stx_mask & STATX_TYPE) && !S_ISREG(out->stx_mode))
        return result;
    int saved = errno;
    int at_flags = flags & (AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH);
    bool known = CWS_REAL(fstatat)(dir, by_fd ? "" : path, &st, at_flags) == 0;
    if (!known) {
        cws_stores_cannot_tell(path, errno);
        return -1;
    }
    errno = saved;
    if (st.st_ino != out->stx_ino || !S_ISREG(st.st_mode))
        return result;
    off_t real_bytes = st.st_size;
    if (after_at(0, dir, path, &st, at_flags) != 0)
        return -1;
    if (st.st_size != real_bytes) {
        out->stx_size = (uint64_t)st.st_size;
        out->stx_blocks = (uint64_t)st.st_blocks;
    }
    return result;
}
