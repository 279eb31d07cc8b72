/* Description: the budget of a GPU changes under the preloaded library while the program runs, in the forms of the
 * variable; `codecllm top` sees the counters; what cannot be is refused with one line; sleep drops the weights; and what is read stays right. */
#include "cuda_weights.h"
#include "ask_budget.h"

static void set_to(const char *text, unsigned long long bytes)
{
    if (call_set(text))
        fail_msg("%s: %s", text, line);
    assert_string_equal(line, "");
    assert_int_equal(stat_of("budget"), bytes);
    assert_true(stat_of("used") <= bytes);
}

static void refused(const char *text, const char *why)
{
    unsigned long long before = stat_of("budget");
    assert_true(call_set(text) < 0);
    if (!strstr(line, why) || strchr(line, '\n'))
        fail_msg("%s: %s", text, line);
    assert_int_equal(stat_of("budget"), before);
}

static void read_all(void)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        read_one(i);
        assert_true(stat_of("used") <= stat_of("budget"));
    }
}

static void it_follows(void **state)
{
    (void)state;
    read_all();
    set_to("48M", 48 * MIB);
    read_all();
    set_to("33554432", 32 * MIB);
    set_to("0:40M", 40 * MIB); /* a list */
    set_to("1:20M", 40 * MIB); /* of others */
    set_to("80M", 80 * MIB);
    read_all();
    assert_true(stat_of("decoded") > 60 * MIB); /* all of them */
    set_to("36M", 36 * MIB);
}

static void what_cannot_be_is_one_line(void **state)
{
    (void)state;
    refused("", "not understood");
    refused("much", "not understood");
    refused("0", "not understood");
    refused("-1", "not understood");
    refused("101%", "not understood");
    refused("1M", "is sure to do now is");
    refused("0:1M", "GPU 0: ");
}

static void sleep_drops_the_weights(void **state)
{
    (void)state;
    read_all();
    assert_true(stat_of("decoded") > 0);
    assert_int_equal(call("codecllm_sleep"), 0);
    assert_int_equal(stat_of("decoded") + stat_of("reserve") + stat_of("idle"), 0);
    assert_int_equal(call("codecllm_wake"), 0);
    read_all();
    assert_int_equal(call("codecllm_sleep"), 0);
    read_all(); /* as well without */
}

/* A forked child has no GPU; its own host memory has the new budget. */
static void a_child_leaves_its_parent_alone(void **state)
{
    (void)state;
    unsigned long long before = stat_of("budget");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(call_set("20M") == 0 && call("codecllm_sleep") == 0 ? 0 : 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(stat_of("budget"), before);
}

static void the_command_sees_and_changes_it(void **state)
{
    (void)state;
    static char said[4096];
    set_to("36M", 36 * MIB);
    if (ask_budget((int)getpid(), NULL, said, sizeof said) != 0 || !strstr(said, "GPU 0  budget  36.0 MiB  used "))
        fail_msg("%s", said);
    if (ask_budget((int)getpid(), "32M", said, sizeof said) != 0 || !strstr(said, "GPU 0  budget  32.0 MiB  used "))
        fail_msg("%s", said);
    assert_int_equal(stat_of("budget"), 32 * MIB);
    if (ask_budget((int)getpid(), "1M", said, sizeof said) != 1 ||
        !strstr(said, "GPU 0: a budget of 1 MiB cannot be met"))
        fail_msg("%s", said);
    assert_int_equal(stat_of("budget"), 32 * MIB);
    read_all();
}

/* What top shows is what memory_stats() does, and the counters rise with what is read. */
static void top_sees_its_counters(void **state)
{
    (void)state;
    static char said[32768], later[32768];
    set_to("36M", 36 * MIB);
    read_all();
    if (ask_top((int)getpid(), said, sizeof said) != 0 || !strstr(said, "\"device\": \"GPU 0\""))
        fail_msg("%s", said);
    const char *gpu = strstr(said, "\"GPU 0\"");
    assert_int_equal(number_in(gpu, "budget"), 36 * MIB);
    assert_int_equal(number_in(gpu, "weights_in_all"), stat_of("bound"));
    assert_in_range(number_in(gpu, "weights"), 1, 36 * MIB);
    assert_non_null(strstr(gpu, "\"link_busy\": "));
    assert_null(strstr(gpu, "\"link_busy\": null")); /* it had two samples */
    read_all();                                      /* more than the budget */
    assert_int_equal(ask_top((int)getpid(), later, sizeof later), 0);
    const char *gpu_later = strstr(later, "\"GPU 0\"");
    assert_non_null(gpu_later);
    assert_true(number_in(gpu_later, "loads") > number_in(gpu, "loads"));
    assert_true(number_in(gpu_later, "link_ns") > number_in(gpu, "link_ns"));
    assert_true(number_in(gpu_later, "loads") <= stat_of("loads"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_follows),
        cmocka_unit_test(what_cannot_be_is_one_line),
        cmocka_unit_test(sleep_drops_the_weights),
        cmocka_unit_test(a_child_leaves_its_parent_alone),
        cmocka_unit_test(the_command_sees_and_changes_it),
        cmocka_unit_test(top_sees_its_counters),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
