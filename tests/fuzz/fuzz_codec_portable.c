#define FUZZ_DECODER "portable"
#include "fuzz_codec.h"
