/* codec_encode.h - what the plan and the encoder must agree on. */
#ifndef CWS_CODEC_ENCODE_H
#define CWS_CODEC_ENCODE_H
#include "codec.h"

#define CWS_ZSTD_LEVEL 3
#define CWS_QUANT_ROW_MIN 32u    /* shorter rows are not quantised */
#define CWS_QUANT_ELEMS_MIN 4096u /* nor tensors that the fixed costs would dominate */

#endif
