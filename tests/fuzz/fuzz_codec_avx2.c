#define FUZZ_DECODER "avx2"
#include "fuzz_codec.h"
