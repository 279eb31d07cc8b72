/* rung_sigsegv.c - the sigsegv rung: absent blocks are PROT_NONE. The faulting thread decodes in the signal handler
 * into fresh pages and moves them into place, which is atomic. Clean pages are read-only. All of it is private
 * anonymous memory (/dev/zero's, see pager.h), so a forked child has its own right copy. */
#include "pager.h"

static int probe(const struct cws_rung *self, struct cws_error *err)
{
    (void)self;
    /* Any Linux can; what may be refused is moving pages. */
    long from = cws_sys_mmap(NULL, 2 * CWS_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from < 0 && from > -4096)
        return cws_fail_errno(err, (int)-from, "sigsegv: no memory for a trial");
    int code = cws_sys_move((void *)from, CWS_PAGE_BYTES, (uint8_t *)from + CWS_PAGE_BYTES);
    cws_sys_munmap((uint8_t *)from + CWS_PAGE_BYTES, CWS_PAGE_BYTES);
    return code ? cws_fail_errno(err, -code, "sigsegv: pages cannot be moved") : 0;
}

static int view_open(struct cws_view *v, struct cws_error *err)
{
    int code = cws_sys_mprotect(v->base, v->bytes, PROT_NONE);
    if (!code)
        cws_sys_madvise(v->base, v->bytes, MADV_NOHUGEPAGE);
    return code ? cws_fail_errno(err, -code, "cannot protect a view") : 0;
}

static void view_close(struct cws_view *v) { (void)v; }

int cws_rung_move_publish(struct cws_view *v, struct cws_decoder_slot *s, size_t begin, size_t end, bool writable,
                          bool missing_only)
{
    size_t from, to, at = begin;
    int prot, code = 0;
    uint8_t *staging = s->staging;
    (void)missing_only; /* where no fault message comes, nobody puts back single pages */
    for (; !code && cws_page_run(v, at, end, &from, &to, &prot); at = to) {
        if (from > at)
            cws_sys_munmap(staging + (at - begin), from - at);
        int now = writable ? prot : prot & ~PROT_WRITE;
        if (now != (PROT_READ | PROT_WRITE))
            code = cws_sys_mprotect(staging + (from - begin), to - from, now);
        if (!code)
            code = cws_sys_move(staging + (from - begin), to - from, v->base + from);
        if (code)
            to = from;
    }
    if (at < end)
        cws_sys_munmap(staging + (at - begin), end - at);
    s->staging = NULL;
    s->staging_bytes = 0;
    return code;
}

static int drop(struct cws_view *v, size_t begin, size_t end)
{
    size_t from, to;
    int prot;
    bool some = false;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to, some = true) {
        long rc = cws_view_memory(v->base + from, to - from, PROT_NONE, MAP_FIXED, from);
        if (rc >= 0 || rc <= -4096)
            continue;
        if (some) /* a block half of which is gone is in no state of ours */
            cws_die("pages of a view could not be replaced (errno %d; vm.max_map_count too small?)", (int)-rc);
        return (int)rc;
    }
    return 0;
}

static void allow_write(struct cws_view *v, size_t begin, size_t end)
{
    size_t from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to) {
        int code = prot & PROT_WRITE ? cws_sys_mprotect(v->base + from, to - from, prot) : 0;
        if (code)
            cws_die("pages of a view could not be made writable (errno %d; vm.max_map_count too small?)", -code);
    }
}

void cws_rung_map_hole(struct cws_view *v, size_t begin, size_t end)
{
    size_t from, to;
    int prot;
    for (size_t at = begin; cws_page_run(v, at, end, &from, &to, &prot); at = to) {
        /* An empty file: every touch is behind its end. */
        long rc = cws_sys_mmap(v->base + from, to - from, prot, MAP_PRIVATE | MAP_FIXED, cws_pager.hole_fd, 0);
        if (rc < 0 && rc > -4096)
            cws_die("a failed block could not be closed off (errno %d)", (int)-rc);
    }
}

static void wake(struct cws_view *v, size_t begin, size_t end) { (void)v, (void)begin, (void)end; }

static int protect(struct cws_view *v, size_t begin, size_t end, int prot, unsigned state)
{
    switch (state) {
    case CWS_CLEAN: return cws_sys_mprotect(v->base + begin, end - begin, prot & ~PROT_WRITE);
    case CWS_WRITTEN:
    case CWS_FAILED: return cws_sys_mprotect(v->base + begin, end - begin, prot);
    default: return 0; /* absent stays PROT_NONE; the protection is applied when it is filled */
    }
}

const struct cws_rung cws_rung_sigsegv = {.name = "sigsegv",
                                          .needs_signal = true,
                                          .probe = probe,
                                          .open = view_open,
                                          .close = view_close,
                                          .publish = cws_rung_move_publish,
                                          .drop = drop,
                                          .allow_write = allow_write,
                                          .poison = cws_rung_map_hole,
                                          .wake = wake,
                                          .protect = protect};
