/* Is shim/cuda/types.h what cuda.h says, and shim/cuda/hooks.def? Built where there is a CUDA toolkit of version 13. */
#include "shim/cuda/types.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

struct cuda_abi_row {
    const char *name;
    unsigned long long value;
};
#include "cuda_hooks_abi_rows.h"
extern const struct cuda_abi_row *const cuda_hooks_abi_theirs, cuda_hooks_prototypes[], cuda_hooks_alike[];

static void test_layouts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        assert_string_equal(ROWS[i].name, cuda_hooks_abi_theirs[i].name);
        if (ROWS[i].value != cuda_hooks_abi_theirs[i].value)
            fail_msg("%s: %llu here, %llu in cuda.h", ROWS[i].name, ROWS[i].value, cuda_hooks_abi_theirs[i].value);
    }
}

/* Each function of the list has the prototype of cuda.h, or one that is passed alike and written down. */
static void test_prototypes(void **state)
{
    (void)state;
    size_t count = 0;
    for (const struct cuda_abi_row *p = cuda_hooks_prototypes; p->name; p++, count++) {
        const struct cuda_abi_row *a = cuda_hooks_alike;
        while (a->name && strcmp(a->name, p->name) != 0)
            a++;
        if (!p->value && !(a->name && a->value))
            fail_msg("%s is not declared so in cuda.h", p->name);
    }
    assert_true(count > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts), cmocka_unit_test(test_prototypes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
