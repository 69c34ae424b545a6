/* rANS whose frequencies follow what has been coded; see coder.h for the rules, ans.h for a payload's bytes,
 * context.h for the model.
 *
 * One lane: each symbol's frequencies depend on the symbols before it, so nothing can be done side by side. */
#include "context.h"

#include <stdlib.h>

enum {
    CONTEXT_BITS = 14, /* of the slots that a symbol's classes share; fewer for the last ones */
    LAST_BITS = 8,
    LITERAL_BITS = 8,
    NEAR = 2,   /* how far from its mode a symbol is still distinguished by those after it */
    MAX_CLASSES = 2 * MAX_CONTEXT_REACH + 2,
};

/* 2^16 * 2^(-i/32). */
static const uint32_t POWERS[32] = {
    65536, 64132, 62757, 61413, 60097, 58809, 57549, 56316, 55109, 53928, 52773, 51642, 50535, 49452, 48393, 47356,
    46341, 45348, 44376, 43425, 42495, 41584, 40693, 39821, 38968, 38133, 37316, 36516, 35734, 34968, 34219, 33486,
};

static size_t symbols_of(const context_coder *coder)
{
    return (size_t)coder->channels * coder->height * coder->width;
}

#ifndef OFFRAMP_NO_HEAP
size_t context_model_bytes(uint32_t channels, uint32_t height, uint32_t width, uint32_t reach)
{
    return (size_t)channels * (1 + 2 * (2 * reach + 2) + 2 * height + 2 * width + 4 * (AROUND + 1) * channels);
}

context_coder *context_create(uint32_t channels, uint32_t height, uint32_t width, uint32_t reach,
                              const uint8_t *model)
{
    context_coder *coder = calloc(1, sizeof *coder);
    if (!coder)
        return NULL;
    size_t symbols = (size_t)channels * height * width, classes = 2 * reach + 2;
    size_t bytes = context_model_bytes(channels, height, width, reach);
    coder->channels = channels;
    coder->height = height;
    coder->width = width;
    coder->reach = (int32_t)reach;
    coder->inputs = 2 * (AROUND + 1) * channels;
    coder->model = malloc(bytes);
    coder->base = malloc(channels * classes * sizeof *coder->base);
    coder->weights = malloc((size_t)channels * 2 * coder->inputs * sizeof *coder->weights);
    coder->near = calloc((size_t)(height + 1) * (width + 2) * channels, sizeof *coder->near);
    coder->around = malloc(coder->inputs * sizeof *coder->around);
    coder->payload = malloc(symbols + SLACK);
    coder->steps = malloc(2 * symbols * sizeof *coder->steps);
    coder->words = malloc((2 * symbols + 1) * sizeof *coder->words);
    if (!coder->model || !coder->base || !coder->weights || !coder->near || !coder->around || !coder->payload ||
        !coder->steps || !coder->words) {
        context_destroy(coder);
        return NULL;
    }
    memcpy(coder->model, model, bytes);
    const uint8_t *at = coder->model;
    coder->mode = at;
    at += channels;
    for (size_t i = 0; i < channels * classes; i++, at += 2)
        coder->base[i] = (int16_t)(at[0] | at[1] << 8);
    coder->rows = (const int8_t *)at;
    coder->columns = coder->rows + (size_t)channels * height * 2;
    const int8_t *weights = coder->columns + (size_t)channels * width * 2;
    for (size_t i = 0; i < (size_t)channels * 2 * coder->inputs; i++)
        coder->weights[i] = weights[i];
    return coder;
}

void context_destroy(context_coder *coder)
{
    if (!coder)
        return;
    free(coder->model);
    free(coder->base);
    free(coder->weights);
    free(coder->near);
    free(coder->around);
    free(coder->payload);
    free(coder->steps);
    free(coder->words);
    free(coder);
}

size_t context_bound(const context_coder *coder)
{
    return symbols_of(coder) * 4 + 8;
}

#endif

/* What is around a place, all channels; its own are not there yet. */
ALWAYS_INLINE void look_around(const context_coder *coder, const int16_t *place)
{
    size_t channels = coder->channels, row = (coder->width + 2) * channels, part = channels * sizeof(int16_t);
    int16_t *around = coder->around, *sizes = around + (AROUND + 1) * channels;
    memcpy(around, place - channels, part);
    memcpy(around + channels, place - row, part);
    memcpy(around + 2 * channels, place - row - channels, part);
    memcpy(around + 3 * channels, place - row + channels, part);
    memset(around + AROUND * channels, 0, part);
    for (size_t i = 0; i < (AROUND + 1) * channels; i++)
        sizes[i] = (int16_t)(around[i] < 0 ? -around[i] : around[i]);
}

ALWAYS_INLINE int32_t dot(const int16_t *weights, const int16_t *inputs, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += weights[i] * inputs[i];
    return sum;
}

/* Bits of the slots of a symbol with so many behind it. */
ALWAYS_INLINE uint32_t bits_at(size_t left)
{
    return left / 2 < CONTEXT_BITS - LAST_BITS ? LAST_BITS + (uint32_t)left / 2 : CONTEXT_BITS;
}

/* Slots of each class, k = 0, -1, 1, -2, 2 ... and the escape, of a channel's symbol at a place. */
ALWAYS_INLINE void predict(const context_coder *coder, uint32_t channel, uint32_t row, uint32_t column, uint32_t bits,
                           uint16_t *slots)
{
    const int16_t *weights = coder->weights + (size_t)channel * 2 * coder->inputs;
    const int8_t *of_row = coder->rows + ((size_t)channel * coder->height + row) * 2;
    const int8_t *of_column = coder->columns + ((size_t)channel * coder->width + column) * 2;
    int32_t m = dot(weights, coder->around, coder->inputs) + of_row[0] + of_column[0];
    int32_t s = dot(weights + coder->inputs, coder->around, coder->inputs) + of_row[1] + of_column[1];
    int32_t reach = coder->reach, classes = 2 * reach + 2, top = INT32_MIN, likeliest = 0;
    const int16_t *base = coder->base + (size_t)channel * (size_t)classes;
    int32_t logits[MAX_CLASSES];
    uint32_t sizes[MAX_CLASSES], total = 0, left = 1u << bits, spare = left - (uint32_t)classes;
    for (int32_t i = 0; i < classes; i++) {
        /* The escape is one step past the reach, on both sides. */
        int32_t size = (i + 1) / 2, k = i > 2 * reach ? 0 : i % 2 ? -size : size;
        logits[i] = base[i] + k * m + size * s;
        if (logits[i] > top) {
            top = logits[i];
            likeliest = i;
        }
    }
    for (int32_t i = 0; i < classes; i++) {
        uint32_t below = (uint32_t)top - (uint32_t)logits[i];
        sizes[i] = below >> 5 > 16 ? 0 : POWERS[below & 31] >> (below >> 5);
        total += sizes[i];
    }
    for (int32_t i = 0; i < classes; i++) {
        slots[i] = (uint16_t)(1 + sizes[i] * spare / total);
        left -= slots[i];
    }
    slots[likeliest] = (uint16_t)(slots[likeliest] + left);
}

/* A symbol is k from its mode: for those at its own place that come later, and for all places behind. */
ALWAYS_INLINE void add(const context_coder *coder, int16_t *place, uint32_t channel, int32_t k)
{
    int16_t near = (int16_t)(k > NEAR ? NEAR : k < -NEAR ? -NEAR : k);
    int16_t *own = coder->around + AROUND * coder->channels;
    place[channel] = own[channel] = near;
    own[(AROUND + 1) * coder->channels + channel] = (int16_t)(near < 0 ? -near : near);
}

ALWAYS_INLINE int16_t *place_at(const context_coder *coder, uint32_t row, uint32_t column)
{
    return coder->near + ((size_t)(row + 1) * (coder->width + 2) + column + 1) * coder->channels;
}

ALWAYS_INLINE size_t encode(const context_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    size_t plane = (size_t)coder->height * coder->width;
    size_t left = symbols_of(coder);
    step *next = coder->steps;
    uint16_t slots[MAX_CLASSES];
    for (uint32_t row = 0; row < coder->height; row++)
        for (uint32_t column = 0; column < coder->width; column++) {
            int16_t *place = place_at(coder, row, column);
            look_around(coder, place);
            for (uint32_t channel = 0; channel < coder->channels; channel++) {
                uint8_t symbol = symbols[channel * plane + (size_t)row * coder->width + column];
                int32_t k = symbol - coder->mode[channel], reach = coder->reach;
                int escapes = k < -reach || k > reach;
                int32_t class = escapes ? 2 * reach + 1 : k < 0 ? -2 * k - 1 : 2 * k;
                uint32_t start = 0, bits = bits_at(--left);
                predict(coder, channel, row, column, bits, slots);
                for (int32_t i = 0; i < class; i++)
                    start += slots[i];
                *next++ = (step){slots[class], (uint16_t)start, (uint8_t)bits};
                if (escapes)
                    *next++ = (step){1, symbol, LITERAL_BITS};
                add(coder, place, channel, k);
            }
        }
    uint16_t *end = coder->words + 2 * symbols_of(coder) + 1, *word = end;
    uint32_t state = 1;
    while (next > coder->steps) {
        uint32_t frequency = (--next)->frequency;
        if (state >> 16 >= frequency << (16 - next->bits)) {
            *--word = (uint16_t)state;
            state >>= 16;
        }
        state = ((state / frequency) << next->bits) + state % frequency + next->start;
    }
    return (size_t)(write_lane(payload, state, word, end) - payload);
}

TARGET_X86_64_V3 static size_t encode_v3(const context_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return encode(coder, symbols, payload);
}

size_t context_encode(const context_coder *coder, const uint8_t *symbols, uint8_t *payload)
{
    return HAVE_X86_64_V3 ? encode_v3(coder, symbols, payload) : encode(coder, symbols, payload);
}

#ifndef OFFRAMP_NO_HEAP
ALWAYS_INLINE enum coder_error decode(const context_coder *coder, const uint8_t *payload, size_t size,
                                      uint8_t *symbols)
{
    if (size > symbols_of(coder))
        return CODER_LONG;
    memcpy(coder->payload, payload, size);
    memset(coder->payload + size, 0, SLACK);
    const uint8_t *at = coder->payload, *end = at + size;
    uint32_t state, bad = 0;
    enum coder_error error = read_state(&at, end, &state);
    if (error)
        return error;
    size_t plane = (size_t)coder->height * coder->width, left = symbols_of(coder);
    uint16_t slots[MAX_CLASSES];
    for (uint32_t row = 0; row < coder->height; row++)
        for (uint32_t column = 0; column < coder->width; column++) {
            int16_t *place = place_at(coder, row, column);
            look_around(coder, place);
            for (uint32_t channel = 0; channel < coder->channels; channel++) {
                uint32_t bits = bits_at(--left), offset = state & ((1u << bits) - 1);
                predict(coder, channel, row, column, bits, slots);
                int32_t class = 0, mode = coder->mode[channel], reach = coder->reach;
                while (offset >= slots[class])
                    offset -= slots[class++];
                state = slots[class] * (state >> bits) + offset;
                REFILL(state, at, end, bad);
                int32_t symbol = mode + (class % 2 ? -(class + 1) / 2 : class / 2);
                if (class > 2 * reach) {
                    symbol = (int32_t)(state & ((1u << LITERAL_BITS) - 1));
                    state >>= LITERAL_BITS;
                    REFILL(state, at, end, bad);
                    if (symbol >= mode - reach && symbol <= mode + reach)
                        return CODER_TOKEN;
                } else if (symbol < 0 || symbol >= SYMBOLS) {
                    return CODER_TOKEN;
                }
                symbols[channel * plane + (size_t)row * coder->width + column] = (uint8_t)symbol;
                add(coder, place, channel, symbol - mode);
            }
        }
    if (at < end)
        return CODER_LONG;
    return state != 1 || bad ? CODER_PADDING : CODER_OK;
}

TARGET_X86_64_V3 static enum coder_error decode_v3(const context_coder *coder, const uint8_t *payload, size_t size,
                                                uint8_t *symbols)
{
    return decode(coder, payload, size, symbols);
}

enum coder_error context_decode(const context_coder *coder, const uint8_t *payload, size_t size, uint8_t *symbols)
{
    return HAVE_X86_64_V3 ? decode_v3(coder, payload, size, symbols) : decode(coder, payload, size, symbols);
}
#endif
