/* Canonical Huffman code over tokens of runs, one table for channels that are alike; see coder.h for the rules.
 *
 * Every channel is taken relative to its mode and zigzag-folded: 0 is the mode, 1 one below it, 2 one above.
 * Channels of one table then are one sequence, however their modes differ. A look-up decodes as many whole
 * tokens as fit its bits and its entry, and writes their symbols with one store.
 */
#include "bytes.h"
#include "coder.h"

#include <stdlib.h>

enum {
    LOOKUP_BITS = 11,
    LOOKUPS = 5,       /* of LOOKUP_BITS each, out of the 56 bits of a window */
    AT_ONCE = 6,       /* symbols that one look-up writes, behind the modes that it skips */
    FARTHEST = 127,    /* modes that one look-up skips */
    PLAIN_AT_ONCE = 3, /* symbols that one look-up gives without runs */
    SLACK = 32,
    ROOM = LOOKUPS * PLAIN_AT_ONCE + 2,       /* bytes that a window without runs may write, and a long code */
    GAP = LOOKUPS * (FARTHEST + AT_ONCE) + 8, /* bytes that one with runs may write behind the end of its lane */
    LARGEST_LITERAL = SYMBOLS - 2,
};

typedef struct {
    /* What the next LOOKUP_BITS bits say; 0: an escape, or a longer code. */
    union {
        /* Their whole tokens' length in bits (6 bits), how many symbols they write (3 bits at COUNT_AT) behind how
         * many modes (7 bits at SKIP_AT), and these symbols (48 bits). */
        uint64_t runs[1 << LOOKUP_BITS];
        /* Without runs: the length of their codes (6 bits), their number (2 bits), and up to three symbols, from
         * the low byte up. */
        uint32_t plain[1 << LOOKUP_BITS];
    } lookup;
    uint32_t *code;   /* of a cell, run * columns + folded symbol: code << 4 | length; an ESCAPED one has its row's */
    uint16_t *sorted; /* cells in the order of their codes */
    uint32_t limit[MAX_CODE_LENGTH + 2]; /* first 16-bit window beyond the codes of this length */
    uint32_t first[MAX_CODE_LENGTH + 2]; /* first code of this length, and its place in `sorted` */
    uint32_t place[MAX_CODE_LENGTH + 2];
    uint32_t runs, columns, order, full; /* full: the cell behind the last row */
} table;

enum { COUNT_AT = 6, SKIP_AT = 9, SYMBOLS_AT = 16 };
static const uint32_t ESCAPED = 1u << 31;

/* Channels of one lane and one table, one behind the other. */
typedef struct {
    const table *t;
    size_t symbols;
} segment;

struct run_huffman_coder {
    coder_shape shape;
    uint8_t *payload; /* decoding: the payload, and what a segment that runs out may read behind it */
    uint8_t *folded;  /* all lanes' folded symbols, with a GAP behind each lane, from ROOM on */
    size_t *place;    /* of each channel in `folded` */
    uint8_t *mode;    /* of each channel */
    segment *segments;
    uint32_t first_segment[MAX_LANES + 1];
    size_t first_place[MAX_LANES];
    table *tables;
    uint32_t count;
};

/* Whether a table keeps the rules of coder.h; whatever the caller has checked, memory depends on them. */
static int is_valid(const run_huffman_table *source)
{
    uint32_t runs = source->runs, columns = source->columns, kraft = 0;
    if (!runs || runs > MAX_HUFFMAN_RUNS || !columns || columns > SYMBOLS || source->order > MAX_LITERAL_ORDER)
        return 0;
    if (runs == 1 && (columns != SYMBOLS || source->order))
        return 0;
    uint32_t cells = runs * columns + (runs > 1);
    for (uint32_t i = 0; i < cells; i++) {
        uint32_t length = source->lengths[i];
        int needed = runs == 1 || i % columns == 0 || i == runs * columns;
        if (length > MAX_CODE_LENGTH || (needed && !length))
            return 0;
        kraft += length ? 1u << (MAX_CODE_LENGTH - length) : 0;
    }
    return kraft == 1u << MAX_CODE_LENGTH;
}

/* The whole tokens in the next LOOKUP_BITS bits, `bits`, as one entry. */
static uint64_t combine_runs(const table *t, const uint32_t *primary, uint32_t bits)
{
    uint64_t symbols = 0;
    uint32_t used = 0, skip = 0, count = 0;
    for (;;) {
        uint32_t entry = primary[(bits << used) & ((1 << LOOKUP_BITS) - 1)], length = entry & 15;
        uint32_t cell = entry >> 4, symbol = cell % t->columns, run = cell / t->columns, own = cell != t->full;
        if (!entry || used + length > LOOKUP_BITS || (own && !symbol))
            break;
        run = own ? run : t->runs;
        if (count ? count + run + own > AT_ONCE : skip + run > FARTHEST)
            break;
        if (count)
            count += run;
        else
            skip += run;
        symbols |= (uint64_t)(own ? symbol : 0) << (8 * count);
        count += own;
        used += length;
    }
    return symbols << SYMBOLS_AT | skip << SKIP_AT | count << COUNT_AT | used;
}

static uint32_t combine_plain(const uint32_t *primary, uint32_t bits)
{
    uint32_t used = 0, count = 0, symbols = 0;
    while (count < PLAIN_AT_ONCE) {
        uint32_t entry = primary[(bits << used) & ((1 << LOOKUP_BITS) - 1)], length = entry & 15;
        if (!entry || used + length > LOOKUP_BITS)
            break;
        symbols |= (entry >> 4) << (8 * count++);
        used += length;
    }
    return symbols << 8 | count << 6 | used;
}

static int fill_table(table *t, const run_huffman_table *source)
{
    uint32_t cells = source->runs * source->columns + (source->runs > 1), code = 0, place = 0;
    t->runs = source->runs;
    t->columns = source->columns;
    t->order = source->order;
    t->full = source->runs * source->columns;
    t->code = calloc(cells, sizeof *t->code);
    t->sorted = calloc(cells, sizeof *t->sorted);
    uint32_t *primary = calloc(1 << LOOKUP_BITS, sizeof *primary); /* the first token alone: cell << 4 | length */
    if (!t->code || !t->sorted || !primary) {
        free(primary);
        return 0;
    }
    for (uint32_t length = 1; length <= MAX_CODE_LENGTH; length++) {
        code <<= 1;
        t->first[length] = code;
        t->place[length] = place;
        for (uint32_t cell = 0; cell < cells; cell++) {
            if (source->lengths[cell] != length)
                continue;
            t->sorted[place++] = (uint16_t)cell;
            t->code[cell] = code << 4 | length;
            if (length <= LOOKUP_BITS)
                for (uint32_t i = code << (LOOKUP_BITS - length); i < (code + 1) << (LOOKUP_BITS - length); i++)
                    primary[i] = cell << 4 | length;
            code++;
        }
        t->limit[length] = code << (16 - length);
    }
    for (uint32_t cell = 0; t->runs > 1 && cell < t->full; cell++)
        if (!t->code[cell] || cell % t->columns == 0)
            t->code[cell] = t->code[cell - cell % t->columns] | ESCAPED;
    for (uint32_t i = 0; i < 1 << LOOKUP_BITS; i++)
        if (t->runs == 1)
            t->lookup.plain[i] = combine_plain(primary, i);
        else
            t->lookup.runs[i] = combine_runs(t, primary, i);
    free(primary);
    return 1;
}

/* Each channel's lane and place: in the order of their tables, dealt out like cards. 0 without memory. */
static int place_channels(run_huffman_coder *coder, const uint16_t *table_of_channel)
{
    uint32_t channels = coder->shape.channels, lanes = coder->shape.lanes, segments = 0;
    size_t place = ROOM, plane = coder->shape.plane;
    uint32_t *before = calloc(coder->count + 1, sizeof *before), *order = malloc(channels * sizeof *order);
    if (before && order) {
        for (uint32_t c = 0; c < channels; c++)
            before[table_of_channel[c] + 1]++;
        for (uint32_t t = 0; t < coder->count; t++)
            before[t + 1] += before[t];
        for (uint32_t c = 0; c < channels; c++)
            order[before[table_of_channel[c]]++] = c;
    }
    for (uint32_t lane = 0; before && order && lane < lanes; lane++) {
        coder->first_segment[lane] = segments;
        coder->first_place[lane] = place;
        for (uint32_t i = lane; i < channels; i += lanes) {
            const table *t = &coder->tables[table_of_channel[order[i]]];
            if (segments == coder->first_segment[lane] || coder->segments[segments - 1].t != t)
                coder->segments[segments++] = (segment){t, 0};
            coder->segments[segments - 1].symbols += plane;
            coder->place[order[i]] = place;
            place += plane;
        }
        place += GAP;
    }
    coder->first_segment[lanes] = segments;
    free(before);
    free(order);
    return before && order;
}

run_huffman_coder *run_huffman_create(coder_shape shape, const run_huffman_table *tables, uint32_t count,
                                      const uint16_t *table_of_channel, const uint8_t *mode_of_channel)
{
    for (uint32_t i = 0; i < count; i++)
        if (!is_valid(&tables[i]))
            return NULL;
    run_huffman_coder *coder = calloc(1, sizeof *coder);
    if (!coder)
        return NULL;
    size_t symbols = (size_t)shape.channels * shape.plane;
    coder->shape = shape;
    coder->payload = calloc(1, symbols * 3 + SLACK);
    coder->folded = calloc(1, ROOM + symbols + (size_t)GAP * shape.lanes);
    coder->place = malloc(shape.channels * sizeof *coder->place);
    coder->mode = malloc(shape.channels);
    coder->segments = malloc(shape.channels * sizeof *coder->segments);
    coder->tables = calloc(count, sizeof *coder->tables);
    int ok = coder->payload && coder->folded && coder->place && coder->mode && coder->segments && coder->tables;
    for (; ok && coder->count < count; coder->count++)
        ok = fill_table(&coder->tables[coder->count], &tables[coder->count]);
    if (!ok || !place_channels(coder, table_of_channel)) {
        run_huffman_destroy(coder);
        return NULL;
    }
    memcpy(coder->mode, mode_of_channel, shape.channels);
    return coder;
}

void run_huffman_destroy(run_huffman_coder *coder)
{
    if (!coder)
        return;
    for (uint32_t i = 0; coder->tables && i < coder->count; i++) {
        free(coder->tables[i].code);
        free(coder->tables[i].sorted);
    }
    free(coder->payload);
    free(coder->folded);
    free(coder->place);
    free(coder->mode);
    free(coder->segments);
    free(coder->tables);
    free(coder);
}

size_t run_huffman_bound(const run_huffman_coder *coder)
{
    /* An escape and its literal are 31 bits at most. */
    size_t symbols = (size_t)coder->shape.channels * coder->shape.plane;
    return symbols * 4 + (size_t)coder->shape.lanes * 16;
}

/* --- encoding --- */

/* Distance from the mode, -128 ... 127, as 0, -1, 1, -2, ...: what is near has a small number. */
static void fold(const uint8_t *symbols, size_t n, uint8_t mode, uint8_t *folded)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t d = (uint8_t)(symbols[i] - mode);
        folded[i] = (uint8_t)(d << 1 ^ (d & 128 ? 255 : 0));
    }
}

static void unfold(const uint8_t *folded, size_t n, uint8_t mode, uint8_t *symbols)
{
    for (size_t i = 0; i < n; i++)
        symbols[i] = (uint8_t)((folded[i] >> 1 ^ (folded[i] & 1 ? 255 : 0)) + mode);
}

/* Bits on their way out: `count` < 8 of them are not written yet. */
typedef struct {
    uint64_t bits;
    uint32_t count;
    uint8_t *out;
} writer;

ALWAYS_INLINE void put(writer *w, uint32_t code, uint32_t length)
{
    w->bits = w->bits << length | code;
    w->count += length;
}

/* After at most 56 bits. */
ALWAYS_INLINE void flush(writer *w)
{
    store_be64(w->out, w->bits << (64 - w->count));
    w->out += w->count >> 3;
    w->count &= 7;
}

/* Exponential-Golomb code of a folded symbol behind its escape, at most 16 bits. */
ALWAYS_INLINE void put_literal(writer *w, uint32_t symbol, uint32_t order)
{
    uint32_t value = symbol - 1 + (1u << order), length = 64 - count_leading_zeros(value);
    put(w, value, 2 * length - order - 1);
}

ALWAYS_INLINE void encode_plain(const table *t, const uint8_t *folded, size_t n, writer *to)
{
    writer w = *to;
    size_t i = 0;
    /* 7 bits and three codes of at most 15 fit 64 bits. */
    for (; i + 3 <= n; i += 3) {
        uint32_t a = t->code[folded[i]], b = t->code[folded[i + 1]], c = t->code[folded[i + 2]];
        put(&w, a >> 4, a & 15);
        put(&w, b >> 4, b & 15);
        put(&w, c >> 4, c & 15);
        flush(&w);
    }
    for (; i < n; i++) {
        put(&w, t->code[folded[i]] >> 4, t->code[folded[i]] & 15);
        flush(&w);
    }
    *to = w;
}

/* Bit i: whether symbol i of these 8 is not 0. */
ALWAYS_INLINE uint64_t others_of_8(const uint8_t *folded)
{
    const uint64_t low = 0x7F7F7F7F7F7F7F7F;
    uint64_t v = load_le64(folded), others = (((v & low) + low) | v) & ~low;
    return (others >> 7) * 0x0102040810204080 >> 56;
}

/* Bit i: whether symbol i of the next n, at most 64, is not 0. What is read behind them is a GAP, or other lanes. */
ALWAYS_INLINE uint64_t others_of(const uint8_t *folded, size_t n)
{
    uint64_t others = 0;
    for (size_t i = 0; i < 8; i++)
        others |= others_of_8(folded + 8 * i) << (8 * i);
    return n < 64 ? others & (((uint64_t)1 << n) - 1) : others;
}

ALWAYS_INLINE void encode_runs(const table *t, const uint8_t *folded, size_t n, writer *to)
{
    writer w = *to;
    const uint32_t *code = t->code, full = code[t->full];
    size_t columns = t->columns, runs = t->runs, next = 0; /* the first symbol without a token */
    for (size_t base = 0; base < n; base += 64) {
        for (uint64_t others = others_of(folded + base, n - base); others; others &= others - 1) {
            size_t at = base + count_trailing_zeros(others), run = at - next, symbol = folded[at];
            next = at + 1;
            for (; UNLIKELY(run >= runs); run -= runs) {
                put(&w, full >> 4, full & 15);
                flush(&w);
            }
            uint32_t entry = code[run * columns + (symbol < columns ? symbol : 0)];
            put(&w, (entry & ~ESCAPED) >> 4, entry & 15);
            if (UNLIKELY(entry & ESCAPED))
                put_literal(&w, (uint32_t)symbol, t->order);
            flush(&w);
        }
    }
    for (; next < n; next += runs) {
        put(&w, full >> 4, full & 15);
        flush(&w);
    }
    *to = w;
}

ALWAYS_INLINE size_t encode(const run_huffman_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    const coder_shape *shape = &coder->shape;
    uint32_t width = length_width(shape);
    writer w = {0, 0, payload + (size_t)width * (shape->lanes - 1)};
    for (uint32_t c = 0; c < shape->channels; c++)
        fold(symbols + (size_t)c * shape->plane, shape->plane, coder->mode[c], coder->folded + coder->place[c]);
    for (uint32_t lane = 0; lane < shape->lanes; lane++) {
        uint8_t *start = w.out;
        const uint8_t *folded = coder->folded + coder->first_place[lane];
        for (uint32_t i = coder->first_segment[lane]; i < coder->first_segment[lane + 1]; i++) {
            const segment *s = &coder->segments[i];
            if (s->t->runs == 1)
                encode_plain(s->t, folded, s->symbols, &w);
            else
                encode_runs(s->t, folded, s->symbols, &w);
            folded += s->symbols;
        }
        w.out += w.count > 0; /* the last byte is there, padded with zeros */
        w.count = 0;
        if (lane + 1 < shape->lanes)
            store_length(payload + (size_t)width * lane, width, (size_t)(w.out - start));
    }
    return (size_t)(w.out - payload);
}

TARGET_X86_64_V3 static size_t encode_v3(const run_huffman_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return encode(coder, symbols, payload);
}

size_t run_huffman_encode(const run_huffman_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return HAVE_X86_64_V3 ? encode_v3(coder, symbols, payload) : encode(coder, symbols, payload);
}

/* --- decoding --- */

/* One lane on its way through its segments. `bits` has the lane's next bits from the top and a 1 behind the last
 * of them: the zeros below that 1 are as many as bits were taken since the window was opened at `at`. */
typedef struct {
    uint64_t bits;
    const uint8_t *at, *end;
    uint8_t *out, *limit; /* where the segment's next symbol goes, and where the segment ends */
    const segment *segment, *stop;
    enum coder_error error;
} lane_state;

#define OPEN_WINDOW(bits, at)                                                                                  \
    do {                                                                                                       \
        uint32_t taken = count_trailing_zeros(bits);                                                           \
        (at) += taken >> 3;                                                                                    \
        (bits) = (load_be64(at) | 1) << (taken & 7);                                                           \
    } while (0)

/* One look-up: up to FARTHEST modes, which are there already, and AT_ONCE symbols; zeros behind them. */
#define LOOK_UP_RUNS(bits, out, lookup)                                                                        \
    do {                                                                                                       \
        uint64_t entry = (lookup)[(bits) >> (64 - LOOKUP_BITS)];                                               \
        (out) += entry >> SKIP_AT & 127;                                                                       \
        store_le64((out), entry >> SYMBOLS_AT);                                                                \
        (out) += entry >> COUNT_AT & 7;                                                                        \
        (bits) <<= entry & 63;                                                                                 \
    } while (0)

/* The same without runs: up to three symbols, of which four bytes are written. */
#define LOOK_UP_PLAIN(bits, out, lookup)                                                                       \
    do {                                                                                                       \
        uint32_t entry = (lookup)[(bits) >> (64 - LOOKUP_BITS)];                                               \
        (bits) <<= entry & 63;                                                                                 \
        store_le32((out), entry >> 8);                                                                         \
        (out) += entry >> 6 & 3;                                                                               \
    } while (0)

/* One token, whatever it is, into an open window of at least 32 bits; an error for one that cannot be. */
static enum coder_error take_token(lane_state *s)
{
    const table *t = s->segment->t;
    uint32_t head = (uint32_t)(s->bits >> 48), length = 1;
    while (length < MAX_CODE_LENGTH && head >= t->limit[length])
        length++;
    uint32_t cell = t->sorted[t->place[length] + (head >> (16 - length)) - t->first[length]];
    uint32_t run = cell / t->columns, symbol = cell % t->columns;
    size_t left = (size_t)(s->limit - s->out);
    s->bits <<= length;
    if (t->runs == 1) {
        *s->out++ = (uint8_t)cell;
        return CODER_OK;
    }
    if (cell == t->full) {
        s->out += left < t->runs ? left : t->runs;
        return CODER_OK;
    }
    if (run >= left)
        return CODER_TOKEN;
    if (!symbol) {
        uint32_t zeros = count_leading_zeros(s->bits | 1), bits = zeros + t->order + 1;
        if (bits > 9)
            return CODER_TOKEN;
        uint32_t value = (uint32_t)(s->bits << zeros >> (64 - bits)) - (1u << t->order);
        s->bits <<= zeros + bits;
        symbol = value + 1;
        if (value > LARGEST_LITERAL || (symbol < t->columns && !(t->code[cell + symbol] & ESCAPED)))
            return CODER_TOKEN;
    }
    s->out[run] = (uint8_t)symbol;
    s->out += run + 1;
    return CODER_OK;
}

/* Look-ups that stay in the segment, few enough for any token to fit the window behind them; whether the next token
 * has to be taken by itself. What a look-up writes behind the segment is written over when its own turn comes. */
ALWAYS_INLINE int look_up_within(lane_state *s)
{
    const table *t = s->segment->t;
    if (t->runs == 1) {
        for (int i = 0; i < 3; i++) {
            size_t count = t->lookup.plain[s->bits >> (64 - LOOKUP_BITS)] >> 6 & 3;
            if (!count || count > (size_t)(s->limit - s->out))
                return s->out < s->limit;
            LOOK_UP_PLAIN(s->bits, s->out, t->lookup.plain);
        }
        return 0;
    }
    for (int i = 0; i < 2; i++) {
        uint64_t tokens = t->lookup.runs[s->bits >> (64 - LOOKUP_BITS)];
        size_t count = (tokens >> SKIP_AT & 127) + (tokens >> COUNT_AT & 7);
        if (!count || count > (size_t)(s->limit - s->out))
            return s->out < s->limit;
        LOOK_UP_RUNS(s->bits, s->out, t->lookup.runs);
    }
    return 0;
}

/* Where there are runs, only other symbols are written. */
ALWAYS_INLINE void open_segment(lane_state *s)
{
    s->limit = s->out + s->segment->symbols;
    if (s->segment->t->runs > 1)
        memset(s->out, 0, s->segment->symbols);
}

/* The end of one segment, and on to the next; whether there is one. */
static int finish_segment(lane_state *s)
{
    while (s->out < s->limit) {
        if (s->at > s->end) {
            s->error = CODER_SHORT;
            return 0;
        }
        OPEN_WINDOW(s->bits, s->at);
        if (look_up_within(s) && (s->error = take_token(s)))
            return 0;
    }
    if (++s->segment == s->stop)
        return 0;
    open_segment(s);
    return 1;
}

/* Lanes side by side, in registers: one lane's look-ups wait for one another, several lanes' do not. */
#define OPEN(n)                                                                                                \
    uint64_t bits_##n = lane[n]->bits;                                                                         \
    const uint8_t *at_##n = lane[n]->at;                                                                       \
    uint8_t *out_##n = lane[n]->out;                                                                           \
    const table *t_##n = lane[n]->segment->t;
#define SHUT(n)                                                                                                \
    lane[n]->bits = bits_##n;                                                                                  \
    lane[n]->at = at_##n;                                                                                      \
    lane[n]->out = out_##n;
#define RESUME(n)                                                                                              \
    bits_##n = lane[n]->bits;                                                                                  \
    at_##n = lane[n]->at;                                                                                      \
    out_##n = lane[n]->out;

/* A segment without runs is decoded while there is room for a window. Its payload is not watched meanwhile: a
 * symbol is 15 bits at most, so that no more than two bytes a symbol are read behind its end. */
#define OPEN_PLAIN(n)                                                                                          \
    OPEN(n)                                                                                                    \
    const uint32_t *lookup_##n = t_##n->lookup.plain;                                                          \
    const uint8_t *last_##n = lane[n]->limit - ROOM;
#define HAS_ROOM(n) (out_##n <= last_##n)
/* A window in which nothing was taken starts with a code that is longer than the look-ups. */
#define REFILL(n)                                                                                              \
    if (LIKELY(!(bits_##n & 0xFF))) {                                                                          \
        OPEN_WINDOW(bits_##n, at_##n);                                                                         \
    } else {                                                                                                   \
        SHUT(n)                                                                                                \
        OPEN_WINDOW(lane[n]->bits, lane[n]->at);                                                               \
        (void)take_token(lane[n]); /* without runs, any token can be */                                        \
        OPEN_WINDOW(lane[n]->bits, lane[n]->at);                                                               \
        RESUME(n)                                                                                              \
    }

ALWAYS_INLINE void decode_four_plain(lane_state *const lane[4])
{
    OPEN_PLAIN(0)
    OPEN_PLAIN(1)
    OPEN_PLAIN(2)
    OPEN_PLAIN(3)
    while (HAS_ROOM(0) && HAS_ROOM(1) && HAS_ROOM(2) && HAS_ROOM(3)) {
        REFILL(0)
        REFILL(1)
        REFILL(2)
        REFILL(3)
        for (int i = 0; i < LOOKUPS; i++) {
            LOOK_UP_PLAIN(bits_0, out_0, lookup_0);
            LOOK_UP_PLAIN(bits_1, out_1, lookup_1);
            LOOK_UP_PLAIN(bits_2, out_2, lookup_2);
            LOOK_UP_PLAIN(bits_3, out_3, lookup_3);
        }
    }
    SHUT(0)
    SHUT(1)
    SHUT(2)
    SHUT(3)
}

ALWAYS_INLINE void decode_two_plain(lane_state *const lane[2])
{
    OPEN_PLAIN(0)
    OPEN_PLAIN(1)
    while (HAS_ROOM(0) && HAS_ROOM(1)) {
        REFILL(0)
        REFILL(1)
        for (int i = 0; i < LOOKUPS; i++) {
            LOOK_UP_PLAIN(bits_0, out_0, lookup_0);
            LOOK_UP_PLAIN(bits_1, out_1, lookup_1);
        }
    }
    SHUT(0)
    SHUT(1)
}

ALWAYS_INLINE void decode_one_plain(lane_state *const lane[1])
{
    OPEN_PLAIN(0)
    while (HAS_ROOM(0)) {
        REFILL(0)
        for (int i = 0; i < LOOKUPS; i++) {
            LOOK_UP_PLAIN(bits_0, out_0, lookup_0);
        }
    }
    SHUT(0)
}

/* Segments with runs are decoded without regard to their end, until a lane has no more of them. A window that has
 * passed the end of its segment has read the wrong table: it is taken back. What it wrote in the segment is right. */
#define START(n)                                                                                               \
    if (UNLIKELY(at_##n > lane[n]->end)) {                                                                     \
        lane[n]->error = CODER_SHORT;                                                                          \
        return;                                                                                                \
    }                                                                                                          \
    OPEN_WINDOW(bits_##n, at_##n);                                                                             \
    SHUT(n)
#define STOP(n)                                                                                                \
    if (UNLIKELY(out_##n >= lane[n]->limit || !t_##n->lookup.runs[bits_##n >> (64 - LOOKUP_BITS)])) {          \
        more &= leave_window(lane[n], bits_##n, out_##n);                                                      \
        RESUME(n)                                                                                              \
        t_##n = more ? lane[n]->segment->t : t_##n;                                                            \
    }

/* A window that has come to the end of its segment, or to a token that is not looked up; whether the lane goes on
 * with runs. */
static int leave_window(lane_state *s, uint64_t bits, uint8_t *out)
{
    if (out < s->limit) {
        s->bits = bits;
        s->out = out;
        OPEN_WINDOW(s->bits, s->at);
        s->error = take_token(s);
        if (s->error || s->out < s->limit)
            return !s->error;
    }
    return finish_segment(s) && s->segment->t->runs > 1;
}

ALWAYS_INLINE void decode_four_runs(lane_state *const lane[4])
{
    OPEN(0)
    OPEN(1)
    OPEN(2)
    OPEN(3)
    for (int more = 1; more;) {
        START(0)
        START(1)
        START(2)
        START(3)
        for (int i = 0; i < LOOKUPS; i++) {
            LOOK_UP_RUNS(bits_0, out_0, t_0->lookup.runs);
            LOOK_UP_RUNS(bits_1, out_1, t_1->lookup.runs);
            LOOK_UP_RUNS(bits_2, out_2, t_2->lookup.runs);
            LOOK_UP_RUNS(bits_3, out_3, t_3->lookup.runs);
        }
        STOP(0)
        STOP(1)
        STOP(2)
        STOP(3)
    }
    SHUT(0)
    SHUT(1)
    SHUT(2)
    SHUT(3)
}

ALWAYS_INLINE void decode_two_runs(lane_state *const lane[2])
{
    OPEN(0)
    OPEN(1)
    for (int more = 1; more;) {
        START(0)
        START(1)
        for (int i = 0; i < LOOKUPS; i++) {
            LOOK_UP_RUNS(bits_0, out_0, t_0->lookup.runs);
            LOOK_UP_RUNS(bits_1, out_1, t_1->lookup.runs);
        }
        STOP(0)
        STOP(1)
    }
    SHUT(0)
    SHUT(1)
}

ALWAYS_INLINE void decode_one_runs(lane_state *const lane[1])
{
    OPEN(0)
    for (int more = 1; more;) {
        START(0)
        for (int i = 0; i < LOOKUPS; i++)
            LOOK_UP_RUNS(bits_0, out_0, t_0->lookup.runs);
        STOP(0)
    }
    SHUT(0)
}

#undef OPEN
#undef SHUT
#undef RESUME
#undef OPEN_PLAIN
#undef HAS_ROOM
#undef REFILL
#undef START
#undef STOP

/* All lanes to their end: as many side by side as are in segments of one kind, those without runs first. */
ALWAYS_INLINE enum coder_error decode_lanes(lane_state *lanes, uint32_t count)
{
    for (;;) {
        lane_state *plain[MAX_LANES], *runs[MAX_LANES];
        uint32_t plains = 0, others = 0;
        for (uint32_t l = 0; l < count; l++) {
            if (lanes[l].error)
                return lanes[l].error;
            if (lanes[l].segment == lanes[l].stop)
                continue;
            if (lanes[l].segment->t->runs == 1)
                plain[plains++] = &lanes[l];
            else
                runs[others++] = &lanes[l];
        }
        if (plains) {
            uint32_t together = plains >= 4 ? 4 : plains >= 2 ? 2 : 1;
            if (together == 4)
                decode_four_plain(plain);
            else if (together == 2)
                decode_two_plain(plain);
            else
                decode_one_plain(plain);
            for (uint32_t i = 0; i < together; i++)
                if (plain[i]->limit - plain[i]->out < ROOM)
                    finish_segment(plain[i]);
        } else if (others >= 4) {
            decode_four_runs(runs);
        } else if (others >= 2) {
            decode_two_runs(runs);
        } else if (others) {
            decode_one_runs(runs);
        } else {
            return CODER_OK;
        }
    }
}

ALWAYS_INLINE enum coder_error decode(const run_huffman_coder *coder, const uint8_t *payload, size_t size,
                                      uint8_t *symbols)
{
    const coder_shape *shape = &coder->shape;
    uint32_t width = length_width(shape), lanes = shape->lanes;
    size_t header = (size_t)width * (lanes - 1);
    if (size < header)
        return CODER_SHORT;
    if (size > (size_t)shape->channels * shape->plane)
        return CODER_LONG;
    memcpy(coder->payload, payload, size);
    const uint8_t *at = coder->payload + header, *end = coder->payload + size;
    lane_state lane[MAX_LANES];
    for (uint32_t l = 0; l < lanes; l++) {
        size_t left = (size_t)(end - at);
        size_t length = l + 1 < lanes ? load_length(payload + (size_t)width * l, width) : left;
        if (length > left)
            return CODER_SHORT;
        lane_state *s = &lane[l];
        s->bits = 1;
        s->at = at;
        s->end = at += length;
        s->segment = coder->segments + coder->first_segment[l];
        s->stop = coder->segments + coder->first_segment[l + 1];
        s->out = coder->folded + coder->first_place[l];
        s->error = CODER_OK;
        open_segment(s);
    }
    enum coder_error error = decode_lanes(lane, lanes);
    if (error)
        return error;
    for (uint32_t l = 0; l < lanes; l++) {
        /* The last byte may be begun, and what is left of it is zero. */
        uint32_t taken = count_trailing_zeros(lane[l].bits);
        const uint8_t *byte = lane[l].at + (taken >> 3), *past = byte + ((taken & 7) > 0);
        if (past > lane[l].end)
            return CODER_SHORT;
        if (past < lane[l].end)
            return CODER_LONG;
        if (taken & 7 && (uint8_t)(*byte << (taken & 7)))
            return CODER_PADDING;
    }
    for (uint32_t c = 0; c < shape->channels; c++)
        unfold(coder->folded + coder->place[c], shape->plane, coder->mode[c],
               symbols + (size_t)c * shape->plane);
    return CODER_OK;
}

TARGET_X86_64_V3 static enum coder_error decode_v3(const run_huffman_coder *coder, const uint8_t *payload,
                                                size_t size, uint8_t *symbols)
{
    return decode(coder, payload, size, symbols);
}

enum coder_error run_huffman_decode(const run_huffman_coder *coder, const uint8_t *payload, size_t size,
                                    uint8_t *symbols)
{
    return HAVE_X86_64_V3 ? decode_v3(coder, payload, size, symbols) : decode(coder, payload, size, symbols);
}
