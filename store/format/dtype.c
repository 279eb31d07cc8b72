/* dtype.c - the element types of safetensors files: names, sizes, and what the codecs take for one element. */
#include "dtype.h"
#include "store/base/error.h"

#include <string.h>

/* What a type's bits are, which decides the codec that is tried. */
enum kind {
    /* integers and what is packed tightly: zstd sees more in them than a code for single bytes */
    WHOLE = 0,
    FLOAT, /* split: the byte with the exponent, or of one byte all of it, is coded */
};

static const struct {
    char name[12];
    uint8_t bits; /* of an element; 0: not known */
    uint8_t unit; /* bytes */
    uint8_t kind;
} dtypes[CWS_DTYPE_COUNT] = {
    [CWS_BOOL] = {"BOOL", 8, 1, WHOLE},
    [CWS_U8] = {"U8", 8, 1, WHOLE},
    [CWS_I8] = {"I8", 8, 1, WHOLE},
    [CWS_U16] = {"U16", 16, 2, WHOLE},
    [CWS_I16] = {"I16", 16, 2, WHOLE},
    [CWS_U32] = {"U32", 32, 4, WHOLE},
    [CWS_I32] = {"I32", 32, 4, WHOLE},
    [CWS_U64] = {"U64", 64, 8, WHOLE},
    [CWS_I64] = {"I64", 64, 8, WHOLE},
    [CWS_F8_E4M3] = {"F8_E4M3", 8, 1, FLOAT},
    [CWS_F8_E5M2] = {"F8_E5M2", 8, 1, FLOAT},
    [CWS_F16] = {"F16", 16, 2, FLOAT},
    [CWS_BF16] = {"BF16", 16, 2, FLOAT},
    [CWS_F32] = {"F32", 32, 4, FLOAT},
    [CWS_F64] = {"F64", 64, 8, FLOAT},
    [CWS_F8_E8M0] = {"F8_E8M0", 8, 1, FLOAT}, /* scales: nothing but an exponent */
    [CWS_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8, 1, FLOAT},
    [CWS_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8, 1, FLOAT},
    [CWS_F4] = {"F4", 4, 1, FLOAT},           /* two to a byte: their pairs are coded */
    [CWS_F6_E2M3] = {"F6_E2M3", 6, 1, WHOLE}, /* four to three bytes */
    [CWS_F6_E3M2] = {"F6_E3M2", 6, 1, WHOLE},
    [CWS_C64] = {"C64", 64, 4, FLOAT}, /* pairs of F32 */
    [CWS_OTHER] = {"?", 0, 1, WHOLE},
};

const char *cws_dtype_name(enum cws_dtype dtype)
{
    return (unsigned)dtype < CWS_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

/* Letters, digits and _: such a name can be shown, and written into a header, as it is. */
static bool may_be_a_type(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'))
            return false;
    }
    return len > 0 && len <= CWS_DTYPE_NAME_MAX;
}

int cws_dtype_parse(const char *name, size_t len, enum cws_dtype *out)
{
    for (unsigned i = 0; i < CWS_OTHER; i++)
        if (strlen(dtypes[i].name) == len && memcmp(dtypes[i].name, name, len) == 0) {
            *out = (enum cws_dtype)i;
            return 0;
        }
    if (!may_be_a_type(name, len))
        return CWS_E_INPUT;
    *out = CWS_OTHER;
    return 0;
}

unsigned cws_dtype_bits(enum cws_dtype dtype) { return (unsigned)dtype < CWS_DTYPE_COUNT ? dtypes[dtype].bits : 0; }

unsigned cws_dtype_unit(enum cws_dtype dtype) { return (unsigned)dtype < CWS_DTYPE_COUNT ? dtypes[dtype].unit : 0; }

bool cws_dtype_size(enum cws_dtype dtype, uint64_t elems, uint64_t *out_bytes)
{
    uint64_t bits, each = cws_dtype_bits(dtype);
    if (each % 8 == 0)
        return each && !__builtin_mul_overflow(elems, each / 8, out_bytes);
    if (__builtin_mul_overflow(elems, each, &bits) || bits % 8)
        return false;
    *out_bytes = bits / 8;
    return true;
}

bool cws_dtype_is_float(enum cws_dtype dtype)
{
    return (unsigned)dtype < CWS_DTYPE_COUNT && dtypes[dtype].kind == FLOAT;
}

uint8_t cws_dtype_code(enum cws_dtype dtype) { return dtype == CWS_OTHER ? CWS_DTYPE_CODE_OTHER : (uint8_t)dtype; }
