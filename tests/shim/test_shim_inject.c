/* Every allocation and every system call that the shim makes for a program fails once: the program gets right bytes or
 * an error, at most one line is written, and afterwards everything works and nothing is left behind. Each trial is a
 * process of its own. */
#include "tests/support/hang.h"
#include "shim_fixture.h"
#include "shim_inject.h"

#include <dirent.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum {
    SOME = 300000,
    NTH_MAX = 20000,
    CLOSE_LOOK = SANITIZED ? 12 : 60,
    STRIDE = SANITIZED ? 499 : 61,
    STEP = SANITIZED ? 2 : 1
};
static uint8_t got[SOME]; /* nothing here allocates while a call may fail */
/* of the store, and another name of it: what writes is given the name, and must leave the copy alone */
static char copy[4200];
static const char *target;
static unsigned refusals;
static sigjmp_buf jump;

/* --- outcomes ------------------------------------------------------------------------------------ */

static void die(const char *what)
{
    bool by_shim;
    shim_inject_disarm(&by_shim);
    dprintf(STDOUT_FILENO, "    %s (errno %d, %s)\n", what, errno, strerror(errno));
    _exit(1);
}

/* Did the call work? If not, errno must be one that a program can expect. */
static bool worked(const char *what, bool it_did)
{
    /* the last: a pager that was forced and cannot start */
    static const int expected[] = {ENOMEM, EIO, EMFILE, EAGAIN, EOPNOTSUPP};
    if (it_did)
        return true;
    refusals++;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (errno == expected[i])
            return false;
    die(what);
    return false;
}

static void same(const char *what, const uint8_t *bytes, size_t offset, size_t len)
{
    if (memcmp(bytes, plain + offset, len) != 0)
        die(what);
}

/* A read that may be short. */
static bool read_right(const char *what, ssize_t n, const uint8_t *bytes, size_t offset, size_t want)
{
    if (!worked(what, n >= 0))
        return false;
    if (n == 0 || (size_t)n > want)
        die(what);
    same(what, bytes, offset, (size_t)n);
    return true;
}

static void on_fault(int signo)
{
    (void)signo;
    siglongjmp(jump, 1);
}

static void view_right(const char *what, const uint8_t *view, size_t offset, size_t len)
{
    if (sigsetjmp(jump, 1) == 0)
        same(what, view, offset, len);
    else
        refusals++; /* SIGBUS: a block could not be filled */
}

/* --- what a program does -------------------------------------------------------------------------- */

static void asks(void)
{
    struct stat st;
    struct statx sx;
    if (worked("stat", stat(packed_path, &st) == 0) && st.st_size != (off_t)plain_bytes)
        die("stat tells the real size");
    if (worked("lstat", lstat(packed_path, &st) == 0) && st.st_size != (off_t)plain_bytes)
        die("lstat tells the real size");
    if (worked("statx", statx(AT_FDCWD, packed_path, 0, STATX_SIZE, &sx) == 0) && sx.stx_size != plain_bytes)
        die("statx tells the real size");
    int fd = open(packed_path, O_RDONLY);
    if (!worked("open", fd >= 0))
        return;
    if (worked("fstat", fstat(fd, &st) == 0) && st.st_size != (off_t)plain_bytes)
        die("fstat tells the real size");
    if (worked("statx of a descriptor", statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &sx) == 0) &&
        sx.stx_size != plain_bytes)
        die("statx of a descriptor tells the real size");
    close(fd);
}

static void opens(void)
{
    int fd = open(packed_path, O_RDONLY);
    if (!worked("open", fd >= 0))
        return;
    read_right("read", read(fd, got, 1000), got, 0, 1000);
    close(fd);
}

static void reads(void)
{
    int fd = open(packed_path, O_RDONLY);
    if (!worked("open", fd >= 0))
        return;
    off_t at = 0;
    struct iovec parts[2] = {{got, 100}, {got + 100, 5000}};
    ssize_t n = read(fd, got, 1000);
    if (read_right("read", n, got, 0, 1000))
        at = n;
    n = readv(fd, parts, 2);
    if (read_right("readv", n, got, (size_t)at, 5100))
        at += n;
    read_right("pread", pread(fd, got, 70000, 4567891), got, 4567891, 70000);
    read_right("pread of much", pread(fd, got, SOME, 1234567), got, 1234567, SOME);
    read_right("preadv", preadv(fd, parts, 2, 7000001), got, 7000001, 5100);
    off_t now = lseek(fd, 0, SEEK_CUR);
    if (worked("lseek", now >= 0) && now != at)
        die("the offset is another");
    if (lseek(fd, -100, SEEK_END) == (off_t)plain_bytes - 100)
        read_right("read at the end", read(fd, got, 1000), got, plain_bytes - 100, 100);
    else
        worked("lseek to the end", false);
    if (sendfile(STDOUT_FILENO, fd, NULL, 100) != -1)
        die("sendfile sends raw bytes");
    close(fd);
}

static void duplicates(void)
{
    static const int high[] = {900, 9000}; /* the second needs a new page of the table */
    int fd = open(packed_path, O_RDONLY), null = open("/dev/null", O_RDONLY), twin;
    if (worked("open", fd >= 0)) {
        if (worked("dup", (twin = dup(fd)) >= 0)) {
            read_right("read of a dup", pread(twin, got, 100, 5000000), got, 5000000, 100);
            close(twin);
        }
        for (int i = 0; i < 2; i++) {
            if (!worked("F_DUPFD", (twin = fcntl(fd, F_DUPFD, high[i])) >= 0))
                continue;
            read_right("read of F_DUPFD", pread(twin, got, 100, 6000000), got, 6000000, 100);
            close(twin);
        }
        if (null >= 0) {
            if (worked("dup2", dup2(fd, null) == null))
                read_right("read of dup2", pread(null, got, 100, 7000000), got, 7000000, 100);
        }
        close(fd);
    }
    if (null >= 0)
        close(null);
}

static void maps(void)
{
    int fd = open(packed_path, O_RDONLY);
    if (!worked("open", fd >= 0))
        return;
    uint8_t *view = mmap(NULL, plain_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (worked("mmap", view != MAP_FAILED)) {
        view_right("view", view, 0, 100000);
        view_right("view", view + 8000000, 8000000, 100000);
        munmap(view, plain_bytes);
    }
    size_t longer = plain_bytes + 5 * 4096;
    view = mmap(NULL, longer, PROT_READ, MAP_PRIVATE, fd, 4096);
    if (worked("mmap past the end", view != MAP_FAILED)) {
        view_right("view with a tail", view + 3000000, 3004096, 100000);
        munmap(view, longer);
    }
    close(fd);
}

static void streams(void)
{
    FILE *file = fopen(packed_path, "rb");
    if (worked("fopen", file != NULL)) {
        size_t n = fread(got, 1, 5000, file);
        same("fread", got, 0, n);
        worked("fread", n == 5000);
        clearerr(file);
        if (worked("fseek", fseek(file, 3000000, SEEK_SET) == 0)) {
            n = fread(got, 1, SOME, file);
            same("fread behind fseek", got, 3000000, n);
            worked("fread behind fseek", n == SOME);
        }
        fclose(file);
    }
    int fd = open(packed_path, O_RDONLY);
    if (!worked("open", fd >= 0))
        return;
    file = fdopen(fd, "rb");
    if (worked("fdopen", file != NULL)) {
        size_t n = fread(got, 1, 100, file);
        same("fread of fdopen", got, 0, n);
        worked("fread of fdopen", n == 100);
        fclose(file);
    } else {
        close(fd);
    }
}

/* A store in use is replaced, never changed. */
static void writes(void)
{
    int fd = open(target, O_RDONLY);
    if (!worked("open", fd >= 0))
        return;
    int writer = open(target, O_RDWR);
    if (writer >= 0)
        die("open for writing in place");
    if (errno != EROFS)
        worked("open for writing in place", false);
    FILE *file = fopen(target, "r+b");
    if (file)
        die("fopen for writing in place");
    if (errno != EROFS)
        worked("fopen for writing in place", false);
    if (truncate(target, 5) == 0)
        die("truncate in place");
    if (errno != EROFS)
        worked("truncate in place", false);
    writer = open(target, O_WRONLY | O_TRUNC);
    if (worked("open for overwriting", writer >= 0)) {
        if (write(writer, "new", 3) != 3)
            die("write");
        close(writer);
    }
    read_right("read of the old file", pread(fd, got, SOME, 5000000), got, 5000000, SOME);
    close(fd);
}

/* --- one trial ------------------------------------------------------------------------------------ */

static const struct scenario {
    const char *name;
    void (*run)(void);
    bool on_copy;
    bool warm; /* the store is open already: its header is not parsed again */
} scenarios[] = {{"asks", asks, false, false},   {"opens", opens, false, false},
                 {"reads", reads, false, true},  {"duplicates", duplicates, false, true},
                 {"maps", maps, false, true},    {"streams", streams, false, true},
                 {"writes", writes, true, false}};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };
static const char *const kind_names[SHIM_INJECT_KINDS] = {"none",  "alloc", "map",  "stat", "open",  "read",
                                                          "short", "intr",  "seek", "link", "thread"};

struct left {
    long blocks;
    unsigned files;
    long pages;
};

static struct left left_now(void)
{
    struct left now = {.blocks = shim_inject_live_blocks()};
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        now.files++;
    if (d)
        closedir(d);
    char text[100] = "";
    int statm = open("/proc/self/statm", O_RDONLY);
    if (statm < 0 || read(statm, text, sizeof text - 1) <= 0)
        die("statm");
    close(statm);
    now.pages = strtol(text, NULL, 10);
    return now;
}

static int lines_of(int log, char *text, size_t size)
{
    int lines = 0;
    ssize_t n = pread(log, text, size - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    for (const char *at = text; *at; at = strchr(at, '\n') + 1, lines++)
        if (strncmp(at, "codecllm: ", 10) != 0 || !strchr(at, '\n'))
            return 1000;
    return lines;
}

static void fresh_target(const struct scenario *s, const char *path)
{
    if (!s->on_copy)
        return;
    unlink(path);
    if (link(copy, target = path) != 0)
        die("link");
}

/* The failure, then the same without: its lines and its outcome. Returns whether a call failed. */
static bool fail_once(const struct scenario *s, enum shim_inject_kind kind, unsigned nth, const char *path, int own)
{
    char text[8192];
    bool by_shim;
    int log = memfd_create("stderr", MFD_CLOEXEC);
    refusals = 0;
    fresh_target(s, path);
    dup2(log, STDERR_FILENO);
    shim_inject_arm(kind, nth);
    s->run();
    bool did = shim_inject_disarm(&by_shim);
    unsigned refused = refusals;
    dup2(own, STDERR_FILENO);
    /* three calls that would write in place */
    int lines = lines_of(log, text, sizeof text), wanted = s->on_copy ? 3 : 0;
    /* else it can be what the program asked for */
    bool ours = by_shim && (kind == SHIM_INJECT_ALLOC || kind == SHIM_INJECT_READ);
    if (lines > wanted + 1 || (ours && refused && lines == 0)) {
        dprintf(STDOUT_FILENO, "    %d lines, %u refusals:\n%s", lines, refused, text);
        _exit(1);
    }
    if (refused && !did)
        die("refused without a failure");
    refusals = 0;
    ftruncate(log, 0);
    fresh_target(s, path);
    dup2(log, STDERR_FILENO);
    s->run();
    dup2(own, STDERR_FILENO);
    if (refusals)
        die("refused after the failure");
    close(log);
    return did;
}

/* In a child: 0: no call failed; 2: one did, and all is well. Never returns. */
static void trial(const struct scenario *s, enum shim_inject_kind kind, unsigned nth)
{
    enum { ROUNDS = 3 }; /* the first also makes what is made once: the second and third are compared */
    char path[4200];
    struct left left[ROUNDS];
    bool did = false;
    int own = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
    alarm(HANG_SECONDS); /* a deadlock ends here */
    signal(SIGBUS, on_fault);
    snprintf(path, sizeof path, "%s.target.%d", packed_path, (int)getpid());
    if (s->warm && open(packed_path, O_RDONLY) < 0)
        die("open before the failure");
    for (int i = 0; i < ROUNDS; i++) {
        did |= fail_once(s, kind, nth, path, own);
        left[i] = left_now();
    }
    unlink(path);
    if (left[2].blocks != left[1].blocks || left[2].files != left[1].files ||
        (left[2].blocks && left[2].pages > left[1].pages + 2000)) { /* a sanitizer keeps pages */
        dprintf(STDOUT_FILENO, "    leaves %ld blocks, %d descriptors, %ld pages behind\n",
                left[2].blocks - left[1].blocks, (int)(left[2].files - left[1].files), left[2].pages - left[1].pages);
        _exit(1);
    }
    _exit(did ? 2 : 0);
}

static bool run_trial(const struct scenario *s, enum shim_inject_kind kind, unsigned nth)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        trial(s, kind, nth);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 2))
        fail_msg("%s, %s %u: %s %d", s->name, kind_names[kind], nth, WIFSIGNALED(status) ? "signal" : "status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return WEXITSTATUS(status) == 2;
}

/* A sanitizer is slow: each way of paging sees every other one of the first calls, and another one. */
static unsigned first_of_sample(void)
{
    const char *pager = getenv("CODEC_PAGER");
    return SANITIZED && pager && strcmp(pager, "sigsegv") == 0 ? 2 : 1;
}

static void every_failure_of_one_call_is_survived(void **state)
{
    (void)state;
    const char *only = getenv("CWS_ONLY"); /* one scenario, for looking closer */
    for (int i = 0; i < SCENARIOS; i++) {
        const struct scenario *s = &scenarios[i];
        if (only && strcmp(only, s->name) != 0)
            continue;
        assert_false(run_trial(s, SHIM_INJECT_NONE, 1));
        for (int kind = SHIM_INJECT_ALLOC; kind < SHIM_INJECT_KINDS; kind++) {
            unsigned nth = first_of_sample();
            while (nth < NTH_MAX && run_trial(s, (enum shim_inject_kind)kind, nth))
                /* far behind lies the parser of headers, which has tests of its own */
                nth += nth < CLOSE_LOOK ? STEP : STRIDE;
            assert_true(nth < NTH_MAX);
            print_message("%s: %s: %u\n", s->name, kind_names[kind], nth - 1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_failure_of_one_call_is_survived)};
    int status;
    pid_t child = fork(); /* the pager must not have been started before the trials */
    if (child == 0)
        _exit(fixture_start());
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    packed_path = getenv("CWS_SHIM_PACKED");
    plain_path = getenv("CWS_SHIM_PLAIN");
    packed_copy(copy, sizeof copy, "copy");
    status = cmocka_run_group_tests(tests, fixture_load, NULL);
    unlink(copy);
    return status;
}
