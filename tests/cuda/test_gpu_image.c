/* The kernels that nvcc built: for which devices the image has code, and that a driver for each takes it. */
#include "tests/standin/standin.h"
#include "tests/support/fatbin.h"
#include "store/cuda/decoder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* The capabilities of the parts of one kind, as the build tells them. */
static void parts_of(unsigned kind, char *out, size_t room)
{
    struct fatbin_part part;
    size_t used = 0;
    out[0] = '\0';
    for (unsigned arch = 0; arch < 1000; arch++) /* lowest first */
        for (uint64_t at = 0; fatbin_next(cws_gpu_image(), &at, &part);)
            if (part.kind == kind && part.arch == arch && used < room && part.bytes > 10000)
                used += (size_t)snprintf(out + used, room - used, "%s%u.%u", used ? " " : "", arch / 10, arch % 10);
}

static void the_image_holds_what_the_build_tells(void **state)
{
    (void)state;
    char text[256];
    parts_of(FATBIN_ELF, text, sizeof text);
    assert_string_equal(text, cws_gpu_image_arches());
    parts_of(FATBIN_PTX, text, sizeof text);
    assert_string_equal(text, cws_gpu_image_ptx());
    assert_true(*text);
}

/* Of those that the build was asked for. */
static void nothing_that_nvcc_knows_is_missing(void **state)
{
    (void)state;
    char line[64], one[16];
    unsigned known = 0;
    FILE *list = popen(TEST_NVCC " --list-gpu-code", "r");
    assert_non_null(list);
    while (fgets(line, sizeof line, list)) {
        unsigned arch;
        if (sscanf(line, "sm_%u", &arch) != 1)
            continue;
        snprintf(one, sizeof one, " %u ", arch);
        if (!strstr(" " TEST_ARCHES " ", one))
            continue;
        known++;
        struct fatbin_part part = {0};
        bool found = false;
        for (uint64_t at = 0; fatbin_next(cws_gpu_image(), &at, &part);)
            found = found || (part.kind == FATBIN_ELF && part.arch == arch);
        if (!found)
            fail_msg("nvcc knows sm_%u; the image has no code for it", arch);
    }
    assert_int_equal(pclose(list), 0);
    assert_true(known > 0);
}

static unsigned compilations;
static void hear(const char *line)
{
    (void)line;
    compilations++;
}

/* On the stand-in driver, which takes a fatbin only for a device that it has something for. */
static int create_on(int major, int minor, struct cws_error *err)
{
    struct cws_driver cu;
    struct cws_gpu_decoder *decoder = NULL;
    CUcontext context;
    char capability[16];
    snprintf(capability, sizeof capability, "%d.%d", major, minor);
    setenv("STANDIN_CAPABILITY", capability, 1);
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    standin_reset((size_t)64 << 20);
    assert_int_equal(cws_driver_fill(&cu, standin_resolve, NULL, err) || cu.init(0) || cu.primary_retain(&context, 0) ||
                         cu.context_set(context),
                     0);
    compilations = 0;
    int rc = cws_gpu_decoder_create(&cu, hear, &decoder, err);
    cws_gpu_decoder_destroy(decoder);
    cu.primary_release(0);
    unsetenv("STANDIN_CAPABILITY");
    return rc;
}

static void every_device_of_the_list_loads_it(void **state)
{
    (void)state;
    struct cws_error err = {0};
    char *arches = strdup(cws_gpu_image_arches()), *rest = arches;
    for (char *one; (one = strsep(&rest, " ")) && *one;) {
        int major = 0, minor = 0;
        assert_int_equal(sscanf(one, "%d.%d", &major, &minor), 2);
        if (create_on(major, minor, &err) != 0 || compilations)
            fail_msg("%d.%d: %s, %u compilations", major, minor, err.message, compilations);
        /* and those between and after them, by code of the same major or by PTX */
        if (create_on(major, minor + 1, &err) != 0 || create_on(major + 1, 0, &err) != 0 || compilations)
            fail_msg("after %d.%d: %s, %u compilations", major, minor, err.message, compilations);
    }
    free(arches);
}

static void an_old_device_is_refused_in_one_line(void **state)
{
    (void)state;
    static const int old[][2] = {{7, 2}, {7, 0}, {6, 1}, {5, 0}};
    for (unsigned i = 0; i < sizeof old / sizeof *old; i++) {
        struct cws_error err = {0};
        char want[128];
        assert_int_equal(create_on(old[i][0], old[i][1], &err), CWS_E_UNSUPPORTED);
        assert_int_equal(compilations, 0);
        snprintf(want, sizeof want, "the GPU has compute capability %d.%d; paging needs 7.5 or later", old[i][0],
                 old[i][1]);
        assert_string_equal(err.message, want);
    }
}

int main(void)
{
    const struct CMUnitTest built[] = {
        cmocka_unit_test(the_image_holds_what_the_build_tells),
        cmocka_unit_test(nothing_that_nvcc_knows_is_missing),
        cmocka_unit_test(every_device_of_the_list_loads_it),
    };
    const struct CMUnitTest any[] = {
        cmocka_unit_test(an_old_device_is_refused_in_one_line),
    };
    int failed = cws_gpu_image() ? cmocka_run_group_tests(built, NULL, NULL) : 0;
    return failed + cmocka_run_group_tests(any, NULL, NULL);
}
