/* Description: environment variables and sizes are understood exactly, or refused with a line that names them;
 * error codes have texts and the line is cut, never overrun. */
#include "store/base/error.h"
#include "store/base/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int bytes(const char *text, uint64_t *out) { return cws_parse_bytes(text, strlen(text), out); }

static void sizes_are_powers_of_1024(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"0", 0},
        {"1", 1},
        {"1048576", 1048576},
        {"64K", 65536},
        {"64k", 65536},
        {"4M", 4u << 20},
        {"2G", UINT64_C(2) << 30},
        {"1T", UINT64_C(1) << 40},
        {"1.5G", UINT64_C(3) << 29},
        {"2GiB", UINT64_C(2) << 30},
        {"2GB", UINT64_C(2) << 30},
        {"512B", 512},
        {"0.25K", 256},
        {"18446744073709551600", UINT64_C(18446744073709551600)},
    };
    static const char *const bad[] = {"",    "G",  ".",  "1.5",  "2X",           "2GG",
                                      "-1",  " 1", "1 ", "0x10", "17179869184G", "99999999999999999999",
                                      "1e9", "iB"};
    uint64_t value;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(bytes(good[i].text, &value), 0);
        assert_true(value == good[i].value);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (bytes(bad[i], &value) != CWS_E_USAGE)
            fail_msg("'%s' was accepted", bad[i]);
    }
}

static int clear(void **state)
{
    (void)state;
    struct cws_option_row row;
    for (size_t i = 0; cws_options_row(i, &row); i++)
        unsetenv(row.name);
    return 0;
}

static void unset_budget_means_inactive(void **state)
{
    (void)state;
    struct cws_options o;
    assert_int_equal(cws_options_from_env(&o, NULL), 0);
    assert_false(o.active);
    assert_true(o.prefetch);
    assert_true(o.adopt);
    setenv("CODEC_ADOPT", "0", 1);
    assert_int_equal(cws_options_from_env(&o, NULL), 0);
    assert_false(o.adopt);
    unsetenv("CODEC_ADOPT");
    assert_int_equal(o.policy, CWS_POLICY_NEXT);
}

static void budget_forms(void **state)
{
    (void)state;
    struct cws_options o;
    struct cws_error err;
    setenv("CODEC_VRAM_BUDGET", "2G", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    assert_true(o.active && o.budget_bytes == UINT64_C(2) << 30);
    setenv("CODEC_VRAM_BUDGET", "0:512M,1:4G", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    assert_true(o.budget_bytes == UINT64_C(512) << 20);
    assert_true(cws_options_host_budget(&o) == o.budget_bytes);
    setenv("CODEC_VRAM_BUDGET", "50%", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    uint64_t half = cws_options_host_budget(&o);
    assert_true(o.active && o.budget_bytes == 0 && o.budget_percent == 50);
    setenv("CODEC_VRAM_BUDGET", "100%", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    assert_true(half > 0 && cws_options_host_budget(&o) / 2 - half < 4096);
    setenv("CODEC_VRAM_BUDGET", "1:50%,0:2G", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    assert_true(o.active && cws_options_host_budget(&o) == half);
    static const char *const bad[] = {"0",   "0%",   "101%", "%",    "lots",   "2G,4G", "0:2G,x", "0:2G,1:",
                                      ":2G", "a:2G", "-2G",  "0:0%", "0:101%", "0:%",   "0.05K%", "50%%"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("CODEC_VRAM_BUDGET", bad[i], 1);
        if (cws_options_from_env(&o, &err) != CWS_E_USAGE)
            fail_msg("'%s' was accepted", bad[i]);
        assert_false(o.active);
        assert_non_null(strstr(err.message, "CODEC_VRAM_BUDGET"));
        assert_non_null(strstr(err.message, bad[i]));
    }
}

/* The check without the environment says what reading the environment says. */
static void budgets_are_checked_as_they_are_read(void **state)
{
    (void)state;
    static const char *const good[] = {
        "2G",         "2g",
        "512M",       "64K",
        "1048576",    "1.5G",
        ".5G",        "2GiB",
        "2GB",        "2Gi",
        "512B",       "1T",
        "50%",        "100%",
        "0:2G",       "0:2G,1:4G",
        "7:1G",       "1.0",
        "0:2G,1:0",   "0:50%",
        "0:2G,1:50%", "00050%",
        "16777215T",  "0:1G,1:1G,2:1G,3:1G,4:1G,5:1G,6:1G,7:1G,8:1G,9:1G,10:1G,11:1G,12:1G,13:1G,14:1G,15:1G",
    };
    static const char *const bad[] = {
        "",
        "2Q",
        "G",
        "1.5",
        "0",
        "0.0G",
        "0%",
        "101%",
        "1.5%",
        "%",
        "2G,4G",
        "0:2G,",
        ":2G",
        "a:2G",
        "0:0",
        "0:0%",
        "0:101%",
        "0:2G,1:%",
        "0.05K%",
        "2 G",
        " 2G",
        "+2G",
        "-2G",
        "2GG",
        "16777216T",
        "99999999999999999999",
        "0x10",
        "0:1G,1:1G,2:1G,3:1G,4:1G,5:1G,6:1G,7:1G,8:1G,9:1G,10:1G,11:1G,12:1G,13:1G,14:1G,15:1G,16:1G",
        "1234567890:1G",
    };
    struct cws_options o;
    struct cws_error err, read;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        setenv("CODEC_VRAM_BUDGET", good[i], 1);
        if (cws_options_check_budget(good[i], &err) || cws_options_from_env(&o, &read))
            fail_msg("'%s' was refused", good[i]);
        assert_true(o.active);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("CODEC_VRAM_BUDGET", bad[i], 1);
        if (cws_options_check_budget(bad[i], &err) != CWS_E_USAGE)
            fail_msg("'%s' was accepted", bad[i]);
        if (!*bad[i]) /* in the environment, empty means unset */
            continue;
        assert_int_equal(cws_options_from_env(&o, &read), CWS_E_USAGE);
        assert_string_equal(err.message, read.message);
    }
}

static void auto_has_a_range(void **state)
{
    (void)state;
    static const char *const bad[] = {"automatic", "auto:",  "auto:4G",    "auto:4G-",        "auto:-4G", "auto:4G-2G",
                                      "auto:0-2G", "auto4G", "auto:4G-20", "auto:4G-20G-30G", "0:auto",   "auto,1:2G"};
    struct cws_options o;
    struct cws_error err = {0};
    setenv("CODEC_VRAM_BUDGET", "auto", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    assert_true(o.active && o.budget_auto && o.auto_min == 0 && o.auto_max == 0);
    assert_int_equal(cws_options_device_budget(&o, 3, 1000), 1000);
    assert_true(cws_options_host_budget(&o) > 0);
    setenv("CODEC_VRAM_BUDGET", "auto:4K-1.5M", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    assert_int_equal(o.auto_min, 4096);
    assert_int_equal(o.auto_max, 3 << 19);
    assert_int_equal(cws_options_host_budget(&o), 3 << 19); /* every machine has more */
    assert_int_equal(cws_options_device_budget(&o, 0, 1 << 30), 3 << 19);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (cws_options_check_budget(bad[i], &err) != CWS_E_USAGE)
            fail_msg("%s was taken", bad[i]);
    assert_int_equal(cws_options_set_budget(&o, "auto", &err), CWS_E_USAGE);
    assert_non_null(strstr(err.message, "not understood while a program runs"));
    assert_true(o.budget_auto);
    assert_int_equal(cws_options_set_budget(&o, "2G", &err), 0);
    assert_false(o.budget_auto);
    assert_int_equal(cws_options_host_budget(&o), 2ull << 30);
}

static void another_budget_changes_nothing_else(void **state)
{
    (void)state;
    struct cws_options o, before;
    struct cws_error err = {0};
    setenv("CODEC_VRAM_BUDGET", "0:2G,1:50%", 1);
    setenv("CODEC_POLICY", "lru", 1);
    assert_int_equal(cws_options_from_env(&o, &err), 0);
    before = o;
    assert_int_equal(cws_options_set_budget(&o, "3X", &err), CWS_E_USAGE);
    assert_non_null(strstr(err.message, "'3X'"));
    assert_memory_equal(&o, &before, sizeof o);
    assert_int_equal(cws_options_set_budget(&o, "3G", &err), 0);
    assert_int_equal(cws_options_device_budget(&o, 1, 1 << 30), 3ull << 30);
    assert_int_equal(cws_options_host_budget(&o), 3ull << 30);
    assert_int_equal(cws_options_set_budget(&o, "50%", &err), 0);
    assert_int_equal(cws_options_device_budget(&o, 1, 1000), 500);
    assert_int_equal(cws_options_set_budget(&o, "1:1G", &err), 0);
    assert_int_equal(cws_options_device_budget(&o, 0, 1000), 0);
    assert_int_equal(o.policy, CWS_POLICY_LRU);
    assert_true(o.active);
}

static void budgets_of_devices(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int device;
        uint64_t of, want;
    } rows[] = {
        {"2G", 0, 1000, UINT64_C(2) << 30},
        {"2G", 7, 1000, UINT64_C(2) << 30},
        {"50%", 0, 8000, 4000},
        {"50%", 3, 1000, 500},
        {"0:2G,1:4G", 0, 1, UINT64_C(2) << 30},
        {"0:2G,1:4G", 1, 1, UINT64_C(4) << 30},
        {"0:2G,1:4G", 2, 1, 0},
        {"1:1G", 0, 1, 0},
        {"0:50%,1:4G", 0, 8000, 4000},
        {"0:50%,1:4G", 1, 8000, UINT64_C(4) << 30},
        {"0:50%,1:4G", 2, 8000, 0},
        {"0:2G,1:25%", 1, 4000, 1000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct cws_options o;
        setenv("CODEC_VRAM_BUDGET", rows[i].text, 1);
        assert_int_equal(cws_options_from_env(&o, NULL), 0);
        assert_true(cws_options_device_budget(&o, rows[i].device, rows[i].of) == rows[i].want);
    }
}

static void each_row_refuses_nonsense(void **state)
{
    (void)state;
    struct cws_option_row row;
    for (size_t i = 0; cws_options_row(i, &row); i++) {
        struct cws_options o;
        struct cws_error err;
        char text[1100] = "nonsense";
        if (strcmp(row.name, "CODEC_PIN") == 0 ||
            strcmp(row.name, "CODEC_TRACE") == 0) /* any text is a name, if not a longer one than all */
            memset(text, 'x', sizeof text - 1), text[sizeof text - 1] = '\0';
        setenv(row.name, text, 1);
        assert_int_equal(cws_options_from_env(&o, &err), CWS_E_USAGE);
        assert_non_null(strstr(err.message, row.name));
        setenv(row.name, "", 1);
        assert_int_equal(cws_options_from_env(&o, &err), 0);
        unsetenv(row.name);
    }
}

static void visit_unknown(void *arg, const char *text) { strncat(arg, text, 60); }

static void unknown_names_are_found(void **state)
{
    (void)state;
    char found[200] = "";
    setenv("CODEC_VRAM_BUDGTE", "1", 1);
    setenv("CODEC_IO", "uring", 1);
    cws_options_unknown(visit_unknown, found);
    unsetenv("CODEC_VRAM_BUDGTE");
    assert_string_equal(found, "CODEC_VRAM_BUDGTE=1");
}

static void errors_are_cut_and_keep_errno(void **state)
{
    (void)state;
    struct cws_error err;
    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    errno = 7;
    assert_int_equal(cws_fail(&err, CWS_E_CORRUPT, "%s", longer), CWS_E_CORRUPT);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_int_equal(cws_fail_errno(&err, ENOENT, "%s: open", "a.cws"), -ENOENT);
    assert_string_equal(err.message, "a.cws: open: No such file or directory");
    assert_int_equal(cws_fail_errno(&err, EIO, "%s", longer), -EIO);
    assert_int_equal(cws_fail(NULL, CWS_E_BUG, "unused"), CWS_E_BUG);
    assert_int_equal(errno, 7);
    assert_string_equal(cws_strerror(-ENOENT), "No such file or directory");
    assert_string_equal(cws_strerror(CWS_E_CORRUPT), "store is corrupt");
    assert_non_null(cws_strerror(-20700));
    assert_non_null(cws_strerror(5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test_setup(unset_budget_means_inactive, clear),
        cmocka_unit_test_setup_teardown(budget_forms, clear, clear),
        cmocka_unit_test_setup_teardown(budgets_are_checked_as_they_are_read, clear, clear),
        cmocka_unit_test_setup_teardown(auto_has_a_range, clear, clear),
        cmocka_unit_test_setup_teardown(another_budget_changes_nothing_else, clear, clear),
        cmocka_unit_test_setup_teardown(budgets_of_devices, clear, clear),
        cmocka_unit_test_setup_teardown(each_row_refuses_nonsense, clear, clear),
        cmocka_unit_test_setup_teardown(unknown_names_are_found, clear, clear),
        cmocka_unit_test(errors_are_cut_and_keep_errno),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
