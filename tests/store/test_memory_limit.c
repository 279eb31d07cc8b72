/* Description: what this process may have of host memory, from made-up /proc and mounts of control groups: containers
 * with and without a namespace, nested groups, both versions at once, files that are missing or hold no number. */
#include "store/base/memory_limit.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define MIB ((uint64_t)1 << 20)
static char root[64];

/* Writes a file below root, with its directories. */
static void put(const char *path, const char *text)
{
    char whole[2048];
    int len = snprintf(whole, sizeof whole, "%s%s", root, path);
    assert_true(len > 0 && (size_t)len < sizeof whole);
    for (char *slash = whole + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        assert_true(mkdir(whole, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/memory-limit-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    put("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n");
    return 0;
}

static int remove_root(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

#define V2_AT(tree, mount)                                                                                             \
    "31 23 0:28 / /sys rw - sysfs sysfs rw\n35 31 0:41 " tree " " mount                                                \
    " rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_AT(tree, mount)                                                                                             \
    "36 31 0:42 " tree " " mount                                                                                       \
    " rw,relatime - cgroup cgroup rw,memory\n37 31 0:43 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"

static struct cws_memory_limit get(void)
{
    struct cws_memory_limit limit;
    errno = 7;
    cws_memory_limit_get(root, &limit);
    assert_int_equal(errno, 7);
    assert_true(limit.physical_bytes == 16384 * MIB);
    return limit;
}

static void expect(uint64_t bytes, const char *from)
{
    struct cws_memory_limit limit = get();
    assert_true(limit.bytes == bytes);
    assert_string_equal(limit.from, from);
}

static void physical_memory_where_nothing_else_is_told(void **state)
{
    (void)state;
    expect(16384 * MIB, "physical memory");
    assert_true(get().free_bytes == 8192 * MIB);
    put("/proc/self/cgroup", "0::/user.slice\n");
    put("/proc/self/mountinfo", V2_AT("/", "/sys/fs/cgroup"));
    expect(16384 * MIB, "physical memory");
    put("/sys/fs/cgroup/user.slice/memory.max", "max\n");
    put("/sys/fs/cgroup/user.slice/memory.high", "max\n");
    expect(16384 * MIB, "physical memory");
}

/* In a namespace of its own a container's group is "/", and the mount shows the container's files. */
static void container_with_a_namespace(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", V2_AT("/", "/sys/fs/cgroup"));
    put("/sys/fs/cgroup/memory.max", "524288000\n");
    expect(500 * MIB, "memory.max of /sys/fs/cgroup");
}

/* Without one it is the host's path, whose first part is the mount's. */
static void container_without_a_namespace(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/system.slice/docker-1.scope/inner\n");
    put("/proc/self/mountinfo", V2_AT("/system.slice/docker-1.scope", "/sys/fs/cgroup"));
    put("/sys/fs/cgroup/memory.max", "524288000\n");
    put("/sys/fs/cgroup/inner/memory.max", "max\n");
    expect(500 * MIB, "memory.max of /sys/fs/cgroup");
    put("/sys/fs/cgroup/inner/memory.max", "104857600\n");
    expect(100 * MIB, "memory.max of /sys/fs/cgroup/inner");
}

static void the_tightest_of_all_groups_above(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/a/b:1/c\n");
    put("/proc/self/mountinfo", V2_AT("/", "/sys/fs/cgroup"));
    put("/sys/fs/cgroup/a/memory.max", "1048576000\n");
    put("/sys/fs/cgroup/a/b:1/memory.max", "max\n");
    put("/sys/fs/cgroup/a/b:1/c/memory.max", "2097152000\n");
    expect(1000 * MIB, "memory.max of /sys/fs/cgroup/a");
    put("/sys/fs/cgroup/a/b:1/memory.high", "314572800\n");
    expect(300 * MIB, "memory.high of /sys/fs/cgroup/a/b:1");
    put("/sys/fs/cgroup/a/b:1/c/d/memory.max", "1048576\n"); /* below: not ours */
    put("/sys/fs/cgroup/z/memory.max", "1048576\n");
    expect(300 * MIB, "memory.high of /sys/fs/cgroup/a/b:1");
}

static void version_1_and_both_at_once(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "9:name=systemd:/\n5:cpuset,memory2:/wrong\n4:cpu,memory:/docker/abc\n0::/v2\n");
    put("/proc/self/mountinfo", V1_AT("/docker/abc", "/sys/fs/cgroup/memory") V2_AT("/", "/sys/fs/cgroup/unified"));
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    expect(16384 * MIB, "physical memory");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "524288000\n");
    expect(500 * MIB, "memory.limit_in_bytes of /sys/fs/cgroup/memory");
    put("/sys/fs/cgroup/unified/v2/memory.max", "104857600\n");
    expect(100 * MIB, "memory.max of /sys/fs/cgroup/unified/v2");
    put("/sys/fs/cgroup/cpu/memory.limit_in_bytes", "1048576\n");
    expect(100 * MIB, "memory.max of /sys/fs/cgroup/unified/v2");
}

static void mounts_of_other_groups_do_not_count(void **state)
{
    (void)state;
    put("/sys/fs/cgroup/memory.max", "524288000\n");
    put("/proc/self/mountinfo", V2_AT("/docker/abc", "/sys/fs/cgroup"));
    static const char *const others[] = {
        "0::/docker/abcd\n", "0::/docker\n", "0::/../x\n", "0::relative\n", "4:memory:/docker/abc\n", "garbage\n", ""};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        put("/proc/self/cgroup", others[i]);
        expect(16384 * MIB, "physical memory");
    }
    /* from above the namespace: the mount's own limit holds */
    put("/proc/self/mountinfo", V2_AT("/..", "/sys/fs/cgroup"));
    put("/proc/self/cgroup", "0::/x\n");
    expect(500 * MIB, "memory.max of /sys/fs/cgroup");
}

static void groups_that_are_gone_or_cannot_be_read(void **state)
{
    (void)state;
    char path[128];
    put("/proc/self/cgroup", "0::/a/gone (deleted)\n");
    put("/proc/self/mountinfo", V2_AT("/", "/sys/fs/cgroup"));
    put("/sys/fs/cgroup/a/memory.max", "524288000\n");
    expect(500 * MIB, "memory.max of /sys/fs/cgroup/a");
    put("/sys/fs/cgroup/a/memory.max", "many\n");
    expect(16384 * MIB, "physical memory");
    put("/sys/fs/cgroup/a/memory.max", "");
    expect(16384 * MIB, "physical memory");
    snprintf(path, sizeof path, "%s/sys/fs/cgroup/a/memory.high", root);
    assert_int_equal(mkdir(path, 0700), 0); /* a read fails, for root too */
    expect(16384 * MIB, "physical memory");
}

static void mounts_that_cannot_be_told_are_where_they_always_are(void **state)
{
    (void)state;
    put("/sys/fs/cgroup/memory.max", "524288000\n");
    expect(500 * MIB, "memory.max of /sys/fs/cgroup");
    put("/proc/self/cgroup", "0::/a\n3:memory:/b\n");
    put("/sys/fs/cgroup/memory/b/memory.limit_in_bytes", "104857600\n");
    expect(100 * MIB, "memory.limit_in_bytes of /sys/fs/cgroup/memory/b");
}

static void awkward_names(void **state)
{
    (void)state;
    char line[9000], group[1200], text[2000];
    memset(line, 'x', sizeof line);
    line[sizeof line - 2] = '\n';
    line[sizeof line - 1] = '\0';
    char *mounts = malloc(2 * sizeof line);
    snprintf(mounts, 2 * sizeof line, "20 1 0:1 / / rw - overlay overlay %s%s", line,
             V2_AT("/", "/my\\040groups\\134"));
    put("/proc/self/mountinfo", mounts);
    free(mounts);
    put("/proc/self/cgroup", "0::/a\n");
    put("/my groups\\/a/memory.max", "524288000");
    expect(500 * MIB, "memory.max of /my groups\\/a");
    memset(group, 'g', sizeof group);
    for (size_t i = 200; i < sizeof group; i += 200)
        group[i] = '/';
    group[sizeof group - 1] = '\0';
    snprintf(text, sizeof text, "0::/a/%s\n", group); /* longer than is looked at */
    put("/proc/self/cgroup", text);
    expect(500 * MIB, "memory.max of /my groups\\/a");
    group[399] = '\0';
    snprintf(text, sizeof text, "0::/a/%s\n", group);
    put("/proc/self/cgroup", text);
    snprintf(text, sizeof text, "/my groups\\/a/%s/memory.max", group);
    put(text, "104857600");
    struct cws_memory_limit limit = get(); /* the name is cut */
    assert_true(limit.bytes == 100 * MIB);
    assert_int_equal(strlen(limit.from), sizeof limit.from - 1);
    assert_string_equal(limit.from + sizeof limit.from - 4, "...");
}

static void what_is_left_counts_pages_of_files_as_free(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/proc/self/mountinfo", V2_AT("/", "/sys/fs/cgroup"));
    put("/sys/fs/cgroup/a/memory.max", "1048576000");
    put("/sys/fs/cgroup/a/b/memory.max", "1572864000");
    assert_true(get().free_bytes == 1000 * MIB);
    put("/sys/fs/cgroup/a/memory.current", "943718400\n");
    assert_true(get().free_bytes == 100 * MIB);
    put("/sys/fs/cgroup/a/memory.stat", "anon 1\nfile 629145600\ninactive_anon 5\ninactive_file 524288000\n");
    assert_true(get().free_bytes == 600 * MIB);
    put("/sys/fs/cgroup/a/b/memory.current", "1468006400\n");
    assert_true(get().free_bytes == 100 * MIB);
    put("/sys/fs/cgroup/a/b/memory.current", "2097152000\n");
    assert_true(get().free_bytes == 0);
}

static void resource_limits_count(void **state)
{
    (void)state;
    int status;
    pid_t child = fork();
    if (child == 0) {
        struct cws_memory_limit limit;
        struct rlimit less = {4096 * MIB, RLIM_INFINITY};
        setrlimit(RLIMIT_DATA, &less);
        cws_memory_limit_get(root, &limit);
        int bad = limit.bytes != 4096 * MIB || strcmp(limit.from, "RLIMIT_DATA (ulimit -d)") != 0;
        less.rlim_cur = 2048 * MIB;
        if (!getenv("CWS_NO_AS_LIMIT")) {
            setrlimit(RLIMIT_AS, &less);
            cws_memory_limit_get(root, &limit);
            bad |= limit.bytes != 2048 * MIB || strcmp(limit.from, "RLIMIT_AS (ulimit -v)") != 0 ? 2 : 0;
        }
        _exit(bad);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void this_machine_has_some(void **state)
{
    (void)state;
    struct cws_memory_limit limit;
    cws_memory_limit_get("", &limit);
    assert_true(limit.bytes >= MIB && limit.bytes <= limit.physical_bytes && limit.physical_bytes < UINT64_MAX);
    assert_true(limit.from[0] != '\0');
}

int main(void)
{
#define ROOTED(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        ROOTED(physical_memory_where_nothing_else_is_told),
        ROOTED(container_with_a_namespace),
        ROOTED(container_without_a_namespace),
        ROOTED(the_tightest_of_all_groups_above),
        ROOTED(version_1_and_both_at_once),
        ROOTED(mounts_of_other_groups_do_not_count),
        ROOTED(groups_that_are_gone_or_cannot_be_read),
        ROOTED(mounts_that_cannot_be_told_are_where_they_always_are),
        ROOTED(awkward_names),
        ROOTED(what_is_left_counts_pages_of_files_as_free),
        ROOTED(resource_limits_count),
        cmocka_unit_test(this_machine_has_some),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
