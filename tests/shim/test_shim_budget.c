/* Description: the budget of views changes under the preloaded library while the program runs; what cannot be is
 * refused with one line; sleep drops what is in memory; and what is read stays right. */
#include "shim_fixture.h"

#include <dlfcn.h>
#include <sys/wait.h>

static char line[512];
static uint8_t *view;

static int call_set(const char *text)
{
    int (*set)(const char *, char *, size_t) = (int (*)(const char *, char *, size_t))dlsym(RTLD_DEFAULT,
                                                                                            "codecllm_set_budget");
    assert_non_null(set);
    return set(text, line, sizeof line);
}

static int call(const char *name)
{
    int (*function)(char *, size_t) = (int (*)(char *, size_t))dlsym(RTLD_DEFAULT, name);
    assert_non_null(function);
    return function(line, sizeof line);
}

static unsigned long long stat_of(const char *name)
{
    size_t (*json)(char *, size_t) = (size_t(*)(char *, size_t))dlsym(RTLD_DEFAULT, "codecllm_stats_json");
    char text[4096], key[64];
    assert_true(json(text, sizeof text) < sizeof text);
    snprintf(key, sizeof key, "\"%s\": ", name);
    const char *at = strstr(text, key);
    assert_non_null(at);
    return strtoull(at + strlen(key), NULL, 10);
}

static bool is_eager(void) { return rung && strcmp(rung, "eager") == 0; }

static void set_to(const char *text, unsigned long long bytes)
{
    if (call_set(text))
        fail_msg("%s: %s", text, line);
    assert_int_equal(stat_of("budget_bytes"), bytes);
    assert_true(stat_of("resident_bytes") <= bytes);
    assert_memory_equal(view, plain, plain_bytes);
    assert_true(stat_of("resident_bytes") <= bytes);
}

static void refused(const char *text, const char *why)
{
    unsigned long long before = stat_of("budget_bytes");
    assert_true(call_set(text) < 0);
    if (!strstr(line, why) || strchr(line, '\n'))
        fail_msg("%s: %s", text, line);
    assert_int_equal(stat_of("budget_bytes"), before);
}

/* Before a store is mapped it is what the pager begins with. */
static void it_may_come_before_the_first_store(void **state)
{
    (void)state;
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        execl("/proc/self/exe", "test_shim_budget", "before", (char *)NULL);
        _exit(99);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static int map(void **state)
{
    if (fixture_load(state))
        return -1;
    int fd = open(packed_path, O_RDONLY);
    view = mmap(NULL, plain_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    return view == MAP_FAILED ? -1 : 0;
}

static int before_a_store(void)
{
    packed_path = getenv("CWS_SHIM_PACKED");
    plain_path = getenv("CWS_SHIM_PLAIN");
    if (call_set("7M") || stat_of("budget_bytes") != 7 << 20 || map(NULL))
        return 1;
    return stat_of("budget_bytes") == 7 << 20 && memcmp(view, plain, plain_bytes) == 0 ? 0 : 2;
}

static void it_follows(void **state)
{
    (void)state;
    if (is_eager()) {
        refused("4M", "decoded whole");
        return;
    }
    set_to("1M", 1 << 20);
    set_to("16M", 16 << 20);
    assert_true(stat_of("resident_bytes") > 9 << 20);
    set_to("0:3M,1:1G", 3 << 20);
    set_to("2M", 2 << 20);
}

static void what_cannot_be_is_one_line(void **state)
{
    (void)state;
    refused("", "not understood");
    refused("2 GB", "not understood");
    refused("0", "not understood");
    if (!is_eager())
        refused("1048575", "the least is 1048576");
}

static void sleep_drops_all(void **state)
{
    (void)state;
    assert_memory_equal(view, plain, plain_bytes);
    for (unsigned i = 0; i < 1000; i++) { /* what a worker begins just now comes once more */
        assert_int_equal(call("codecllm_sleep"), 0);
        if (is_eager() || stat_of("resident_bytes") == 0)
            break;
    }
    if (!is_eager())
        assert_int_equal(stat_of("resident_bytes"), 0);
    assert_int_equal(call("codecllm_wake"), 0);
    assert_memory_equal(view, plain, plain_bytes);
}

static void a_child_has_its_own(void **state)
{
    (void)state;
    unsigned long long before = stat_of("budget_bytes");
    int status;
    if (is_eager())
        skip();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(call_set("1M") == 0 && memcmp(view, plain, plain_bytes) == 0 && stat_of("budget_bytes") == 1 << 20 ? 0
                                                                                                                 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(stat_of("budget_bytes"), before);
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1)
        return before_a_store();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_may_come_before_the_first_store),
        cmocka_unit_test(it_follows),
        cmocka_unit_test(what_cannot_be_is_one_line),
        cmocka_unit_test(sleep_drops_all),
        cmocka_unit_test(a_child_has_its_own),
    };
    int start = fixture_start();
    return start ? start : cmocka_run_group_tests(tests, map, NULL);
}
