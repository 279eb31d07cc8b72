/* open.c - hooks of open, close and dup: they note which descriptors are stores. A store opened for reading is shown
 * as its logical file. One opened for writing with O_TRUNC is replaced, as any file is; without O_TRUNC it is
 * refused with EROFS, because a program that changes a few bytes in place would change them in a file whose layout
 * it does not know. So is truncate(). */
#include "file_table.h"
#include "hooks.h"
#include "shim/state.h"
#include "store/base/guard.h"
#include "store/base/own_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

static int fail(int code)
{
    errno = -code;
    return -1;
}

/* The mode argument exists only with these flags. */
static bool takes_mode(int flags) { return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE; }

/* Closes fd, also in a thread that is being cancelled. */
static void close_for_sure(int fd)
{
    struct cws_guard guard = cws_guard_begin();
    CWS_REAL(close)(fd);
    cws_guard_end(&guard);
}

/* Looks at what was opened. Returns fd, or -1 with errno, and then fd is closed. */
static int opened(int fd, const char *path, int flags)
{
    int code = 0;
    if (fd < 0 || (flags & (O_PATH | O_DIRECTORY))) {
        return fd;
    } else if ((flags & O_ACCMODE) == O_RDONLY) {
        code = cws_file_adopt(fd, path);
    } else {
        if (cws_file_is_tracked(fd))
            cws_file_forget(fd);
        if (!(flags & O_TRUNC))
            code = cws_stores_check_writable(fd, path);
    }
    if (code < 0) {
        close_for_sure(fd);
        return fail(code);
    }
    return fd;
}

static int open_active(int dir, const char *path, int flags, mode_t mode)
{
    if ((flags & O_TRUNC) && path) {
        int code = cws_stores_spare(dir, path);
        if (code)
            return fail(code);
    }
    return opened(CWS_REAL(openat)(dir, path, flags, mode), path, flags);
}

int cws_hook_open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (takes_mode(flags)) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    return cws_shim_active() ? open_active(AT_FDCWD, path, flags, mode) : CWS_REAL(open)(path, flags, mode);
}
CWS_SAME(open64, open);
CWS_SAME(__open, open);
CWS_SAME(__open64, open);

int cws_hook_openat(int dir, const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (takes_mode(flags)) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    return cws_shim_active() ? open_active(dir, path, flags, mode) : CWS_REAL(openat)(dir, path, flags, mode);
}
CWS_SAME(openat64, openat);

/* The forms that the compiler's checks call; they end the program when the mode is missing. */
int cws_hook___open_2(const char *path, int flags)
{
    if (!cws_shim_active() || takes_mode(flags))
        return CWS_REAL(__open_2)(path, flags);
    return open_active(AT_FDCWD, path, flags, 0);
}
CWS_SAME(__open64_2, __open_2);

int cws_hook___openat_2(int dir, const char *path, int flags)
{
    if (!cws_shim_active() || takes_mode(flags))
        return CWS_REAL(__openat_2)(dir, path, flags);
    return open_active(dir, path, flags, 0);
}
CWS_SAME(__openat64_2, __openat_2);

int cws_hook_creat(const char *path, mode_t mode)
{
    if (!cws_shim_active())
        return CWS_REAL(creat)(path, mode);
    return open_active(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
CWS_SAME(creat64, creat);

/* --- truncating by path ------------------------------------------------------------------------ */

/* truncate to 0 is what O_TRUNC does. Any other size is one of the logical file, to which the real one cannot be cut.
 * By descriptor, a store is never open for writing. */
int cws_hook_truncate(const char *path, off_t bytes)
{
    int code = 0;
    if (cws_shim_active() && path && bytes >= 0)
        code = bytes ? cws_stores_check_path_writable(path) : cws_stores_spare(AT_FDCWD, path);
    return code ? fail(code) : CWS_REAL(truncate)(path, bytes);
}
CWS_SAME(truncate64, truncate);

/* --- closing: forgotten first, so that no other thread's new descriptor of that number is taken for a store --- */

/* The program does not know our descriptors, so to it the number is not open. A child after vfork closes in a table of
 * its own. */
static bool is_guarded(int fd) { return cws_own_fd_is(fd) && !cws_shim_is_borrowed(); }

int cws_hook_close(int fd)
{
    if (is_guarded(fd))
        return fail(-EBADF);
    if (!cws_file_is_tracked(fd))
        return CWS_REAL(close)(fd);
    /* as any close, but not between the two: the descriptor would stay open and show raw bytes */
    pthread_testcancel();
    struct cws_guard guard = cws_guard_begin();
    cws_file_forget(fd);
    int result = CWS_REAL(close)(fd);
    cws_guard_end(&guard);
    return result;
}
CWS_SAME(__close, close);

static int close_range_but_ours(unsigned first, unsigned last, int flags)
{
    if (cws_files_any() && !(flags & CLOSE_RANGE_CLOEXEC) && first <= last)
        cws_file_forget_range(first, last);
    int own;
    while (!(flags & CLOSE_RANGE_CLOEXEC) && first <= last && first < CWS_OWN_FD_MAX && !cws_shim_is_borrowed() &&
           (own = cws_own_fd_next((int)first)) >= 0 && (unsigned)own <= last) {
        if ((unsigned)own > first && CWS_REAL(close_range)(first, (unsigned)own - 1, flags) != 0)
            return -1;
        first = (unsigned)own + 1;
        if (first > last)
            return 0;
    }
    return CWS_REAL(close_range)(first, last, flags);
}

int cws_hook_close_range(unsigned first, unsigned last, int flags)
{
    struct cws_guard guard = cws_guard_begin();
    int result = close_range_but_ours(first, last, flags);
    cws_guard_end(&guard);
    return result;
}

void cws_hook_closefrom(int first)
{
    struct cws_guard guard = cws_guard_begin();
    if (cws_files_any())
        cws_file_forget_range(first < 0 ? 0 : (unsigned)first, ~0u);
    if (cws_own_fd_next(first) >= 0 && !cws_shim_is_borrowed())
        close_range_but_ours(first < 0 ? 0 : (unsigned)first, ~0u, 0);
    else
        CWS_REAL(closefrom)(first);
    cws_guard_end(&guard);
}

/* --- duplicating ------------------------------------------------------------------------------- */

static int duplicated(int from, int to)
{
    if (to < 0 || to == from || !(cws_file_is_tracked(from) || cws_file_is_tracked(to)))
        return to;
    int code = cws_file_share(from, to);
    if (code) {
        close_for_sure(to);
        return fail(code);
    }
    return to;
}

/* Does one of the two stand for a store? Then a duplicate is made and noted in one guard; otherwise there is most
 * likely nothing to note. */
static bool is_any_tracked(int from, int to)
{
    return cws_files_any() && (cws_file_is_tracked(from) || cws_file_is_tracked(to));
}

int cws_hook_dup(int fd)
{
    if (!is_any_tracked(fd, -1))
        return duplicated(fd, CWS_REAL(dup)(fd));
    struct cws_guard guard = cws_guard_begin();
    int to = duplicated(fd, CWS_REAL(dup)(fd));
    cws_guard_end(&guard);
    return to;
}

/* EBUSY is what dup2 may give for a number that is about to be open: the program must take another. */
int cws_hook_dup2(int from, int to)
{
    if (is_guarded(to))
        return fail(-EBUSY);
    if (!is_any_tracked(from, to))
        return duplicated(from, CWS_REAL(dup2)(from, to));
    struct cws_guard guard = cws_guard_begin();
    int result = duplicated(from, CWS_REAL(dup2)(from, to));
    cws_guard_end(&guard);
    return result;
}
CWS_SAME(__dup2, dup2);

int cws_hook_dup3(int from, int to, int flags)
{
    if (is_guarded(to))
        return fail(-EBUSY);
    if (!is_any_tracked(from, to))
        return duplicated(from, CWS_REAL(dup3)(from, to, flags));
    struct cws_guard guard = cws_guard_begin();
    int result = duplicated(from, CWS_REAL(dup3)(from, to, flags));
    cws_guard_end(&guard);
    return result;
}

int cws_hook_fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *); /* as the C library does: one register, whatever the type */
    va_end(arguments);
    if (command != F_DUPFD && command != F_DUPFD_CLOEXEC)
        return CWS_REAL(fcntl)(fd, command, argument);
    if (!is_any_tracked(fd, -1))
        return duplicated(fd, CWS_REAL(fcntl)(fd, command, argument));
    struct cws_guard guard = cws_guard_begin();
    int to = duplicated(fd, CWS_REAL(fcntl)(fd, command, argument));
    cws_guard_end(&guard);
    return to;
}
CWS_SAME(fcntl64, fcntl);
CWS_SAME(__fcntl, fcntl);
