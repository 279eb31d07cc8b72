/* Every file of golden/ gives the file beside it; every file of malformed/ is refused as its name says. */
#include "store/read/store.h"
#include "tests/support/sample_model.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int count_fault(void *arg, const struct cws_verify_fault *f)
{
    assert_true(f->message[0] != '\0');
    ++*(unsigned *)arg;
    return 0;
}

/* 0 sound, 1 open refused with *code, 2 verify found faults. */
static int judge(const char *path, int *code)
{
    struct cws_store *s;
    struct cws_error err = {0};
    unsigned faults = 0;
    *code = cws_store_open(path, CWS_IO_AUTO, &s, &err);
    if (*code) {
        assert_null(s);
        assert_int_equal(*code, err.code);
        assert_non_null(strstr(err.message, path));
        assert_null(strchr(err.message, '\n'));
        return 1;
    }
    int result = cws_store_verify(s, 2, count_fault, NULL, &faults, &err);
    assert_int_equal(result, faults > 0);
    if (faults) { /* what verify finds, reading must not hand out as data, but for the padding, which is none */
        struct cws_store_cursor *c;
        assert_int_equal(0, cws_store_cursor_create(s, 2, &c, &err));
        uint8_t *all = malloc(cws_store_logical_bytes(s));
        int read = cws_store_read(c, 0, cws_store_logical_bytes(s), all, &err);
        if (!strstr(path, "gap-not-zero") && !strstr(path, "content-hash") && !strstr(path, "raw-bytes"))
            assert_int_equal(CWS_E_CORRUPT, read);
        free(all);
        cws_store_cursor_destroy(c);
    }
    cws_store_close(s);
    return faults ? 2 : 0;
}

static unsigned each_file(const char *directory, const char *end, void (*visit)(const char *path, const char *name))
{
    char path[600];
    unsigned count = 0;
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        if (len < strlen(end) || strcmp(e->d_name + len - strlen(end), end) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%.250s", directory, e->d_name);
        visit(path, e->d_name);
        count++;
    }
    closedir(d);
    return count;
}

static void check_malformed(const char *path, const char *name)
{
    static const struct {
        const char *prefix;
        int result, code;
    } expected[] = {
        {"version.", 1, CWS_E_VERSION},
        {"feature.", 1, CWS_E_FEATURE},
        {"truncated.", 1, CWS_E_TRUNCATED},
        {"corrupt.", 1, CWS_E_CORRUPT},
        {"verify.", 2, 0},
    };
    int code, result = judge(path, &code);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        if (strncmp(name, expected[i].prefix, strlen(expected[i].prefix)) != 0)
            continue;
        if (result != expected[i].result || code != expected[i].code)
            fail_msg("%s: result %d, code %d", name, result, code);
        return;
    }
    fail_msg("%s: the name says no code", name);
}

static void check_golden(const char *path, const char *name)
{
    char twin[600];
    int code;
    (void)name;
    assert_int_equal(0, judge(path, &code));
    snprintf(twin, sizeof twin, "%.*s.safetensors", (int)strlen(path) - 4, path);
    struct bytes want = sample_load(twin);
    struct cws_store *s;
    struct cws_store_cursor *c;
    struct cws_error err;
    assert_int_equal(0, cws_store_open(path, CWS_IO_AUTO, &s, &err));
    assert_int_equal(0, cws_store_cursor_create(s, 1, &c, &err));
    assert_int_equal(want.size, cws_store_logical_bytes(s));
    uint8_t *got = malloc(want.size);
    for (unsigned i = 0; cws_decoder_name(i); i++) {
        assert_int_equal(0, cws_decoder_force(cws_decoder_name(i)));
        memset(got, 0x77, want.size);
        assert_int_equal(0, cws_store_read(c, 0, want.size, got, &err));
        assert_memory_equal(want.data, got, want.size);
    }
    assert_int_equal(0, cws_decoder_force(NULL));
    free(got);
    free(want.data);
    cws_store_cursor_destroy(c);
    cws_store_close(s);
}

static void malformed_stores_are_refused(void **state)
{
    (void)state;
    assert_int_equal(84, each_file(CWS_TEST_DIR "/malformed", ".cws", check_malformed));
}

static void golden_stores_decode(void **state)
{
    (void)state;
    assert_int_equal(6, each_file(CWS_TEST_DIR "/golden", ".cws", check_golden));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_stores_are_refused),
        cmocka_unit_test(golden_stores_decode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
