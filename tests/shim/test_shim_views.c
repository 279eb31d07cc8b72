/* Mappings of a packed model, and system calls that are given their memory. */
#include "shim_fixture.h"

#include <pthread.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

static size_t page;

static uint8_t *map_at(size_t len, int prot, int flags, off_t offset)
{
    int fd = open(packed_path, O_RDONLY);
    uint8_t *view = mmap(NULL, len, prot, flags, fd, offset);
    int why = errno;
    assert_true(fd >= 0);
    close(fd); /* as torch does: the mapping goes on */
    errno = why;
    return view;
}

static uint8_t *map_all(int prot)
{
    uint8_t *view = map_at(plain_bytes, prot, MAP_PRIVATE, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    return view;
}

/* --- mapping ----------------------------------------------------------------------------------- */

static void mappings_show_the_logical_file(void **state)
{
    (void)state;
    static const struct {
        int prot, flags;
    } forms[] = {{PROT_READ, MAP_PRIVATE},
                 {PROT_READ | PROT_WRITE, MAP_PRIVATE},
                 {PROT_WRITE, MAP_PRIVATE},
                 {PROT_READ, MAP_SHARED},
                 {PROT_READ, MAP_PRIVATE | MAP_NORESERVE}};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        uint8_t *view = map_at(plain_bytes, forms[i].prot, forms[i].flags, 0);
        assert_ptr_not_equal(view, MAP_FAILED);
        assert_memory_equal(view, plain, plain_bytes);
        for (size_t at = plain_bytes; at % page; at++)
            assert_int_equal(view[at], 0);
        assert_int_equal(msync(view, plain_bytes, MS_SYNC), 0);
        assert_int_equal(munmap(view, plain_bytes), 0);
    }
    off_t offset = (off_t)(37 * page);
    uint8_t *view = map_at(3 * page + 5, PROT_READ, MAP_PRIVATE, offset);
    assert_memory_equal(view, plain + offset, 3 * page + 5);
    assert_int_equal(munmap(view, 3 * page + 5), 0);
}

static void what_cannot_be_mapped_says_why(void **state)
{
    (void)state;
#define REFUSED(why, len, prot, flags, offset)                                                                         \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        assert_ptr_equal(map_at(len, prot, flags, offset), MAP_FAILED);                                                \
        assert_int_equal(errno, why);                                                                                  \
    } while (0)
    REFUSED(EACCES, plain_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    REFUSED(EACCES, plain_bytes, PROT_READ | PROT_EXEC, MAP_PRIVATE, 0);
    REFUSED(EINVAL, 0, PROT_READ, MAP_PRIVATE, 0);
    REFUSED(EINVAL, page, PROT_READ, MAP_PRIVATE, 100);
    REFUSED(EINVAL, page, PROT_READ, 0, 0);
    uint8_t *view = map_at(page, PROT_NONE, MAP_PRIVATE, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    assert_int_equal(mprotect(view, page, PROT_READ), 0);
    assert_memory_equal(view, plain, page);
    munmap(view, page);
}

static void a_mapping_may_be_longer_than_the_file(void **state)
{
    (void)state;
    size_t end = (plain_bytes + page - 1) / page * page;
    uint8_t *view = map_at(end + 3 * page, PROT_READ, MAP_PRIVATE, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    assert_memory_equal(view, plain, plain_bytes);
    char byte;
    assert_int_equal(write(open("/dev/null", O_WRONLY), view + end, 1), 1); /* the device does not look */
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    assert_int_equal(write(pair[1], view + end, 1), -1); /* nothing to be read there */
    assert_int_equal(errno, EFAULT);
    (void)byte;
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(munmap(view, end + 3 * page), 0);
    view = map_at(page, PROT_READ, MAP_PRIVATE, (off_t)end);
    assert_ptr_not_equal(view, MAP_FAILED);
    assert_int_equal(munmap(view, page), 0);
}

static void writes_stay_private(void **state)
{
    (void)state;
    uint8_t *a = map_all(PROT_READ | PROT_WRITE), *b = map_all(PROT_READ);
    for (size_t at = 0; at < plain_bytes; at += 100003)
        a[at] = (uint8_t)~plain[at];
    assert_memory_equal(b, plain, plain_bytes);
    for (size_t at = 0; at < plain_bytes; at += 100003)
        assert_int_equal(a[at], (uint8_t)~plain[at]);
    /* must not lose them */
    assert_int_equal(posix_madvise(a, plain_bytes / page * page, POSIX_MADV_DONTNEED), 0);
    assert_int_equal(a[0], (uint8_t)~plain[0]);
    assert_int_equal(madvise(a, plain_bytes / page * page, MADV_DONTNEED), 0); /* must */
    assert_int_equal(a[0], plain[0]);
    munmap(a, plain_bytes);
    munmap(b, plain_bytes);
}

static void parts_are_unmapped_moved_and_replaced(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ | PROT_WRITE);
    assert_int_equal(munmap(view + 10 * page, 5 * page), 0);
    assert_memory_equal(view, plain, 10 * page);
    assert_memory_equal(view + 15 * page, plain + 15 * page, 10 * page);
    uint8_t *over = mmap(view + 20 * page, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                         -1, 0);
    assert_ptr_equal(over, view + 20 * page);
    for (size_t i = 0; i < 4 * page; i++)
        assert_int_equal(over[i], 0);
    memset(over, 7, 4 * page);
    assert_memory_equal(view + 24 * page, plain + 24 * page, 10 * page);
    assert_memory_equal(view + 15 * page, plain + 15 * page, 5 * page);
    int fd = open(packed_path, O_RDONLY);
    over = mmap(view + 18 * page, 4 * page, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(50 * page));
    assert_ptr_equal(over, view + 18 * page);
    assert_memory_equal(over, plain + 50 * page, 4 * page);
    assert_int_equal(over[4 * page], 7);
    close(fd);
    assert_int_equal(munmap(view, plain_bytes), 0);
    view = map_all(PROT_READ);
    assert_ptr_equal(mremap(view, plain_bytes, 30 * page, 0), view);
    assert_memory_equal(view, plain, 30 * page);
    assert_ptr_equal(mremap(view, 30 * page, 60 * page, MREMAP_MAYMOVE), MAP_FAILED);
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(munmap(view, 30 * page), 0);
}

static void *reader(void *arg)
{
    uint8_t *view = arg;
    uint64_t random = (uint64_t)(uintptr_t)&random;
    for (int i = 0; i < (SANITIZED ? 60 : 300); i++) {
        size_t at = fixture_random(&random) % (plain_bytes - 5000), len = fixture_random(&random) % 5000;
        if (memcmp(view + at, plain + at, len) != 0)
            return (void *)1;
        int fd = open(packed_path, O_RDONLY);
        uint8_t bytes[5000];
        if (fd < 0 || pread(fd, bytes, len, (off_t)at) != (ssize_t)len || memcmp(bytes, plain + at, len) != 0)
            return (void *)2;
        close(fd);
    }
    return NULL;
}

static void threads_share_everything(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ);
    pthread_t threads[6];
    void *result;
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, reader, view), 0);
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    munmap(view, plain_bytes);
}

/* --- memory of a view, given to the kernel ------------------------------------------------------ */

static char out_path[4200];
static int out;

static void out_open(void)
{
    snprintf(out_path, sizeof out_path, "%s.out.%d", packed_path, (int)getpid());
    out = open(out_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(out >= 0);
}

/* What was written is at [0, len) of the file; it is the plain file's [from, from + len). */
static void out_check(size_t from, size_t len)
{
    uint8_t *bytes = malloc(len + 1);
    assert_int_equal(pread(out, bytes, len + 1, 0), len);
    assert_memory_equal(bytes, plain + from, len);
    free(bytes);
    close(out);
    unlink(out_path);
}

static void views_are_written_to_files(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ);
    size_t len = plain_bytes - 1000;
    struct iovec parts[4] = {
        {view + 1000, 77}, {view + 1077, 0}, {view + 1077, 3000000}, {view + 3001077, plain_bytes - 3001077}};
    out_open();
    assert_int_equal(write(out, view + 1000, len), len);
    out_check(1000, len);
    out_open();
    assert_int_equal(pwrite(out, view + 1000, len, 0), len);
    out_check(1000, len);
    out_open();
    assert_int_equal(writev(out, parts, 4), len);
    out_check(1000, len);
    out_open();
    assert_int_equal(pwritev(out, parts, 4, 0), len);
    out_check(1000, len);
    out_open();
    assert_int_equal(pwritev2(out, parts, 4, -1, 0), len);
    out_check(1000, len);
    out_open();
    FILE *file = fdopen(dup(out), "wb");
    assert_int_equal(fwrite(view + 1000, 1, 11, file), 11);
    assert_int_equal(fwrite(view + 1011, len - 11, 1, file), 1);
    assert_int_equal(fclose(file), 0);
    out_check(1000, len);
    munmap(view, plain_bytes);
}

/* Reads the other end; what came in its bytes. */
struct drain {
    int fd;
    size_t got;
    uint8_t *bytes;
};

static void *drain(void *arg)
{
    struct drain *d = arg;
    ssize_t n;
    while ((n = read(d->fd, d->bytes + d->got, plain_bytes - d->got)) > 0)
        d->got += (size_t)n;
    return NULL;
}

static void views_are_sent(void **state)
{
    (void)state;
    for (int how = 0; how < 5; how++) {
        uint8_t *view = map_all(PROT_READ);
        int pair[2];
        pthread_t thread;
        assert_int_equal(how == 0 ? pipe(pair) : socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        struct drain d = {.fd = pair[0], .bytes = malloc(plain_bytes)};
        struct iovec parts[2] = {{view, 5000001}, {view + 5000001, plain_bytes - 5000001}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        pthread_create(&thread, NULL, drain, &d);
        ssize_t sent = how == 0   ? write(pair[1], view, plain_bytes)
                       : how == 1 ? send(pair[1], view, plain_bytes, 0)
                       : how == 2 ? sendto(pair[1], view, plain_bytes, 0, NULL, 0)
                       : how == 3 ? sendmsg(pair[1], &message, 0)
                                  : writev(pair[1], parts, 2);
        assert_int_equal(sent, plain_bytes);
        close(pair[1]);
        pthread_join(thread, NULL);
        close(pair[0]);
        assert_int_equal(d.got, plain_bytes);
        assert_memory_equal(d.bytes, plain, plain_bytes);
        free(d.bytes);
        munmap(view, plain_bytes);
    }
}

static void a_datagram_stays_one(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ | PROT_WRITE), bytes[60000];
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    struct iovec parts[2] = {{view + 10, 30000}, {view + 500000, 20000}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    assert_int_equal(sendmsg(pair[0], &message, 0), 50000);
    assert_int_equal(recv(pair[1], bytes, sizeof bytes, 0), 50000);
    assert_memory_equal(bytes, plain + 10, 30000);
    assert_memory_equal(bytes + 30000, plain + 500000, 20000);
    assert_int_equal(send(pair[0], plain + 5, 40000, 0), 40000);
    assert_int_equal(recvmsg(pair[1], &message, 0), 40000);
    assert_memory_equal(view + 10, plain + 5, 30000);
    assert_memory_equal(view + 500000, plain + 30005, 10000);
    close(pair[0]);
    close(pair[1]);
    munmap(view, plain_bytes);
}

/* Two messages per call, out of one part of a view and into another; the second call finds only one of the two it asks
 * for. */
static void several_messages_go_out_of_and_into_views(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ | PROT_WRITE);
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    struct iovec from[3] = {{view + 7, 9000}, {view + 700000, 8000}, {view + 800000, 700}};
    struct mmsghdr messages[3] = {{.msg_hdr = {.msg_iov = &from[0], .msg_iovlen = 1}},
                                  {.msg_hdr = {.msg_iov = &from[1], .msg_iovlen = 1}},
                                  {.msg_hdr = {.msg_iov = &from[2], .msg_iovlen = 1}}};
    assert_int_equal(sendmmsg(pair[0], messages, 3, 0), 3);
    assert_int_equal(messages[1].msg_len, 8000);
    struct iovec in[2] = {{view + 1200000, 10000}, {view + 1400000, 10000}};
    messages[0].msg_hdr.msg_iov = &in[0];
    messages[1].msg_hdr.msg_iov = &in[1];
    struct timespec timeout = {.tv_sec = 60};
    assert_int_equal(recvmmsg(pair[1], messages, 2, 0, &timeout), 2);
    assert_true(timeout.tv_sec < 60 && timeout.tv_sec > 0);
    assert_int_equal(messages[0].msg_len, 9000);
    assert_int_equal(messages[1].msg_len, 8000);
    assert_memory_equal(view + 1200000, plain + 7, 9000);
    assert_memory_equal(view + 1400000, plain + 700000, 8000);
    assert_memory_equal(view + 1209000, plain + 1209000, 1000);
    assert_int_equal(recvmmsg(pair[1], messages, 2, MSG_WAITFORONE, NULL), 1);
    assert_memory_equal(view + 1200000, plain + 800000, 700);
    assert_int_equal(recvmmsg(pair[1], messages, 2, MSG_DONTWAIT, NULL), -1);
    assert_int_equal(errno, EAGAIN);
    close(pair[0]);
    close(pair[1]);
    munmap(view, plain_bytes);
}

static void pages_are_spliced_out_of_and_into_views(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ | PROT_WRITE), bytes[20000];
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    struct iovec part = {view + 900001, 20000}, back = {view + 1500001, 20000};
    assert_int_equal(vmsplice(pair[1], &part, 1, SPLICE_F_GIFT), 20000);
    assert_int_equal(read(pair[0], bytes, sizeof bytes), 20000);
    assert_memory_equal(bytes, plain + 900001, 20000);
    assert_int_equal(write(pair[1], plain + 5, 20000), 20000);
    assert_int_equal(vmsplice(pair[0], &back, 1, 0), 20000);
    assert_memory_equal(view + 1500001, plain + 5, 20000);
    close(pair[0]);
    close(pair[1]);
    munmap(view, plain_bytes);
}

/* Every byte of the plain file lands one page later in the view. */
static void files_are_read_into_views(void **state)
{
    (void)state;
    size_t len = plain_bytes - page;
    for (int how = 0; how < 8; how++) {
        uint8_t *view = map_all(PROT_READ | PROT_WRITE), *to = view + page;
        struct iovec parts[2] = {{to, 4000001}, {to + 4000001, len - 4000001}};
        const char *path = how == 7 ? packed_path : plain_path;
        int fd = open(path, O_RDONLY);
        FILE *file = how == 6 ? fopen(path, "rb") : NULL;
        ssize_t got = how == 0   ? read(fd, to, len)
                      : how == 1 ? pread(fd, to, len, 0)
                      : how == 2 ? readv(fd, parts, 2)
                      : how == 3 ? preadv(fd, parts, 2, 0)
                      : how == 4 ? preadv2(fd, parts, 2, 0, 0)
                      : how == 5 ? pread64(fd, to, len, 0)
                      : how == 6 ? (ssize_t)fread(to, 1, len, file)
                                 : read(fd, to, len);
        assert_int_equal(got, len);
        assert_memory_equal(to, plain, len);
        assert_memory_equal(view, plain, page);
        close(fd);
        if (file)
            fclose(file);
        munmap(view, plain_bytes);
    }
}

static void a_short_read_does_not_wait_for_more(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ | PROT_WRITE);
    struct iovec parts[2] = {{view + 3, 2}, {view + 4000000, 1000}};
    int pair[2], stream[2];
    assert_int_equal(pipe(pair), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, stream), 0);
    assert_int_equal(write(pair[1], "abcde", 5), 5);
    assert_int_equal(read(pair[0], view, plain_bytes), 5);
    assert_memory_equal(view, "abcde", 5);
    assert_memory_equal(view + 5, plain + 5, plain_bytes - 5);
    assert_int_equal(write(pair[1], "fg", 2), 2);
    assert_int_equal(readv(pair[0], parts, 2), 2);
    assert_int_equal(write(stream[1], "hij", 3), 3);
    assert_int_equal(recvfrom(stream[0], view + 100, 2000000, 0, NULL, NULL), 3);
    assert_memory_equal(view + 100, "hij", 3);
    close(pair[0]);
    close(pair[1]);
    close(stream[0]);
    close(stream[1]);
    munmap(view, plain_bytes);
}

static void a_read_only_view_is_not_written_by_the_kernel(void **state)
{
    (void)state;
    uint8_t *view = map_all(PROT_READ);
    int fd = open(plain_path, O_RDONLY);
    assert_int_equal(read(fd, view, 4096), -1);
    assert_int_equal(errno, EFAULT);
    assert_memory_equal(view, plain, plain_bytes);
    close(fd);
    fd = open(packed_path, O_RDONLY);
    assert_int_equal(pread(fd, view, 4096, 5000000), -1);
    assert_int_equal(errno, EFAULT);
    assert_int_equal(read(fd, view + 4096, 1000000), -1);
    assert_int_equal(errno, EFAULT);
    assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
    assert_memory_equal(view, plain, plain_bytes);
    close(fd);
    munmap(view, plain_bytes);
}

/* Nor does a store's read end the program where the kernel's would say EFAULT. */
static void bad_buffers_are_errors(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 1000, 1000000};
    uint8_t *bytes = mmap(NULL, 300 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *volatile nowhere = (uint8_t *)16; /* volatile: the compiler would warn */
    int fd = open(packed_path, O_RDONLY);
    assert_int_equal(mprotect(bytes + 280 * page, page, PROT_READ), 0);
    assert_int_equal(munmap(bytes + 290 * page, page), 0);
    for (size_t i = 0; i < 3; i++) {
        uint8_t *const bad[] = {nowhere, bytes + 280 * page, bytes + 290 * page, bytes + 281 * page - lengths[i]};
        for (size_t j = 0; j < 4; j++) {
            assert_int_equal(pread(fd, bad[j], lengths[i], 100), -1);
            assert_int_equal(errno, EFAULT);
        }
    }
    struct iovec parts[2] = {{bytes, 500}, {nowhere, 500}};
    assert_int_equal(preadv(fd, parts, 2, 3000000), 500); /* what could be read */
    assert_memory_equal(bytes, plain + 3000000, 500);
    off_t late = (off_t)plain_bytes - 100; /* only what is there is written */
    assert_int_equal(pread(fd, bytes + 280 * page - 100, 100 + 2 * page, late), 100);
    assert_memory_equal(bytes + 280 * page - 100, plain + late, 100);
    assert_int_equal(pread(fd, nowhere, 100, (off_t)plain_bytes), 0);
    assert_int_equal(pread(fd, bytes, 280 * page, 3000000), 280 * page);
    assert_memory_equal(bytes, plain + 3000000, 280 * page);
    close(fd);
    munmap(bytes, 300 * page);
}

/* --- locking ------------------------------------------------------------------------------------ */

static size_t status_bytes(const char *name)
{
    char line[200];
    size_t kib = 0, length = strlen(name);
    FILE *file = fopen("/proc/self/status", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, name, length) == 0)
            kib = strtoul(line + length, NULL, 10);
    fclose(file);
    return kib << 10;
}

/* Pages of the view that are in memory. */
static size_t present_bytes(const uint8_t *view)
{
    size_t bytes = 0;
    int map = open("/proc/self/pagemap", O_RDONLY);
    assert_true(map >= 0);
    for (size_t at = 0; at < plain_bytes; at += page) {
        uint64_t entry;
        assert_int_equal(pread(map, &entry, sizeof entry, (off_t)((uintptr_t)(view + at) / page * sizeof entry)),
                         sizeof entry);
        bytes += entry >> 63 ? page : 0;
    }
    close(map);
    return bytes;
}

/* Is any page of it? */
static bool is_locked(const uint8_t *view)
{
    char line[400];
    unsigned long from = 0, to = 0;
    bool locked = false;
    FILE *file = fopen("/proc/self/smaps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "VmFlags:", 8) == 0)
            locked |= from < (uintptr_t)view + plain_bytes && to > (uintptr_t)view && strstr(line, " lo");
        else if (strchr(line, '-'))
            sscanf(line, "%lx-%lx ", &from, &to);
    }
    fclose(file);
    return locked;
}

/* For longer than it takes a thread that reads ahead to unlock a page that it just mapped. */
static bool stays_locked(const uint8_t *view)
{
    bool locked = is_locked(view);
    for (unsigned i = 0; locked && i < 1000; i++) {
        usleep(5000);
        locked = is_locked(view);
    }
    return locked;
}

static bool is_eager(void) { return strcmp(rung, "eager") == 0; }

/* mlockall would make all of a view present and, where it is writable, the program's own: past the budget, for good. */
static void nothing_is_locked_while_there_is_a_view(void **state)
{
    (void)state;
    static const int forms[] = {MCL_CURRENT, MCL_CURRENT | MCL_FUTURE, MCL_CURRENT | MCL_ONFAULT};
    static const int protections[] = {PROT_READ, PROT_READ | PROT_WRITE};
    for (size_t i = 0; i < 2; i++) {
        uint8_t *view = map_all(protections[i]);
        char text[4096];
        int log = memfd_create("stderr", MFD_CLOEXEC), own = dup(STDERR_FILENO);
        size_t before = status_bytes("VmLck:");
        dup2(log, STDERR_FILENO);
        errno = 0;
        assert_int_equal(i == 0 ? mlock(view, page) : mlock2(view, page, MLOCK_ONFAULT), -1);
        assert_int_equal(errno, ENOMEM);
        for (size_t j = 0; j < sizeof forms / sizeof *forms; j++) {
            errno = 0;
            assert_int_equal(mlockall(forms[j]), -1);
            assert_int_equal(errno, ENOMEM);
        }
        dup2(own, STDERR_FILENO);
        ssize_t said = pread(log, text, sizeof text - 1, 0);
        text[said > 0 ? said : 0] = 0;
        assert_int_equal(!!strstr(text, "locked"), i == 0); /* once in a process */
        assert_ptr_equal(strchr(text, '\n'), strrchr(text, '\n'));
        assert_int_equal(status_bytes("VmLck:"), before);
        if (!is_eager())
            assert_true(present_bytes(view) < plain_bytes / 2);
        void *later = mmap(NULL, 16 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_int_equal(status_bytes("VmLck:"), before); /* nor does what is refused begin later */
        munmap(later, 16 * page);
        assert_memory_equal(view, plain, plain_bytes);
        close(log);
        close(own);
        munmap(view, plain_bytes);
    }
}

static void views_are_mapped_unlocked_where_new_memory_is_locked(void **state)
{
    (void)state;
    static const int protections[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE};
    assert_int_equal(mlockall(MCL_FUTURE), 0);
    for (size_t i = 0; i < 3; i++) {
        uint8_t *view = map_at(plain_bytes, protections[i], MAP_PRIVATE, 0);
        if (view == MAP_FAILED && errno == EAGAIN) /* more than may be locked: a plain file is refused, too */
            break;
        assert_ptr_not_equal(view, MAP_FAILED);
        if (!is_eager())
            assert_int_equal(present_bytes(view), 0);
        assert_false(stays_locked(view));
        if (protections[i] == PROT_NONE)
            assert_int_equal(mprotect(view, plain_bytes, PROT_READ), 0);
        assert_memory_equal(view, plain, plain_bytes);
        if (protections[i] & PROT_WRITE) {
            view[page] ^= 1;
            assert_int_equal(view[page], plain[page] ^ 1);
        }
        assert_int_equal(view[page - 1], plain[page - 1]);
        if (!is_eager())
            assert_true(present_bytes(view) <= (3u << 20)); /* the budget and what was written */
        assert_false(stays_locked(view));
        size_t before = status_bytes("VmLck:");
        void *later = mmap(NULL, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (!SANITIZED) /* whose runtimes make mlockall do nothing */
            assert_true(status_bytes("VmLck:") >= before + 16 * page);
        munmap(later, 16 * page);
        munmap(view, plain_bytes);
    }
    assert_int_equal(munlockall(), 0);
    assert_int_equal(status_bytes("VmLck:"), 0);
    uint8_t *view = map_all(PROT_READ);
    assert_memory_equal(view, plain, plain_bytes);
    munmap(view, plain_bytes);
    if (geteuid() == 0) /* others may lock less than this */
        assert_int_equal(mlockall(MCL_CURRENT), 0);
    assert_int_equal(munlockall(), 0);
}

/* The first view of a process may come after mlockall(MCL_FUTURE): no way of paging is lost by that. Run anew. */
static int first_view_after_mlockall(void)
{
    packed_path = getenv("CWS_SHIM_PACKED");
    plain_path = getenv("CWS_SHIM_PLAIN");
    if (fixture_load(NULL) || mlockall(MCL_FUTURE))
        return 2;
    uint8_t *view = map_at(plain_bytes, PROT_READ, MAP_PRIVATE, 0);
    if (view == MAP_FAILED)
        return errno == EAGAIN || errno == ENOMEM ? 3 : 4; /* threads of ours and memory of the process count, too */
    return memcmp(view, plain, plain_bytes) != 0;
}

static void the_first_view_may_come_after_mlockall(void **state)
{
    (void)state;
    pid_t pid;
    int status;
    char *const argv[] = {(char *)(uintptr_t) "test_shim_views", (char *)(uintptr_t) "first", NULL};
    assert_int_equal(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), geteuid() == 0 || WEXITSTATUS(status) != 3 ? 0 : 3);
}

/* A range that is replaced is not counted twice in what may be locked; what cannot be replaced is free, not reserved. */
static void replaced_views_are_counted_once(void **state)
{
    (void)state;
    size_t bytes = 64 * page, room;
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &before), 0);
    if (geteuid() == 0 || SANITIZED) /* who may lock all */
        return;
    uint8_t *view = map_all(PROT_READ);
    assert_int_equal(mlockall(MCL_FUTURE), 0);
    room = status_bytes("VmLck:") + bytes + bytes / 2;
    limit = (struct rlimit){room < before.rlim_cur ? room : before.rlim_cur, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    assert_ptr_equal(mmap(view, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), view);
    assert_int_equal(view[0], 0);
    assert_int_equal(munlockall(), 0);
    assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &before), 0);
    assert_memory_equal(view + bytes, plain + bytes, plain_bytes - bytes);
    munmap(view, plain_bytes);
}

static int load(void **state)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    return fixture_load(state);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "first") == 0)
        return first_view_after_mlockall();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mappings_show_the_logical_file),
        cmocka_unit_test(what_cannot_be_mapped_says_why),
        cmocka_unit_test(a_mapping_may_be_longer_than_the_file),
        cmocka_unit_test(writes_stay_private),
        cmocka_unit_test(parts_are_unmapped_moved_and_replaced),
        cmocka_unit_test(threads_share_everything),
        cmocka_unit_test(views_are_written_to_files),
        cmocka_unit_test(views_are_sent),
        cmocka_unit_test(a_datagram_stays_one),
        cmocka_unit_test(several_messages_go_out_of_and_into_views),
        cmocka_unit_test(pages_are_spliced_out_of_and_into_views),
        cmocka_unit_test(files_are_read_into_views),
        cmocka_unit_test(a_short_read_does_not_wait_for_more),
        cmocka_unit_test(a_read_only_view_is_not_written_by_the_kernel),
        cmocka_unit_test(bad_buffers_are_errors),
        cmocka_unit_test(nothing_is_locked_while_there_is_a_view),
        cmocka_unit_test(views_are_mapped_unlocked_where_new_memory_is_locked),
        cmocka_unit_test(the_first_view_may_come_after_mlockall),
        cmocka_unit_test(replaced_views_are_counted_once),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, load, NULL);
}
