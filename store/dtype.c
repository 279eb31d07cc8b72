#include "codec.h"

#include <string.h>

static const struct {
    char name[8];
    uint8_t bytes;
    uint8_t is_float;
} dtypes[CWS_DTYPE_COUNT] = {
    [CWS_BOOL] = {"BOOL", 1, 0},       [CWS_U8] = {"U8", 1, 0},           [CWS_I8] = {"I8", 1, 0},
    [CWS_U16] = {"U16", 2, 0},         [CWS_I16] = {"I16", 2, 0},         [CWS_U32] = {"U32", 4, 0},
    [CWS_I32] = {"I32", 4, 0},         [CWS_U64] = {"U64", 8, 0},         [CWS_I64] = {"I64", 8, 0},
    [CWS_F8_E4M3] = {"F8_E4M3", 1, 1}, [CWS_F8_E5M2] = {"F8_E5M2", 1, 1}, [CWS_F16] = {"F16", 2, 1},
    [CWS_BF16] = {"BF16", 2, 1},       [CWS_F32] = {"F32", 4, 1},         [CWS_F64] = {"F64", 8, 1},
};

const char *cws_dtype_name(enum cws_dtype dtype)
{
    return (unsigned)dtype < CWS_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

int cws_dtype_parse(const char *name, size_t len, enum cws_dtype *out)
{
    for (unsigned i = 0; i < CWS_DTYPE_COUNT; i++)
        if (strlen(dtypes[i].name) == len && memcmp(dtypes[i].name, name, len) == 0) {
            *out = (enum cws_dtype)i;
            return 0;
        }
    return CWS_E_INPUT;
}

unsigned cws_dtype_bytes(enum cws_dtype dtype)
{
    return (unsigned)dtype < CWS_DTYPE_COUNT ? dtypes[dtype].bytes : 0;
}

bool cws_dtype_is_float(enum cws_dtype dtype)
{
    return (unsigned)dtype < CWS_DTYPE_COUNT && dtypes[dtype].is_float;
}
