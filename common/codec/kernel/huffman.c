/* Canonical Huffman code, one table a channel; see coder.h for the rules. */
#include "bytes.h"
#include "coder.h"

#include <stdlib.h>
#include <string.h>

enum {
    PRIMARY_BITS = 11, /* codes up to this length are decoded by look-up */
    LOOKUPS = 5,       /* of PRIMARY_BITS each, out of the 56 bits of a window */
    AT_ONCE = 3,       /* symbols that one look-up may give */
    SLACK = 16,
};

typedef struct {
    /* For each value of the next PRIMARY_BITS bits: up to three symbols whose codes are whole in them, from
     * the low byte up; then their bits in all (6 bits) and their number (2 bits). 0: a longer code. */
    uint32_t several[1 << PRIMARY_BITS];
    uint16_t primary[1 << PRIMARY_BITS]; /* the first of them alone: length << 8 | symbol */
    uint32_t code[SYMBOLS];              /* code << 4 | length */
    uint32_t limit[MAX_CODE_LENGTH + 2]; /* first 16-bit window beyond the codes of this length */
    uint32_t first[MAX_CODE_LENGTH + 2]; /* first code of this length, and its place in `sorted` */
    uint32_t place[MAX_CODE_LENGTH + 2];
    uint8_t sorted[SYMBOLS];
} table;

struct huffman_coder {
    coder_shape shape;
    size_t scratch_bytes;
    uint8_t *scratch; /* a payload, and room for windows past its end: what they show there is not accepted */
    table *tables;
    const table **of_channel;
};

static void fill_table(table *t, const uint8_t *lengths)
{
    uint32_t code = 0, place = 0;
    memset(t->primary, 0, sizeof t->primary);
    for (uint32_t length = 1; length <= MAX_CODE_LENGTH; length++) {
        code <<= 1;
        t->first[length] = code;
        t->place[length] = place;
        for (uint32_t symbol = 0; symbol < SYMBOLS; symbol++) {
            if (lengths[symbol] != length)
                continue;
            t->sorted[place++] = (uint8_t)symbol;
            t->code[symbol] = code << 4 | length;
            if (length <= PRIMARY_BITS) {
                uint32_t start = code << (PRIMARY_BITS - length), end = (code + 1) << (PRIMARY_BITS - length);
                for (uint32_t i = start; i < end; i++)
                    t->primary[i] = (uint16_t)(length << 8 | symbol);
            }
            code++;
        }
        t->limit[length] = code << (16 - length);
    }
    for (uint32_t i = 0; i < 1 << PRIMARY_BITS; i++) {
        uint32_t bits = 0, count = 0, symbols = 0, rest = i;
        while (count < AT_ONCE) {
            uint32_t entry = t->primary[rest], length = entry >> 8;
            if (!entry || bits + length > PRIMARY_BITS)
                break;
            symbols |= (entry & 255) << (8 * count++);
            bits += length;
            rest = (rest << length) & ((1 << PRIMARY_BITS) - 1);
        }
        t->several[i] = count << 30 | bits << 24 | symbols;
    }
}

/* Whether the lengths are those of a complete code; memory depends on it. */
static int is_valid(const uint8_t *lengths)
{
    uint32_t kraft = 0;
    for (uint32_t s = 0; s < SYMBOLS; s++) {
        if (lengths[s] < 1 || lengths[s] > MAX_CODE_LENGTH)
            return 0;
        kraft += 1u << (MAX_CODE_LENGTH - lengths[s]);
    }
    return kraft == 1u << MAX_CODE_LENGTH;
}

huffman_coder *huffman_create(coder_shape shape, const uint8_t *lengths, uint32_t tables,
                              const uint16_t *table_of_channel)
{
    huffman_coder *coder = calloc(1, sizeof *coder);
    if (!coder)
        return NULL;
    for (uint32_t i = 0; i < tables; i++)
        if (!is_valid(lengths + (size_t)i * SYMBOLS)) {
            free(coder);
            return NULL;
        }
    coder->shape = shape;
    /* A lane that runs out is noticed at the end of a channel: its window may be that far behind. */
    coder->scratch_bytes = (size_t)shape.channels * shape.plane + (size_t)shape.plane * 2 + SLACK;
    coder->scratch = calloc(1, coder->scratch_bytes);
    coder->tables = malloc(tables * sizeof *coder->tables);
    coder->of_channel = malloc(shape.channels * sizeof *coder->of_channel);
    if (!coder->scratch || !coder->tables || !coder->of_channel) {
        huffman_destroy(coder);
        return NULL;
    }
    for (uint32_t i = 0; i < tables; i++)
        fill_table(&coder->tables[i], lengths + (size_t)i * SYMBOLS);
    for (uint32_t i = 0; i < shape.channels; i++)
        coder->of_channel[i] = &coder->tables[table_of_channel[i]];
    return coder;
}

void huffman_destroy(huffman_coder *coder)
{
    if (!coder)
        return;
    free(coder->scratch);
    free(coder->tables);
    free(coder->of_channel);
    free(coder);
}

size_t huffman_bound(const huffman_coder *coder)
{
    size_t symbols = (size_t)coder->shape.channels * coder->shape.plane;
    return symbols * 2 + (size_t)coder->shape.lanes * 16;
}

/* Append the codes of one channel; `acc` holds `*count` < 8 bits that are not written yet. */
ALWAYS_INLINE uint8_t *encode_plane(const table *t, const uint8_t *symbols, size_t n, uint8_t *out,
                                    uint64_t *acc_, uint32_t *count_)
{
    uint64_t acc = *acc_;
    uint32_t count = *count_;
    size_t i = 0;
    /* 7 bits and three codes of at most 15 fit 64 bits. */
    for (; i + 3 <= n; i += 3) {
        uint32_t a = t->code[symbols[i]], b = t->code[symbols[i + 1]], c = t->code[symbols[i + 2]];
        acc = acc << (a & 15) | a >> 4;
        acc = acc << (b & 15) | b >> 4;
        acc = acc << (c & 15) | c >> 4;
        count += (a & 15) + (b & 15) + (c & 15);
        store_be64(out, acc << (64 - count));
        out += count >> 3;
        count &= 7;
    }
    for (; i < n; i++) {
        uint32_t a = t->code[symbols[i]];
        acc = acc << (a & 15) | a >> 4;
        count += a & 15;
        store_be64(out, acc << (64 - count));
        out += count >> 3;
        count &= 7;
    }
    *acc_ = acc;
    *count_ = count;
    return out;
}

ALWAYS_INLINE size_t encode(const huffman_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    const coder_shape *shape = &coder->shape;
    uint32_t width = length_width(shape);
    uint8_t *out = payload + (size_t)width * (shape->lanes - 1);
    for (uint32_t lane = 0; lane < shape->lanes; lane++) {
        uint8_t *start = out;
        uint64_t acc = 0;
        uint32_t count = 0;
        for (uint32_t c = lane_start(shape, lane); c < lane_start(shape, lane + 1); c++)
            out = encode_plane(coder->of_channel[c], symbols + (size_t)c * shape->plane, shape->plane, out,
                               &acc, &count);
        out += count > 0; /* the last byte is there, padded with zeros */
        if (lane + 1 < shape->lanes)
            store_length(payload + (size_t)width * lane, width, (size_t)(out - start));
    }
    return (size_t)(out - payload);
}

TARGET_X86_64_V3 static size_t encode_v3(const huffman_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return encode(coder, symbols, payload);
}

size_t huffman_encode(const huffman_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return HAVE_X86_64_V3 ? encode_v3(coder, symbols, payload) : encode(coder, symbols, payload);
}

/* A window onto a lane: its next bits from the top, and a 1 behind the last of them. The number of zeros
 * below that 1 is the number of bits taken since the window was opened. */
typedef struct {
    uint64_t bits;
    const uint8_t *at;
} window;

ALWAYS_INLINE void open_window(window *w)
{
    uint32_t taken = count_trailing_zeros(w->bits);
    w->at += taken >> 3;
    w->bits = (load_be64(w->at) | 1) << (taken & 7);
}

/* A code longer than PRIMARY_BITS. */
static uint8_t decode_long(const table *t, window *w)
{
    uint32_t head = (uint32_t)(w->bits >> 48), length = PRIMARY_BITS + 1;
    while (length < MAX_CODE_LENGTH && head >= t->limit[length])
        length++;
    w->bits <<= length;
    return t->sorted[(t->place[length] + (head >> (16 - length)) - t->first[length]) & 255];
}

/* One symbol, whatever its code's length. */
static uint8_t decode_one(const table *t, window *w)
{
    open_window(w);
    uint32_t entry = t->primary[w->bits >> (64 - PRIMARY_BITS)];
    if (!entry)
        return decode_long(t, w);
    w->bits <<= entry >> 8;
    return (uint8_t)entry;
}

/* One lane on its way through its channels. */
typedef struct {
    window w;
    const table *t;
    uint8_t *out, *limit; /* where the channel's next symbol goes, and where the channel ends */
    const uint8_t *end;   /* of the lane's payload */
    uint32_t channel, stop;
} lane_state;

ALWAYS_INLINE void open_channel(lane_state *s, const huffman_coder *coder, uint8_t *symbols)
{
    s->t = coder->of_channel[s->channel];
    s->out = symbols + (size_t)s->channel * coder->shape.plane;
    s->limit = s->out + coder->shape.plane;
}

/* One look-up: up to three symbols, of which four bytes are written; at a longer code, none and no bits. */
#define TAKE_SEVERAL(bits, out, several)                                                                       \
    do {                                                                                                       \
        uint32_t entry = (several)[(bits) >> (64 - PRIMARY_BITS)];                                             \
        store_le32((out), entry);                                                                              \
        (bits) <<= (entry >> 24) & 63;                                                                         \
        (out) += entry >> 30;                                                                                  \
    } while (0)

/* Past the code at which look-ups stopped: it is longer than PRIMARY_BITS, or the window is used up. */
ALWAYS_INLINE void take_long(lane_state *s)
{
    if (UNLIKELY(!s->t->several[s->w.bits >> (64 - PRIMARY_BITS)]))
        *s->out++ = decode_one(s->t, &s->w);
}

/* Whether LOOKUPS look-ups stay inside the channel, the bytes written too many included. */
ALWAYS_INLINE int has_room(const lane_state *s)
{
    return s->limit - s->out >= LOOKUPS * AT_ONCE + 1;
}

/* The end of one channel, and on to the next; whether there is one and the payload has not run out. */
static int finish_channel(lane_state *s, const huffman_coder *coder, uint8_t *symbols)
{
    while (s->out < s->limit) {
        open_window(&s->w);
        for (int i = 0; i < LOOKUPS && s->limit - s->out > AT_ONCE; i++)
            TAKE_SEVERAL(s->w.bits, s->out, s->t->several);
        if (s->out < s->limit)
            take_long(s);
        for (int i = 0; i < AT_ONCE && s->out < s->limit && s->limit - s->out <= AT_ONCE; i++) {
            *s->out++ = decode_one(s->t, &s->w);
        }
    }
    if (s->w.at > s->end || ++s->channel == s->stop)
        return 0;
    open_channel(s, coder, symbols);
    return 1;
}

/* Four lanes side by side: one lane's look-ups wait for one another, four lanes' do not. */
ALWAYS_INLINE void decode_four(lane_state *lane, const huffman_coder *coder, uint8_t *symbols)
{
    lane_state a = lane[0], b = lane[1], c = lane[2], d = lane[3];
    for (;;) {
        if (!has_room(&a) && !finish_channel(&a, coder, symbols))
            break;
        if (!has_room(&b) && !finish_channel(&b, coder, symbols))
            break;
        if (!has_room(&c) && !finish_channel(&c, coder, symbols))
            break;
        if (!has_room(&d) && !finish_channel(&d, coder, symbols))
            break;
        if (UNLIKELY(!(has_room(&a) && has_room(&b) && has_room(&c) && has_room(&d))))
            continue; /* channels too small for the loop below */
        open_window(&a.w);
        open_window(&b.w);
        open_window(&c.w);
        open_window(&d.w);
        /* In registers: in the structures, each look-up would wait for a store. */
        uint64_t bits_a = a.w.bits, bits_b = b.w.bits, bits_c = c.w.bits, bits_d = d.w.bits;
        uint8_t *out_a = a.out, *out_b = b.out, *out_c = c.out, *out_d = d.out;
        const uint32_t *several_a = a.t->several, *several_b = b.t->several;
        const uint32_t *several_c = c.t->several, *several_d = d.t->several;
        for (int i = 0; i < LOOKUPS; i++) {
            TAKE_SEVERAL(bits_a, out_a, several_a);
            TAKE_SEVERAL(bits_b, out_b, several_b);
            TAKE_SEVERAL(bits_c, out_c, several_c);
            TAKE_SEVERAL(bits_d, out_d, several_d);
        }
        a.w.bits = bits_a, b.w.bits = bits_b, c.w.bits = bits_c, d.w.bits = bits_d;
        a.out = out_a, b.out = out_b, c.out = out_c, d.out = out_d;
        take_long(&a);
        take_long(&b);
        take_long(&c);
        take_long(&d);
    }
    lane[0] = a, lane[1] = b, lane[2] = c, lane[3] = d;
}

ALWAYS_INLINE void decode_rest(lane_state *s, const huffman_coder *coder, uint8_t *symbols)
{
    if (s->channel == s->stop || s->w.at > s->end)
        return;
    do {
        while (has_room(s)) {
            open_window(&s->w);
            for (int i = 0; i < LOOKUPS; i++)
                TAKE_SEVERAL(s->w.bits, s->out, s->t->several);
            take_long(s);
        }
    } while (finish_channel(s, coder, symbols));
}

ALWAYS_INLINE enum coder_error decode(const huffman_coder *coder, const uint8_t *payload, size_t size,
                                      uint8_t *symbols)
{
    const coder_shape *shape = &coder->shape;
    uint32_t width = length_width(shape), lanes = shape->lanes;
    size_t header = (size_t)width * (lanes - 1);
    if (size < header)
        return CODER_SHORT;
    if (size > (size_t)shape->channels * shape->plane)
        return CODER_LONG;
    memcpy(coder->scratch, payload, size);
    const uint8_t *at = coder->scratch + header, *end = coder->scratch + size;
    lane_state lane[MAX_LANES];
    for (uint32_t l = 0; l < lanes; l++) {
        size_t left = (size_t)(end - at);
        size_t length = l + 1 < lanes ? load_length(payload + (size_t)width * l, width) : left;
        if (length > left)
            return CODER_SHORT;
        lane[l].w = (window){1, at};
        lane[l].end = at += length;
        lane[l].channel = lane_start(shape, l);
        lane[l].stop = lane_start(shape, l + 1);
        open_channel(&lane[l], coder, symbols);
    }
    for (uint32_t l = 0; l + 4 <= lanes; l += 4)
        decode_four(lane + l, coder, symbols);
    for (uint32_t l = 0; l < lanes; l++) {
        lane_state *s = &lane[l];
        decode_rest(s, coder, symbols);
        /* The last byte may be begun, and what is left of it is zero. */
        uint32_t taken = count_trailing_zeros(s->w.bits);
        const uint8_t *byte = s->w.at + (taken >> 3), *past = byte + ((taken & 7) > 0);
        if (s->channel != s->stop || past > s->end)
            return CODER_SHORT;
        if (past < s->end)
            return CODER_LONG;
        if (taken & 7 && (uint8_t)(*byte << (taken & 7)))
            return CODER_PADDING;
    }
    return CODER_OK;
}

TARGET_X86_64_V3 static enum coder_error decode_v3(const huffman_coder *coder, const uint8_t *payload, size_t size,
                                                uint8_t *symbols)
{
    return decode(coder, payload, size, symbols);
}

enum coder_error huffman_decode(const huffman_coder *coder, const uint8_t *payload, size_t size,
                                uint8_t *symbols)
{
    return HAVE_X86_64_V3 ? decode_v3(coder, payload, size, symbols) : decode(coder, payload, size, symbols);
}
