#include <cuda.h>
#include <stddef.h>
struct cuda_abi_row {
    const char *name;
    unsigned long long value;
};
#include "cuda_abi_rows.h"
const struct cuda_abi_row *const cuda_abi_theirs = ROWS;
