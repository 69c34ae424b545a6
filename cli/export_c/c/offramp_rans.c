/* The coder of this bundle: rANS with the tables of offramp_model.c. */
#include "offramp_layers.h"
#include "offramp_model.h"
#include "offramp_tables.h"

size_t offramp_encode(uint8_t *arena)
{
    rans_coder coder = {
        .shape = {OFFRAMP_CODED_CHANNELS, OFFRAMP_CODED_HEIGHT * OFFRAMP_CODED_WIDTH, OFFRAMP_LANES},
        .most = OFFRAMP_SYMBOLS - 1,
        .tokens = arena + OFFRAMP_TOKENS_AT,
        .literals = arena + OFFRAMP_LITERALS_AT,
        .words = (uint16_t *)(void *)(arena + OFFRAMP_WORDS_AT),
        .of_channel = offramp_table_of_channel,
    };
    size_t size = rans_encode(&coder, arena + OFFRAMP_SYMBOLS_AT, arena + OFFRAMP_PAYLOAD_AT);
    return size < OFFRAMP_SYMBOLS ? size : 0;
}
