/* What the fuzz targets share: values drawn from the input, and the properties that must hold.
 *
 * All memory that a coder is given has just the size it may use, so that AddressSanitizer sees one byte too far. */
#ifndef OFFRAMP_FUZZ_H
#define OFFRAMP_FUZZ_H

#include "../../common/codec/kernel/coder.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition)                                                                                     \
    do {                                                                                                       \
        if (!(condition))                                                                                      \
            abort();                                                                                           \
    } while (0)

/* The input from the front; zeros once it is used up. */
typedef struct {
    const uint8_t *at;
    size_t left;
} input;

static inline uint32_t draw(input *in)
{
    if (!in->left)
        return 0;
    in->left--;
    return *in->at++;
}

static inline uint32_t draw_below(input *in, uint32_t limit)
{
    return (draw(in) | draw(in) << 8) % limit;
}

/* Tables are far longer than a fuzzer's inputs: a few bytes of the input choose one (splitmix64). */
typedef struct {
    uint64_t state;
} generator;

static inline uint32_t next(generator *g)
{
    uint64_t z = g->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)(z >> 32);
}

static inline generator seeded(input *in)
{
    return (generator){draw(in) | draw(in) << 8};
}

static inline coder_shape draw_shape(input *in)
{
    /* Around every limit of the decoders' loops, and past the one at which lane lengths take 4 bytes. */
    static const uint32_t planes[] = {1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 47, 64, 100, 257};
    coder_shape shape;
    shape.channels = 1 + draw(in) % 17;
    uint32_t plane = draw(in);
    shape.plane = planes[plane % 15];
    shape.lanes = 1 + draw(in) % MAX_LANES;
    if (plane == 255 && draw(in) == 255) { /* seldom, for it is slow */
        shape.plane = 70000;
        shape.channels = 1 + shape.channels % 2;
    }
    if (shape.lanes > shape.channels)
        shape.lanes = shape.channels;
    return shape;
}

static inline size_t symbols_of(const coder_shape *shape)
{
    return (size_t)shape->channels * shape->plane;
}

/* The rest of the input as symbols, again and again, some of them replaced by ones that are likely. */
static inline uint8_t *draw_symbols(input *in, size_t count)
{
    uint8_t *symbols = malloc(count);
    REQUIRE(symbols);
    uint32_t likely = draw(in), share = draw(in);
    generator g = {likely << 8 | share};
    for (size_t i = 0; i < count; i++)
        symbols[i] = (uint8_t)(next(&g) % 256 < share || !in->left ? likely : in->at[i % in->left]);
    return symbols;
}

/* The properties, for a coder called NAME: what is encoded comes back, the encoder keeps to its bound, and the
 * decoder takes only what the encoder writes. */
#define DEFINE_CHECKS(NAME)                                                                                    \
    static uint8_t *encoded(const NAME##_coder *coder, const uint8_t *symbols, size_t *size)                   \
    {                                                                                                          \
        uint8_t *payload = malloc(NAME##_bound(coder));                                                        \
        REQUIRE(payload);                                                                                      \
        *size = NAME##_encode(coder, symbols, payload);                                                        \
        REQUIRE(*size <= NAME##_bound(coder));                                                                 \
        return payload;                                                                                        \
    }                                                                                                          \
    static enum coder_error decode_exactly(const NAME##_coder *coder, const uint8_t *payload, size_t size,     \
                                           uint8_t *symbols)                                                   \
    {                                                                                                          \
        uint8_t *copy = malloc(size ? size : 1);                                                               \
        REQUIRE(copy);                                                                                         \
        if (size)                                                                                              \
            memcpy(copy, payload, size);                                                                       \
        enum coder_error error = NAME##_decode(coder, copy, size, symbols);                                    \
        free(copy);                                                                                            \
        return error;                                                                                          \
    }                                                                                                          \
    static void check_payload(const NAME##_coder *coder, size_t count, const uint8_t *payload, size_t size)    \
    {                                                                                                          \
        uint8_t *symbols = malloc(count);                                                                      \
        REQUIRE(symbols);                                                                                      \
        if (decode_exactly(coder, payload, size, symbols) == CODER_OK) {                                       \
            size_t again_size;                                                                                 \
            uint8_t *again = encoded(coder, symbols, &again_size);                                             \
            REQUIRE(again_size == size && !memcmp(again, payload, size));                                      \
            free(again);                                                                                       \
        }                                                                                                      \
        free(symbols);                                                                                         \
    }                                                                                                          \
    static void check_symbols(const NAME##_coder *coder, size_t count, const uint8_t *symbols, input *in)      \
    {                                                                                                          \
        size_t size;                                                                                           \
        uint8_t *payload = encoded(coder, symbols, &size);                                                     \
        if (size <= count) {                                                                                   \
            uint8_t *decoded = malloc(count);                                                                  \
            REQUIRE(decoded);                                                                                  \
            REQUIRE(decode_exactly(coder, payload, size, decoded) == CODER_OK);                                \
            REQUIRE(!memcmp(decoded, symbols, count));                                                         \
            free(decoded);                                                                                     \
            check_payload(coder, count, payload, size - 1);                                                    \
            payload[draw_below(in, (uint32_t)size)] ^= (uint8_t)(1u << draw(in) % 8);                          \
            check_payload(coder, count, payload, size);                                                        \
        }                                                                                                      \
        free(payload);                                                                                         \
    }

#endif
