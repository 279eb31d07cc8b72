#define FUZZ_DECODER "avx512"
#include "fuzz_codec.h"
