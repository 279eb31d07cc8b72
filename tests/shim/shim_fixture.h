/* shim_fixture.h - what the tests that run under the preloaded library share: one model twice, packed and plain. */
#ifndef CWS_SHIM_FIXTURE_H
#define CWS_SHIM_FIXTURE_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/support/sanitized.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *packed_path, *plain_path, *rung;
static uint8_t *plain; /* the plain file's bytes, in ordinary memory */
static size_t plain_bytes;

static inline uint64_t fixture_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Past every hook: what is really in the file system. */
static inline off_t raw_file_bytes(const char *path)
{
    struct stat st;
    return syscall(SYS_newfstatat, AT_FDCWD, path, &st, 0) == 0 ? st.st_size : -1;
}

static inline void raw_copy(const char *from, const char *to)
{
    char block[65536];
    long got, in = syscall(SYS_openat, AT_FDCWD, from, O_RDONLY, 0);
    long out = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(in >= 0 && out >= 0);
    while ((got = syscall(SYS_read, in, block, sizeof block)) > 0)
        assert_int_equal(syscall(SYS_write, out, block, got), got);
    syscall(SYS_close, in);
    syscall(SYS_close, out);
}

/* A fresh packed copy that a test may destroy. */
static inline void packed_copy(char *path, size_t size, const char *name)
{
    snprintf(path, size, "%s.%s.%d", packed_path, name, (int)getpid());
    raw_copy(packed_path, path);
}

static inline int fixture_load(void **state)
{
    (void)state;
    FILE *file = fopen(plain_path, "rb");
    if (!file)
        return -1;
    plain_bytes = (size_t)raw_file_bytes(plain_path);
    plain = malloc(plain_bytes);
    size_t got = fread(plain, 1, plain_bytes, file);
    fclose(file);
    return got == plain_bytes ? 0 : -1;
}

/* 77, "skipped", when this machine does not have the rung that the test was to run on. */
static inline int fixture_start(void)
{
    packed_path = getenv("CWS_SHIM_PACKED");
    plain_path = getenv("CWS_SHIM_PLAIN");
    rung = getenv("CODEC_PAGER");
    if (!packed_path || !plain_path || !getenv("CODEC_VRAM_BUDGET") || !strstr(getenv("LD_PRELOAD"), "libcodecshim")) {
        fprintf(stderr, "run by ctest: needs LD_PRELOAD, CODEC_VRAM_BUDGET, CWS_SHIM_PACKED and CWS_SHIM_PLAIN\n");
        return 1;
    }
    if (rung && rung_is_left_out(rung))
        return 77;
    int fd = open(packed_path, O_RDONLY);
    void *view = mmap(NULL, 1, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    if (fd >= 0)
        close(fd);
    if (view == MAP_FAILED && why == EOPNOTSUPP)
        return 77;
    if (view != MAP_FAILED)
        munmap(view, 1);
    return 0;
}

#endif
