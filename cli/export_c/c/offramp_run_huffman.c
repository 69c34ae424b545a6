/* The coder of this bundle: canonical Huffman over tokens of runs, with the codes of offramp_model.c.
 *
 * docs/reference/codec.md has the layout; the product's own kernel needs its scratch memory for speed alone. */
#include "bytes.h"
#include "coder.h"
#include "offramp_layers.h"
#include "offramp_model.h"
#include "offramp_tables.h"

/* Bits on their way out: the low `count` < 8 of `bits` are not written yet. Nothing is written from `end` on. */
typedef struct {
    uint8_t *out, *end;
    uint32_t bits, count;
} writer;

/* At most 16 bits. */
static void put(writer *w, uint32_t code, uint32_t length)
{
    w->bits = w->bits << length | code;
    for (w->count += length; w->count >= 8; w->count -= 8) {
        if (w->out < w->end)
            *w->out = (uint8_t)(w->bits >> (w->count - 8));
        w->out++;
    }
}

static void put_cell(writer *w, const offramp_run_table *t, uint32_t cell)
{
    put(w, t->codes[cell], t->lengths[cell]);
}

/* Exponential-Golomb code of a folded symbol behind its escape, at most 16 bits. */
static void put_literal(writer *w, uint32_t symbol, uint32_t order)
{
    const uint32_t value = symbol - 1 + (1u << order);
    uint32_t length = 0;
    while (value >> length)
        length++;
    put(w, value, 2 * length - order - 1);
}

/* One channel of a segment; `run`: modes in front of its first symbol that have no token yet. */
static uint32_t put_plane(writer *w, const offramp_run_table *t, const uint8_t *symbols, size_t n, uint8_t mode,
                          uint32_t run)
{
    for (size_t i = 0; i < n; i++) {
        const uint8_t distance = (uint8_t)(symbols[i] - mode);
        const uint32_t symbol = (uint8_t)(distance << 1 ^ (distance & 128 ? 255 : 0)), row = run * t->columns;
        if (t->runs == 1) {
            put_cell(w, t, symbol);
        } else if (!symbol) {
            if (++run == t->runs) {
                put_cell(w, t, t->runs * t->columns);
                run = 0;
            }
        } else {
            if (symbol < t->columns && t->lengths[row + symbol]) {
                put_cell(w, t, row + symbol);
            } else {
                put_cell(w, t, row);
                put_literal(w, symbol, t->order);
            }
            run = 0;
        }
    }
    return run;
}

size_t offramp_encode(uint8_t *arena)
{
    const coder_shape shape = {OFFRAMP_CODED_CHANNELS, OFFRAMP_CODED_HEIGHT * OFFRAMP_CODED_WIDTH, OFFRAMP_LANES};
    const uint32_t width = length_width(&shape);
    uint8_t *payload = arena + OFFRAMP_PAYLOAD_AT;
    writer w = {payload + (size_t)width * (shape.lanes - 1u), payload + OFFRAMP_SYMBOLS, 0, 0};
    for (uint32_t lane = 0; lane < shape.lanes; lane++) {
        const uint8_t *start = w.out;
        const offramp_run_table *t = NULL;
        uint32_t run = 0;
        /* Channels in the order of their tables, dealt out to the lanes. */
        for (uint32_t i = lane; i < shape.channels; i += shape.lanes) {
            const uint32_t c = offramp_channel_order[i];
            const offramp_run_table *own = &offramp_run_tables[offramp_table_of_channel[c]];
            if (t && run && own != t) {
                put_cell(&w, t, t->runs * t->columns);
                run = 0;
            }
            t = own;
            run = put_plane(&w, t, arena + OFFRAMP_SYMBOLS_AT + (size_t)c * shape.plane, shape.plane,
                            offramp_mode_of_channel[c], run);
        }
        if (t && run)
            put_cell(&w, t, t->runs * t->columns);
        if (w.count)
            put(&w, 0, 8 - w.count);
        if (lane + 1 < shape.lanes)
            store_length(payload + (size_t)width * lane, width, (size_t)(w.out - start));
    }
    const size_t size = (size_t)(w.out - payload);
    return size < OFFRAMP_SYMBOLS ? size : 0;
}
