/* Description: in a control group that has less memory than a model, CODEC_VRAM_BUDGET=50% is half of what the group
 * has, and reading the whole model through a view is not killed. Makes a group for each way of paging; skipped where it
 * may not.
 *
 * test_cgroup_budget CODECLLM SHIM WORK-FILE-PREFIX; with "read" as the first argument it is the program in the
 * group. */
#include <errno.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
enum { MODEL_MIB = 160, LIMIT_MIB = 96, SKIPPED = 77, HEADER_BYTES = 128 };

/* bf16 values whose exponents vary a little, as weights' do. */
static uint16_t weight(size_t i) { return (uint16_t)(0x3d00 | (i * 2654435761u >> 13 & 0x81ff)); }

/* --- in the group ----------------------------------------------------------------------------------- */

static int read_model(const char *path)
{
    size_t (*stats)(char *, size_t) = (size_t(*)(char *, size_t))dlsym(RTLD_DEFAULT, "codecllm_stats_json");
    char text[4096], expected[64];
    int fd = open(path, O_RDONLY);
    const uint8_t *view = fd < 0 ? MAP_FAILED
                                 : mmap(NULL, HEADER_BYTES + MODEL_MIB * MIB, PROT_READ, MAP_PRIVATE, fd, 0);
    if (view == MAP_FAILED)
        return errno == EOPNOTSUPP ? SKIPPED : 2;
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < MODEL_MIB * MIB / 2; i++) {
            uint16_t value;
            memcpy(&value, view + HEADER_BYTES + 2 * i, 2);
            if (value != weight(i))
                return 3;
        }
    }
    snprintf(expected, sizeof expected, "\"budget_bytes\": %zu,", LIMIT_MIB * MIB / 100 * 50);
    if (!stats || stats(text, sizeof text) >= sizeof text || !strstr(text, expected)) {
        fprintf(stderr, "expected %s in %s\n", expected, text);
        return 4;
    }
    return 0;
}

/* --- around it -------------------------------------------------------------------------------------- */

static bool write_text(const char *directory, const char *file, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int fd = open(path, O_WRONLY);
    bool fine = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return fine;
}

/* A group of LIMIT_MIB where groups of either version can be made. */
static bool make_group(char *group, size_t size)
{
    static const char *const parents[][2] = {{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
                                             {"/sys/fs/cgroup", "memory.max"}};
    char limit[32];
    snprintf(limit, sizeof limit, "%zu", LIMIT_MIB * MIB);
    for (size_t i = 0; i < 2; i++) {
        write_text(parents[i][0], "cgroup.subtree_control", "+memory"); /* may be so already, or refused */
        snprintf(group, size, "%s/codecllm-test-%d", parents[i][0], (int)getpid());
        if (mkdir(group, 0755))
            continue;
        if (write_text(group, parents[i][1], limit)) {
            write_text(group, "memory.swap.max", "0");
            write_text(group, "memory.memsw.limit_in_bytes", limit);
            return true;
        }
        rmdir(group);
    }
    return false;
}

static void remove_group(const char *group)
{
    for (int i = 0; i < 100 && rmdir(group) && errno == EBUSY;
         i++) /* version 1 needs a moment after its last process */
        usleep(20000);
}

static bool make_model(const char *path)
{
    char header[HEADER_BYTES];
    memset(header, ' ', sizeof header);
    int len = snprintf(header + 8, sizeof header - 8,
                       "{\"w\":{\"dtype\":\"BF16\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}", MODEL_MIB * MIB / 2,
                       MODEL_MIB * MIB);
    header[8 + len] = ' ';
    uint64_t bytes = sizeof header - 8;
    memcpy(header, &bytes, 8);
    FILE *file = fopen(path, "wb");
    bool fine = file && fwrite(header, 1, sizeof header, file) == sizeof header;
    for (size_t i = 0; fine && i < MODEL_MIB * MIB / 2;) {
        uint16_t some[4096];
        for (size_t k = 0; k < 4096; k++)
            some[k] = weight(i++);
        fine = fwrite(some, 1, sizeof some, file) == sizeof some;
    }
    return file && fclose(file) == 0 && fine;
}

/* Starts a program and returns its exit status, or 128 and the signal. */
static int run(char *const *arguments, const char *group, const char *shim, const char *rung)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        if (group && !write_text(group, "cgroup.procs", "0"))
            _exit(5);
        if (shim) {
            setenv("LD_PRELOAD", shim, 1);
            setenv("CODEC_VRAM_BUDGET", "50%", 1);
            setenv("CODEC_PAGER", rung, 1);
        }
        execv(arguments[0], arguments);
        _exit(6);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 7;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
    static const char *const rungs[] = {"uffd-dev", "uffd", "uffd-user", "sigsegv"};
    char group[256], plain[512], packed[512];
    int failed = 0, passed = 0;
    if (argc == 3 && strcmp(argv[1], "read") == 0)
        return read_model(argv[2]);
    if (argc != 4)
        return 1;
    if (!make_group(group, sizeof group)) {
        puts("skipped: no control group with a memory limit can be made here");
        return SKIPPED;
    }
    remove_group(group);
    snprintf(plain, sizeof plain, "%s.plain.safetensors", argv[3]);
    snprintf(packed, sizeof packed, "%s.packed.safetensors", argv[3]);
    char *pack[] = {argv[1], "pack", "--quiet", plain, packed, NULL},
         *reader[] = {"/proc/self/exe", "read", packed, NULL};
    unlink(packed);
    if (!make_model(plain) || run(pack, NULL, NULL, NULL) != 0) {
        puts("the model could not be packed");
        return 1;
    }
    unlink(plain);
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        if (!make_group(group, sizeof group))
            return 1;
        int status = run(reader, group, argv[2], rungs[i]);
        remove_group(group);
        printf("%s: %s (%d)\n", rungs[i],
               status == 0         ? "read within its group"
               : status == SKIPPED ? "not here"
                                   : "FAILED",
               status);
        failed += status != 0 && status != SKIPPED;
        passed += status == 0;
    }
    unlink(packed);
    return failed ? 1 : passed ? 0 : SKIPPED;
}
