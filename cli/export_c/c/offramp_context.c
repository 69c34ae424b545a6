/* The coder of this bundle: rANS with the context model of offramp_model.c. */
#include "offramp_layers.h"
#include "offramp_model.h"
#include "offramp_tables.h"

#include <string.h>

size_t offramp_encode(uint8_t *arena)
{
    context_coder coder = {
        .channels = OFFRAMP_CODED_CHANNELS,
        .height = OFFRAMP_CODED_HEIGHT,
        .width = OFFRAMP_CODED_WIDTH,
        .inputs = 2 * (AROUND + 1) * OFFRAMP_CODED_CHANNELS,
        .reach = OFFRAMP_REACH,
        .mode = offramp_mode,
        .rows = offramp_rows,
        .columns = offramp_columns,
        .base = offramp_base,
        .weights = offramp_weights,
        .near = (int16_t *)(void *)(arena + OFFRAMP_NEAR_AT),
        .around = (int16_t *)(void *)(arena + OFFRAMP_AROUND_AT),
        .steps = (step *)(void *)(arena + OFFRAMP_CODED_STEPS_AT),
        .words = (uint16_t *)(void *)(arena + OFFRAMP_WORDS_AT),
    };
    memset(coder.near, 0,
           sizeof *coder.near * (OFFRAMP_CODED_HEIGHT + 1) * (OFFRAMP_CODED_WIDTH + 2) * OFFRAMP_CODED_CHANNELS);
    size_t size = context_encode(&coder, arena + OFFRAMP_SYMBOLS_AT, arena + OFFRAMP_PAYLOAD_AT);
    return size < OFFRAMP_SYMBOLS ? size : 0;
}
