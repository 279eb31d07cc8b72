/* portable.c - the decoder in plain C, for every machine. */
#include "lanes.h"

static bool always(void) { return true; }

const struct cws_decoder_ops cws_decoder_portable = {
    .variant = {"portable", always},
    .lanes = decode_lanes,
    .split = tile_split,
    .linear = tile_linear,
    .quant = tile_quant,
};
