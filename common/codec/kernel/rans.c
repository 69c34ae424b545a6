/* Static-table asymmetric numeral systems over tokens of runs; see coder.h for the rules, ans.h for a lane's bytes,
 * rans.h for the tables. */
#include "rans.h"

#include <stdlib.h>

#ifndef OFFRAMP_NO_HEAP
/* Whether a table keeps the rules of coder.h; whatever the caller has checked, memory depends on them. */
static int is_valid(const rans_table *source)
{
    uint32_t total = 0, symbols = 0, escapes = 0, full = 0, runs = source->runs;
    uint8_t seen[128][SYMBOLS + 1] = {{0}};
    if (!source->tokens || source->tokens > SYMBOLS || !runs || runs > 128)
        return 0;
    for (uint32_t i = 0; i < source->tokens; i++) {
        const rans_token *token = &source->token[i];
        if (!token->frequency || token->run >= runs)
            return 0;
        total += token->frequency;
        if (token->kind == TOKEN_FULL) {
            full++;
            if (token->run != runs - 1 || token->symbol != source->mode)
                return 0;
            continue;
        }
        uint8_t *mark = &seen[token->run][token->kind == TOKEN_ESCAPE ? SYMBOLS : token->symbol];
        if (token->kind > TOKEN_ESCAPE || *mark)
            return 0;
        if (token->kind == TOKEN_SYMBOL && runs > 1 && token->symbol == source->mode)
            return 0;
        if (token->kind == TOKEN_ESCAPE && token->symbol)
            return 0;
        *mark = 1;
        token->kind == TOKEN_ESCAPE ? escapes++ : symbols++;
    }
    return total == RANS_TOTAL && full == (runs > 1) &&
           (escapes == runs || (runs == 1 && symbols == SYMBOLS && !escapes));
}

static int fill_table(table *t, const rans_table *source)
{
    uint32_t start = 0, columns = 0, modes = 0;
    t->runs = source->runs;
    t->mode = source->mode;
    uint16_t column[SYMBOLS];
    for (uint32_t s = 0; s < SYMBOLS; s++)
        column[s] = ABSENT;
    for (uint32_t i = 0; i < source->tokens; i++) {
        const rans_token *token = &source->token[i];
        uint32_t f = token->frequency;
        t->decode[i] = (decode_entry){(uint16_t)f, (uint16_t)start, token->run, token->symbol, token->kind};
        t->encode[i] = encoding(f, start);
        memset(t->of_slot + start, (int)i, f);
        start += f;
        modes += f * token->run;
        if (token->kind == TOKEN_SYMBOL && column[token->symbol] == ABSENT)
            column[token->symbol] = (uint16_t)columns++;
    }
    /* 256 columns of symbols need no escape: their last one is never looked up as such. */
    for (uint32_t s = 0; s < SYMBOLS; s++)
        t->column[s] = (uint8_t)(column[s] == ABSENT ? columns : column[s]);
    t->columns = columns + 1;
    t->jumps = modes >= JUMP_FROM * RANS_TOTAL;
    t->token = malloc((size_t)t->runs * t->columns * sizeof *t->token);
    if (!t->token)
        return 0;
    for (size_t i = 0; i < (size_t)t->runs * t->columns; i++)
        t->token[i] = ABSENT;
    for (uint32_t i = 0; i < source->tokens; i++) {
        const rans_token *token = &source->token[i];
        if (token->kind == TOKEN_FULL)
            t->full = (uint8_t)i;
        else
            t->token[token->run * t->columns +
                     (token->kind == TOKEN_ESCAPE ? columns : column[token->symbol])] = (uint16_t)i;
    }
    return 1;
}

rans_coder *rans_create(coder_shape shape, const rans_table *tables, uint32_t count,
                        const uint16_t *table_of_channel)
{
    rans_coder *coder = calloc(1, sizeof *coder);
    if (!coder)
        return NULL;
    for (uint32_t i = 0; i < count; i++)
        if (!is_valid(&tables[i])) {
            free(coder);
            return NULL;
        }
    size_t symbols = (size_t)shape.channels * shape.plane;
    coder->shape = shape;
    coder->payload_bytes = symbols + SLACK;
    coder->payload = calloc(1, coder->payload_bytes);
    coder->tokens = malloc((size_t)shape.lanes * shape.plane);
    coder->literals = malloc((size_t)shape.lanes * shape.plane);
    coder->words = malloc((symbols * 2 + shape.lanes) * sizeof *coder->words);
    coder->tables = calloc(count, sizeof *coder->tables);
    coder->of_channel = malloc(shape.channels * sizeof *coder->of_channel);
    int ok = coder->payload && coder->tokens && coder->literals && coder->words && coder->tables &&
             coder->of_channel;
    for (; ok && coder->count < count; coder->count++)
        ok = fill_table(&coder->tables[coder->count], &tables[coder->count]);
    if (!ok) {
        rans_destroy(coder);
        return NULL;
    }
    for (uint32_t c = 0; c < shape.channels; c++)
        coder->of_channel[c] = &coder->tables[table_of_channel[c]];
    return coder;
}

void rans_destroy(rans_coder *coder)
{
    if (!coder)
        return;
    for (uint32_t i = 0; coder->tables && i < coder->count; i++)
        free(coder->tables[i].token);
    free(coder->payload);
    free(coder->tokens);
    free(coder->literals);
    free(coder->words);
    free(coder->tables);
    free(coder->of_channel);
    free(coder);
}

size_t rans_bound(const rans_coder *coder)
{
    size_t symbols = (size_t)coder->shape.channels * coder->shape.plane;
    return symbols * 4 + (size_t)coder->shape.lanes * 8;
}

#endif

/* --- encoding --- */

/* First position from `i` on that is not the mode; `n` if there is none. */
ALWAYS_INLINE size_t skip_mode(const uint8_t *symbols, size_t i, size_t n, uint8_t mode)
{
    uint64_t pattern = mode * 0x0101010101010101ull;
    for (; i + 8 <= n; i += 8) {
        uint64_t differs = load_be64(symbols + i) ^ pattern;
        if (differs)
            return i + count_leading_zeros(differs) / 8;
    }
    while (i < n && symbols[i] == mode)
        i++;
    return i;
}

static size_t put_symbol(const table *t, size_t run, uint8_t symbol, uint8_t *tokens, uint8_t *literals,
                         size_t k)
{
    const cell *row = t->token + run * t->columns;
    uint32_t token = row[t->column[symbol]];
    if (UNLIKELY(token == ABSENT))
        token = row[t->columns - 1];
    tokens[k] = (uint8_t)token;
    literals[k] = symbol;
    return k + 1;
}

/* One channel's tokens; returns how many there are. Without a branch on any symbol, it is the same work for
 * each: the faster way where the mode is not much more likely than the rest. */
ALWAYS_INLINE size_t tokenize_dense(const table *t, const uint8_t *symbols, size_t n, uint8_t *tokens,
                                    uint8_t *literals)
{
    size_t k = 0, run = 0, runs = t->runs;
    int with_runs = runs > 1;
    for (size_t i = 0; i < n; i++) {
        uint8_t symbol = symbols[i];
        const cell *row = t->token + run * t->columns;
        uint32_t token = row[t->column[symbol]];
        token = token == ABSENT ? row[t->columns - 1] : token;
        int is_mode = with_runs & (symbol == t->mode);
        int is_full = is_mode & (run + 1 == runs);
        tokens[k] = (uint8_t)(is_mode ? t->full : token);
        literals[k] = symbol;
        k += (size_t)(1 - is_mode + is_full);
        run = (is_mode & !is_full) ? run + 1 : 0;
    }
    if (run)
        tokens[k++] = t->full;
    return k;
}

/* The same, by jumping from one symbol to the next that is not the mode. */
static size_t tokenize(const table *t, const uint8_t *symbols, size_t n, uint8_t *tokens, uint8_t *literals)
{
    if (!t->jumps)
        return tokenize_dense(t, symbols, n, tokens, literals);
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        size_t next = skip_mode(symbols, i, n, t->mode), run = next - i;
        for (; run >= t->runs || (next == n && run > 0); run -= run < t->runs ? run : t->runs)
            tokens[k++] = t->full;
        if (next < n)
            k = put_symbol(t, run, symbols[next], tokens, literals, k);
        i = next + 1;
    }
    return k;
}

/* One lane on its way, last channel first. */
typedef struct {
    uint32_t state, channel, first;
    size_t left;                /* tokens of the channel that are not coded yet */
    uint8_t *tokens, *literals; /* of the channel */
    uint16_t *word, *end;       /* the words so far, written downwards from `end` */
    const table *t;
} encode_lane;

#define PUT(state, word, e)                                                                                    \
    do {                                                                                                       \
        uint32_t overflows = ((state) >> 16) >= limit_of(e);                                                   \
        (word)[-1] = (uint16_t)(state);                                                                        \
        (word) -= overflows;                                                                                   \
        (state) = overflows ? (state) >> 16 : (state);                                                         \
        (state) = next_state((state), (e));                                                                    \
    } while (0)

/* The lane's next channel as tokens; 0 if there is none. */
static int next_channel(encode_lane *s, const rans_coder *coder, const uint8_t *symbols)
{
    size_t plane = coder->shape.plane;
    if (s->channel == s->first || is_hopeless(coder, (size_t)(s->end - s->word)))
        return 0;
    s->channel--;
    s->t = coder->of_channel[s->channel];
    s->left = tokenize(s->t, symbols + s->channel * plane, plane, s->tokens, s->literals);
    return 1;
}

/* The next token, an escape with its symbol. */
static void put_token(encode_lane *s)
{
    uint32_t token = s->tokens[--s->left];
    if (is_escape(s->t, token)) {
        encode_entry literal = encoding(ESCAPE_FREQUENCY, (uint32_t)s->literals[s->left] * ESCAPE_FREQUENCY);
        PUT(s->state, s->word, &literal);
    }
    PUT(s->state, s->word, &s->t->encode[token]);
}

/* Lanes side by side, in registers: each token waits for its lane's last one, but not for other lanes. */
#define OPEN(n)                                                                                                \
    uint32_t state_##n = lane[n]->state;                                                                       \
    uint16_t *word_##n = lane[n]->word;                                                                        \
    const uint8_t *token_##n = lane[n]->tokens + lane[n]->left;                                                \
    const table *t_##n = lane[n]->t;
#define SHUT(n)                                                                                                \
    lane[n]->state = state_##n;                                                                                \
    lane[n]->word = word_##n;                                                                                  \
    lane[n]->left = (size_t)(token_##n - lane[n]->tokens);
#define STEP(n)                                                                                                \
    do {                                                                                                       \
        const encode_entry *e = &t_##n->encode[*--token_##n];                                                  \
        if (UNLIKELY(is_escape(t_##n, *token_##n))) {                                                         \
            SHUT(n)                                                                                            \
            lane[n]->left++;                                                                                   \
            put_token(lane[n]);                                                                                \
            state_##n = lane[n]->state;                                                                        \
            word_##n = lane[n]->word;                                                                          \
        } else {                                                                                               \
            PUT(state_##n, word_##n, e);                                                                       \
        }                                                                                                      \
    } while (0)

ALWAYS_INLINE void encode_two(encode_lane *const lane[2], size_t tokens)
{
    OPEN(0)
    OPEN(1)
    while (tokens--) {
        STEP(0);
        STEP(1);
    }
    SHUT(0)
    SHUT(1)
}

ALWAYS_INLINE void encode_four(encode_lane *const lane[4], size_t tokens)
{
    OPEN(0)
    OPEN(1)
    OPEN(2)
    OPEN(3)
    while (tokens--) {
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
    }
    SHUT(0)
    SHUT(1)
    SHUT(2)
    SHUT(3)
}

#undef OPEN
#undef SHUT
#undef STEP

/* All lanes to their end, as many side by side as have tokens. */
ALWAYS_INLINE void encode_lanes(encode_lane *lanes, uint32_t count, const rans_coder *coder,
                                const uint8_t *symbols)
{
    for (;;) {
        encode_lane *lane[MAX_LANES];
        uint32_t open = 0;
        size_t together = SIZE_MAX;
        for (uint32_t l = 0; l < count && open < 4; l++)
            if (lanes[l].left || next_channel(&lanes[l], coder, symbols)) {
                lane[open++] = &lanes[l];
                together = lanes[l].left < together ? lanes[l].left : together;
            }
        if (!open)
            return;
        if (open == 4)
            encode_four(lane, together);
        else if (open >= 2)
            encode_two(lane, lane[0]->left < lane[1]->left ? lane[0]->left : lane[1]->left);
        else
            while (lane[0]->left)
                put_token(lane[0]);
    }
}

ALWAYS_INLINE size_t encode(const rans_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    const coder_shape *shape = &coder->shape;
    uint32_t width = length_width(shape), lanes = shape->lanes;
    size_t plane = shape->plane;
    uint8_t *out = payload + (size_t)width * (lanes - 1);
    uint16_t *words = coder->words;
    encode_lane lane[MAX_LANES];
    for (uint32_t l = 0; l < lanes; l++) {
        encode_lane *s = &lane[l];
        *s = (encode_lane){.state = 1, .channel = lane_start(shape, l + 1), .first = lane_start(shape, l)};
        s->tokens = coder->tokens + l * plane;
        s->literals = coder->literals + l * plane;
        words += lane_words(coder, s->channel - s->first);
        s->word = s->end = words;
    }
    encode_lanes(lane, lanes, coder, symbols);
#ifdef OFFRAMP_NO_HEAP
    size_t size = (size_t)width * (lanes - 1);
    for (uint32_t l = 0; l < lanes; l++)
        size += 4 + 2 * (size_t)(lane[l].end - lane[l].word) + (lane[l].channel > lane[l].first ? coder->most : 0);
    if (size > coder->most + (size_t)4 * lanes)
        return 0;
#endif
    for (uint32_t l = 0; l < lanes; l++) {
        encode_lane *s = &lane[l];
        uint8_t *start = out;
        out = write_lane(out, s->state, s->word, s->end);
        if (l + 1 < lanes)
            store_length(payload + (size_t)width * l, width, (size_t)(out - start));
    }
    return (size_t)(out - payload);
}

TARGET_X86_64_V3 static size_t encode_v3(const rans_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return encode(coder, symbols, payload);
}

size_t rans_encode(const rans_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return HAVE_X86_64_V3 ? encode_v3(coder, symbols, payload) : encode(coder, symbols, payload);
}

#ifndef OFFRAMP_NO_HEAP
/* --- decoding --- */

typedef struct {
    uint32_t state, bad;
    const uint8_t *at, *end;
    const table *t;
    uint8_t *out;    /* where the channel's next symbol goes */
    uint8_t *limit;  /* where the channel ends */
    uint32_t channel, stop;
} lane_state;

ALWAYS_INLINE void open_channel(lane_state *s, const rans_coder *coder, uint8_t *symbols)
{
    size_t plane = coder->shape.plane;
    s->t = coder->of_channel[s->channel];
    s->out = symbols + s->channel * plane;
    s->limit = s->out + plane;
    if (s->t->runs > 1)
        memset(s->out, s->t->mode, plane);
}

/* The rare tokens: escapes, and a run that ends its channel. Returns 0 for one that cannot be. */
static int take_special(lane_state *s, const decode_entry *e)
{
    size_t left = (size_t)(s->limit - s->out);
    if (e->kind == TOKEN_FULL) {
        s->out += left <= e->run ? left : e->run + 1u;
        return 1;
    }
    if (e->kind == TOKEN_SYMBOL || e->run >= left)
        return 0;
    uint32_t slot = s->state & (RANS_TOTAL - 1);
    uint8_t symbol = (uint8_t)(slot / ESCAPE_FREQUENCY);
    s->state = ESCAPE_FREQUENCY * (s->state >> RANS_BITS) + slot % ESCAPE_FREQUENCY;
    REFILL(s->state, s->at, s->end, s->bad);
    const table *t = s->t;
    uint32_t column = t->column[symbol];
    int has_token = column + 1 < t->columns && t->token[e->run * t->columns + column] != ABSENT;
    if (has_token || (t->runs > 1 && symbol == t->mode))
        return 0;
    s->out[e->run] = symbol;
    s->out += e->run + 1;
    return 1;
}

/* One token; returns 0 for one that cannot be. */
ALWAYS_INLINE int take(lane_state *s)
{
    uint32_t slot = s->state & (RANS_TOTAL - 1);
    const decode_entry *e = &s->t->decode[s->t->of_slot[slot]];
    s->state = e->frequency * (s->state >> RANS_BITS) + slot - e->start;
    REFILL(s->state, s->at, s->end, s->bad);
    if (UNLIKELY(e->kind != TOKEN_SYMBOL || (size_t)(s->limit - s->out) <= e->run))
        return take_special(s, e);
    s->out[e->run] = e->symbol;
    s->out += e->run + 1;
    return 1;
}

/* Go on to the next channel if this one is full; returns whether the lane has another symbol. */
ALWAYS_INLINE int go_on(lane_state *s, const rans_coder *coder, uint8_t *symbols)
{
    if (s->out < s->limit)
        return 1;
    if (++s->channel == s->stop)
        return 0;
    open_channel(s, coder, symbols);
    return 1;
}

/* Lanes side by side, in registers, until one of them has no more symbols. 0 for a token that cannot be. */
#define OPEN(n)                                                                                                \
    uint32_t state_##n = lane[n]->state, bad_##n = lane[n]->bad;                                               \
    const uint8_t *at_##n = lane[n]->at, *end_##n = lane[n]->end;                                              \
    uint8_t *out_##n = lane[n]->out, *limit_##n = lane[n]->limit;                                              \
    const table *t_##n = lane[n]->t;
#define SHUT(n)                                                                                                \
    lane[n]->state = state_##n;                                                                                \
    lane[n]->bad = bad_##n;                                                                                    \
    lane[n]->at = at_##n;                                                                                      \
    lane[n]->out = out_##n;
/* A token that may end its channel, or that is an escape, goes the long way. */
#define STEP(n)                                                                                                \
    do {                                                                                                       \
        uint32_t slot = state_##n & (RANS_TOTAL - 1);                                                          \
        const decode_entry *e = &t_##n->decode[t_##n->of_slot[slot]];                                          \
        if (UNLIKELY(e->kind == TOKEN_ESCAPE || limit_##n - out_##n <= e->run + 1)) {                          \
            SHUT(n)                                                                                            \
            if (!take(lane[n]))                                                                                \
                return 0;                                                                                      \
            more &= go_on(lane[n], coder, symbols);                                                            \
            state_##n = lane[n]->state;                                                                        \
            bad_##n = lane[n]->bad;                                                                            \
            at_##n = lane[n]->at;                                                                              \
            out_##n = lane[n]->out;                                                                            \
            limit_##n = lane[n]->limit;                                                                        \
            t_##n = lane[n]->t;                                                                                \
        } else {                                                                                               \
            state_##n = e->frequency * (state_##n >> RANS_BITS) + slot - e->start;                             \
            REFILL(state_##n, at_##n, end_##n, bad_##n);                                                       \
            out_##n[e->run] = e->symbol;                                                                       \
            out_##n += e->run + 1;                                                                             \
        }                                                                                                      \
    } while (0)

ALWAYS_INLINE int decode_two(lane_state *const lane[2], const rans_coder *coder, uint8_t *symbols)
{
    OPEN(0)
    OPEN(1)
    for (int more = 1; more;) {
        STEP(0);
        STEP(1);
    }
    SHUT(0)
    SHUT(1)
    return 1;
}

ALWAYS_INLINE int decode_four(lane_state *const lane[4], const rans_coder *coder, uint8_t *symbols)
{
    OPEN(0)
    OPEN(1)
    OPEN(2)
    OPEN(3)
    for (int more = 1; more;) {
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
    }
    SHUT(0)
    SHUT(1)
    SHUT(2)
    SHUT(3)
    return 1;
}

#undef OPEN
#undef SHUT
#undef STEP

static int decode_one(lane_state *s, const rans_coder *coder, uint8_t *symbols)
{
    do
        if (!take(s))
            return 0;
    while (go_on(s, coder, symbols));
    return 1;
}

/* All lanes to their end, as many side by side as have symbols left. */
ALWAYS_INLINE int decode_lanes(lane_state *lanes, uint32_t count, const rans_coder *coder, uint8_t *symbols)
{
    for (;;) {
        lane_state *lane[MAX_LANES];
        uint32_t open = 0;
        for (uint32_t l = 0; l < count && open < 4; l++)
            if (lanes[l].channel < lanes[l].stop)
                lane[open++] = &lanes[l];
        if (!open)
            return 1;
        if (!(open == 4   ? decode_four(lane, coder, symbols)
              : open >= 2 ? decode_two(lane, coder, symbols)
                          : decode_one(lane[0], coder, symbols)))
            return 0;
    }
}

ALWAYS_INLINE enum coder_error decode(const rans_coder *coder, const uint8_t *payload, size_t size,
                                      uint8_t *symbols)
{
    const coder_shape *shape = &coder->shape;
    uint32_t width = length_width(shape), lanes = shape->lanes;
    size_t header = (size_t)width * (lanes - 1);
    if (size < header)
        return CODER_SHORT;
    if (size + SLACK > coder->payload_bytes)
        return CODER_LONG;
    memcpy(coder->payload, payload, size);
    memset(coder->payload + size, 0, SLACK);
    const uint8_t *at = coder->payload + header, *end = coder->payload + size;
    lane_state lane[MAX_LANES];
    for (uint32_t l = 0; l < lanes; l++) {
        size_t left = (size_t)(end - at);
        size_t length = l + 1 < lanes ? load_length(payload + (size_t)width * l, width) : left;
        if (length > left)
            return CODER_SHORT;
        lane[l].at = at;
        lane[l].end = at += length;
        lane[l].channel = lane_start(shape, l);
        lane[l].stop = lane_start(shape, l + 1);
        lane[l].bad = 0;
        enum coder_error error = read_state(&lane[l].at, lane[l].end, &lane[l].state);
        if (error)
            return error;
        open_channel(&lane[l], coder, symbols);
    }
    if (!decode_lanes(lane, lanes, coder, symbols))
        return CODER_TOKEN;
    for (uint32_t l = 0; l < lanes; l++) {
        if (lane[l].at < lane[l].end)
            return CODER_LONG;
        if (lane[l].state != 1 || lane[l].bad)
            return CODER_PADDING;
    }
    return CODER_OK;
}

TARGET_X86_64_V3 static enum coder_error decode_v3(const rans_coder *coder, const uint8_t *payload, size_t size,
                                                uint8_t *symbols)
{
    return decode(coder, payload, size, symbols);
}

enum coder_error rans_decode(const rans_coder *coder, const uint8_t *payload, size_t size, uint8_t *symbols)
{
    return HAVE_X86_64_V3 ? decode_v3(coder, payload, size, symbols) : decode(coder, payload, size, symbols);
}
#endif
