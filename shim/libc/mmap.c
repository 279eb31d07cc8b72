/* mmap.c - hooks of mmap and its kin: mapping a store makes a view, and calls on ranges that touch views go to the
 * pager. */
#include "uvm/host/view.h"
#include "file_table.h"
#include "signals.h"
#include "hooks.h"
#include "shim/say.h"
#include "paging.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

static int result_of(int code)
{
    if (code >= 0)
        return code;
    errno = -code;
    return -1;
}

static size_t page_bytes(void)
{
    static size_t bytes; /* the same from any thread */
    if (!bytes)
        bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

static size_t round_up(size_t len) { return (len + page_bytes() - 1) & ~(page_bytes() - 1); }

static int check_request(size_t len, int prot, int flags, off_t offset)
{
    int type = flags & MAP_TYPE;
    if (len == 0 || offset < 0 || (size_t)offset % page_bytes() ||
        (type != MAP_PRIVATE && type != MAP_SHARED && type != MAP_SHARED_VALIDATE))
        return -EINVAL;
    if (round_up(len) < len)
        return -ENOMEM;
    /* the descriptor is open for reading only */
    if ((prot & PROT_EXEC) || (type != MAP_PRIVATE && (prot & PROT_WRITE)))
        return -EACCES;
    return 0;
}

/* Maps [offset, offset + len) of the store, len within its last page. */
static int map_view(struct cws_file *f, void *addr, size_t len, int prot, int flags, off_t offset, void **out)
{
    struct cws_error err = {0};
    int view_prot = prot & PROT_WRITE ? PROT_READ | PROT_WRITE : PROT_READ;
    int code = cws_view_map(cws_file_shared(f)->store, addr, len, view_prot, flags, (uint64_t)offset, out, &err);
    if (code) {
        if (code != -EEXIST && code != -EINVAL) /* which say all about what the program asked for */
            cws_shim_say("%s", err.message);
        return -cws_shim_errno(code);
    }
    cws_stores_note_mapped(cws_file_shared(f));
    if (!(prot & (PROT_READ | PROT_WRITE)) && (code = cws_view_protect(*out, len, PROT_NONE)) != 0)
        cws_view_munmap(*out, len);
    return code;
}

/* As for any file, a mapping may be longer than what the file has; the pages behind it cannot be touched. */
static int map_with_tail(struct cws_file *f, void *addr, size_t len, int prot, int flags, off_t offset, void **out)
{
    uint64_t bytes = cws_file_bytes(f);
    size_t inside = (uint64_t)offset < bytes ? (size_t)(bytes - (uint64_t)offset) : 0;
    int where = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    void *whole = cws_hook_mmap(addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | where, -1, 0);
    if (whole == MAP_FAILED)
        return -errno;
    cws_view_unlock(whole, len);
    *out = whole;
    if (inside == 0)
        return 0;
    int code = map_view(f, whole, round_up(inside), prot, (flags & ~MAP_FIXED_NOREPLACE) | MAP_FIXED, offset, out);
    if (code)
        CWS_REAL(munmap)(whole, len);
    return code;
}

static int map_store(struct cws_file *f, void *addr, size_t len, int prot, int flags, off_t offset, void **out)
{
    int code = check_request(len, prot, flags, offset);
    if (!code)
        code = cws_shim_start_pager();
    if (code)
        return code;
    uint64_t end = round_up(cws_file_bytes(f));
    if ((uint64_t)offset + round_up(len) > end)
        code = map_with_tail(f, addr, len, prot, flags, offset, out);
    else
        code = map_view(f, addr, len, prot, flags, offset, out);
    return code;
}

/* False: the descriptor is no store's (any more). */
static bool map_tracked(void *addr, size_t len, int prot, int flags, int fd, off_t offset, void **out)
{
    int saved = errno, code = 0;
    struct cws_guard guard = cws_guard_begin();
    struct cws_file *f = cws_file_get(fd);
    *out = MAP_FAILED;
    if (f)
        code = map_store(f, addr, len, prot, flags, offset, out);
    cws_file_put(f);
    cws_guard_end(&guard);
    if (f && !code) {
        cws_signals_refresh();
        cws_signals_unblock(); /* behind the guard, which puts the mask back */
    }
    if (code)
        *out = MAP_FAILED;
    errno = code ? -code : saved;
    return f != NULL;
}

/* Mapping over a view failed: the range is free, as after munmap. */
static void free_unused(void *addr, size_t len, bool unused)
{
    int saved = errno;
    if (unused)
        CWS_REAL(munmap)(addr, len);
    errno = saved;
}

void *cws_hook_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    void *at;
    if (!(flags & MAP_ANONYMOUS) && cws_file_is_tracked(fd) && map_tracked(addr, len, prot, flags, fd, offset, &at))
        return at;
    if (!(flags & MAP_FIXED) || !CWS_UNLIKELY(cws_view_overlaps(addr, len)))
        return CWS_REAL(mmap)(addr, len, prot, flags, fd, offset);
    struct cws_guard guard = cws_guard_begin();
    int code = cws_view_reserve(addr, round_up(len)); /* what lay there ends */
    at = code ? (void *)(long)result_of(code) : CWS_REAL(mmap)(addr, len, prot, flags, fd, offset);
    free_unused(addr, len, at == MAP_FAILED && !code);
    cws_guard_end(&guard);
    return at;
}
CWS_SAME(mmap64, mmap);

int cws_hook_munmap(void *addr, size_t len)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(addr, len)))
        return CWS_REAL(munmap)(addr, len);
    struct cws_guard guard = cws_guard_begin();
    int code = cws_view_munmap(addr, len);
    if (code == 0 && !cws_view_any())
        cws_stores_drop_unmapped();
    cws_guard_end(&guard);
    return result_of(code);
}

void *cws_hook_mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
    void *to = NULL;
    if (flags & MREMAP_FIXED) {
        va_list arguments;
        va_start(arguments, flags);
        to = va_arg(arguments, void *);
        va_end(arguments);
    }
    if (CWS_UNLIKELY(cws_view_overlaps(addr, old_len))) {
        void *moved;
        int code = cws_view_remap(addr, old_len, new_len, flags, &moved);
        return code ? (void *)(long)result_of(code) : moved;
    }
    if (!(flags & MREMAP_FIXED) || !CWS_UNLIKELY(cws_view_overlaps(to, new_len)))
        return CWS_REAL(mremap)(addr, old_len, new_len, flags, to);
    struct cws_guard guard = cws_guard_begin();
    int code = cws_view_reserve(to, round_up(new_len));
    void *at = code ? (void *)(long)result_of(code) : CWS_REAL(mremap)(addr, old_len, new_len, flags, to);
    free_unused(to, new_len, at == MAP_FAILED && !code);
    cws_guard_end(&guard);
    return at;
}

int cws_hook_mprotect(void *addr, size_t len, int prot)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(addr, len)))
        return CWS_REAL(mprotect)(addr, len, prot);
    return result_of(cws_view_protect(addr, len, prot));
}

int cws_hook_pkey_mprotect(void *addr, size_t len, int prot, int key)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(addr, len)))
        return CWS_REAL(pkey_mprotect)(addr, len, prot, key);
    return result_of(key == -1 ? cws_view_protect(addr, len, prot) : -EINVAL);
}

int cws_hook_madvise(void *addr, size_t len, int advice)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(addr, len)))
        return CWS_REAL(madvise)(addr, len, advice);
    return result_of(cws_view_advise(addr, len, advice));
}

/* Returns its error; and POSIX_MADV_DONTNEED, unlike madvise's, must not lose what was written. */
int cws_hook_posix_madvise(void *addr, size_t len, int advice)
{
    if (!CWS_UNLIKELY(cws_view_overlaps(addr, len)))
        return CWS_REAL(posix_madvise)(addr, len, advice);
    return advice == POSIX_MADV_DONTNEED ? 0 : -cws_view_advise(addr, len, advice);
}

/* A view is private: there is nothing to write back. */
int cws_hook_msync(void *addr, size_t len, int flags)
{
    return CWS_UNLIKELY(cws_view_overlaps(addr, len)) ? 0 : CWS_REAL(msync)(addr, len, flags);
}

/* The budget does not allow a view to be kept in memory. */
static int refuse_lock(const char *call)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&said))
        cws_shim_say("%s: memory of packed files cannot be locked, because all of it would stay in memory past the "
                     "budget; nothing was locked. Let the program lock "
                     "what it needs before it maps the model, or load the model unpacked (codecllm unpack)",
                     call);
    return result_of(-ENOMEM);
}

int cws_hook_mlock(const void *addr, size_t len)
{
    return CWS_UNLIKELY(cws_view_overlaps(addr, len)) ? refuse_lock("mlock") : CWS_REAL(mlock)(addr, len);
}

int cws_hook_mlock2(const void *addr, size_t len, unsigned flags)
{
    return CWS_UNLIKELY(cws_view_overlaps(addr, len)) ? refuse_lock("mlock2") : CWS_REAL(mlock2)(addr, len, flags);
}

int cws_hook_mlockall(int flags)
{
    int code = cws_view_lock_all(flags, CWS_REAL(mlockall));
    return code == CWS_E_BUDGET ? refuse_lock("mlockall") : result_of(code);
}

int cws_hook_munlockall(void) { return result_of(cws_view_unlock_all(CWS_REAL(munlockall))); }
