/* PyTorch's allocator variables, as `codecllm run` sets them: the cases are those of tests/python/test_cuda_boot.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/torch_allocator.h"

#define OURS "backend:cudaMallocAsync"

static void only_conflicting_keys_are_rewritten(void **state)
{
    static const struct {
        const char *before, *after;
        bool changed;
    } cases[] = {
        {"", OURS, false},
        {" , ,", OURS, false},
        {OURS, OURS, false},
        {"backend : cudaMallocAsync ", OURS, false},
        {"backend:native", OURS, true},
        {"backend:", OURS, true},
        {"backend", OURS, true},
        {"backends:native", "backends:native," OURS, false},
        {"expandable_segments:True", OURS, true},
        {"expandable_segments: true", OURS, true},
        {"expandable_segments:False", "expandable_segments:False," OURS, false},
        {"max_split_size_mb:64, expandable_segments:True", "max_split_size_mb:64," OURS, true},
        {"roundup_power2_divisions:[256:1,512:2],backend:native,garbage_collection_threshold:0.6",
         "roundup_power2_divisions:[256:1,512:2],garbage_collection_threshold:0.6," OURS, true},
        {"a:1],b:2", "a:1],b:2," OURS, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool changed;
        char *before = strdup(cases[i].before), *after = cws_torch_allocator_conf(before, &changed);
        assert_non_null(after);
        assert_string_equal(after, cases[i].after);
        assert_int_equal(changed, cases[i].changed);
        bool again;
        char *twice = cws_torch_allocator_conf(after, &again); /* a program that a program starts */
        assert_string_equal(twice, after);
        assert_false(again);
        free(before);
        free(after);
        free(twice);
    }
    bool changed;
    /* PyTorch refuses that, too */
    char *open_bracket = cws_torch_allocator_conf("a:[1,2,backend:native", &changed);
    assert_string_equal(open_bracket, "a:[1,2,backend:native," OURS);
    free(open_bracket);
}

static void both_names_are_set_and_a_change_is_said(void **state)
{
    (void)state;
    char text[256] = "";
    int out = dup(2), ends[2];
    assert_int_equal(pipe(ends), 0);
    unsetenv("PYTORCH_ALLOC_CONF");
    setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native,max_split_size_mb:64", 1);
    dup2(ends[1], 2);
    int rc = cws_torch_allocator_choose();
    dup2(out, 2);
    close(out);
    close(ends[1]);
    assert_int_equal(rc, 0);
    assert_true(read(ends[0], text, sizeof text - 1) > 0);
    close(ends[0]);
    assert_string_equal(getenv("PYTORCH_ALLOC_CONF"), OURS);
    assert_string_equal(getenv("PYTORCH_CUDA_ALLOC_CONF"), "max_split_size_mb:64," OURS);
    assert_non_null(
        strstr(text, "PYTORCH_CUDA_ALLOC_CONF=backend:native,max_split_size_mb:64 is now max_split_size_mb:64," OURS));
    assert_true(strchr(text, '\n') == text + strlen(text) - 1); /* one line */
}

static void no_device_is_visible_where_the_user_says_so(void **state)
{
    static const char *const none[] = {"", " ", "-1", " -1 "};
    (void)state;
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        setenv("CUDA_VISIBLE_DEVICES", none[i], 1);
        assert_false(cws_torch_may_see_gpu());
    }
    unsetenv("CUDA_VISIBLE_DEVICES");
    assert_int_equal(cws_torch_may_see_gpu(), access("/dev/nvidiactl", F_OK) == 0 ||
                                                  access("/dev/nvidia0", F_OK) == 0 || access("/dev/dxg", F_OK) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_conflicting_keys_are_rewritten),
        cmocka_unit_test(both_names_are_set_and_a_change_is_said),
        cmocka_unit_test(no_device_is_visible_where_the_user_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
