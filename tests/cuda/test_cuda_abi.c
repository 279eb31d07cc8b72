/* Is store/base/cuda_abi.h what cuda.h says? Built where there is a CUDA toolkit. */
#include "store/base/driver.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct cuda_abi_row {
    const char *name;
    unsigned long long value;
};
#include "cuda_abi_rows.h"
extern const struct cuda_abi_row *const cuda_abi_theirs;

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        assert_string_equal(ROWS[i].name, cuda_abi_theirs[i].name);
        if (ROWS[i].value != cuda_abi_theirs[i].value)
            fail_msg("%s: %llu here, %llu in cuda.h", ROWS[i].name, ROWS[i].value, cuda_abi_theirs[i].value);
    }
}

static void *no_symbol(void *arg, const char *symbol) { return strcmp(symbol, arg) == 0 ? NULL : (void *)1; }

static void test_missing_symbol_is_named(void **state)
{
    struct cws_driver driver;
    struct cws_error err = {0};
    (void)state;
    char name[] = "cuMemMap";
    assert_int_equal(cws_driver_fill(&driver, no_symbol, name, &err), CWS_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "cuMemMap"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_missing_symbol_is_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
