/* The coder of this bundle: canonical Huffman with the codes of offramp_model.c. */
#include "bytes.h"
#include "coder.h"
#include "offramp_layers.h"
#include "offramp_model.h"
#include "offramp_tables.h"

size_t offramp_encode(uint8_t *arena)
{
    const coder_shape shape = {OFFRAMP_CODED_CHANNELS, OFFRAMP_CODED_HEIGHT * OFFRAMP_CODED_WIDTH, OFFRAMP_LANES};
    const uint32_t width = length_width(&shape);
    const uint8_t *symbols = arena + OFFRAMP_SYMBOLS_AT;
    uint8_t *payload = arena + OFFRAMP_PAYLOAD_AT, *end = payload + OFFRAMP_SYMBOLS;
    uint8_t *out = payload + (size_t)width * (shape.lanes - 1u);
    for (uint32_t lane = 0; lane < shape.lanes; lane++) {
        uint8_t *start = out;
        uint32_t bits = 0, count = 0; /* the low `count` < 8 of `bits` are not written yet */
        for (uint32_t c = lane_start(&shape, lane); c < lane_start(&shape, lane + 1); c++) {
            const size_t table = (size_t)offramp_table_of_channel[c] * SYMBOLS;
            for (uint32_t i = 0; i < shape.plane; i++) {
                const uint8_t symbol = *symbols++, length = offramp_lengths[table + symbol];
                bits = bits << length | offramp_codes[table + symbol];
                for (count += length; count >= 8; count -= 8) {
                    if (out >= end)
                        return 0;
                    *out++ = (uint8_t)(bits >> (count - 8));
                }
            }
        }
        if (count) {
            if (out >= end)
                return 0;
            *out++ = (uint8_t)(bits << (8 - count));
        }
        if (lane + 1 < shape.lanes)
            store_length(payload + (size_t)width * lane, width, (size_t)(out - start));
    }
    const size_t size = (size_t)(out - payload);
    return size < OFFRAMP_SYMBOLS ? size : 0;
}
