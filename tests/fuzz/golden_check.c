/* Checks the golden vectors without Python, so that it can run on any CPU: test_portable.py writes one line a
 * vector to its input, "kind channels height width lanes coded tables map symbols payload", the last four in
 * hex; of run-huffman the modes stand behind the tables.
 *
 * A vector that was sent raw is encoded too: its payload must be no shorter than the symbols. */
#include "../../common/codec/kernel/coder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST = 1 << 16 };

typedef struct {
    uint8_t bytes[LONGEST];
    size_t size;
} field;

static int hex_digit(int c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int read_field(field *f)
{
    int c = getchar(), high;
    while (c == ' ')
        c = getchar();
    for (f->size = 0; (high = hex_digit(c)) >= 0 && f->size < LONGEST; c = getchar())
        f->bytes[f->size++] = (uint8_t)(high << 4 | hex_digit(getchar()));
    return c == ' ' || c == '\n';
}

/* The tables as a bundle stores them: two code lengths a byte. */
static huffman_coder *make_huffman(coder_shape shape, const field *stored, const uint16_t *of_channel)
{
    uint8_t *lengths = malloc(stored->size * 2);
    for (size_t i = 0; i < stored->size; i++) {
        lengths[2 * i] = stored->bytes[i] & 15;
        lengths[2 * i + 1] = stored->bytes[i] >> 4;
    }
    huffman_coder *coder =
        huffman_create(shape, lengths, (uint32_t)(stored->size * 2 / SYMBOLS), of_channel);
    free(lengths);
    return coder;
}

/* Runs, mode, number of tokens; then run, symbol, and kind and frequency of each. */
static rans_coder *make_rans(coder_shape shape, const field *stored, const uint16_t *of_channel)
{
    rans_table *tables = calloc(shape.channels, sizeof *tables);
    uint32_t count = 0;
    for (const uint8_t *p = stored->bytes, *end = p + stored->size; p < end; count++) {
        rans_table *table = &tables[count];
        table->runs = p[0];
        table->mode = p[1];
        table->tokens = p[2] | (uint32_t)p[3] << 8;
        p += 4;
        for (uint32_t i = 0; i < table->tokens; i++, p += 4) {
            uint32_t packed = p[2] | (uint32_t)p[3] << 8;
            table->token[i] = (rans_token){packed & 0x3FFF, p[0], p[1], (uint8_t)(packed >> 14)};
        }
    }
    rans_coder *coder = rans_create(shape, tables, count, of_channel);
    free(tables);
    return coder;
}

static field modes;

/* Tables as the module takes them: runs, columns - 1, order, and then the lengths, a byte each. */
static run_huffman_coder *make_run_huffman(coder_shape shape, const field *stored, const uint16_t *of_channel)
{
    run_huffman_table *tables = calloc(shape.channels, sizeof *tables);
    uint32_t count = 0;
    for (const uint8_t *p = stored->bytes, *end = p + stored->size; p < end; count++) {
        run_huffman_table *table = &tables[count];
        *table = (run_huffman_table){p[0], p[1] + 1u, p[2], p + 3};
        p += 3 + table->runs * table->columns + (table->runs > 1);
    }
    run_huffman_coder *coder = run_huffman_create(shape, tables, count, of_channel, modes.bytes);
    free(tables);
    return coder;
}

static uint32_t height, width;

/* A reach, and then the model. */
static context_coder *make_context(coder_shape shape, const field *stored, const uint16_t *of_channel)
{
    (void)of_channel;
    if (stored->size != 1 + context_model_bytes(shape.channels, height, width, stored->bytes[0]))
        return NULL;
    return context_create(shape.channels, height, width, stored->bytes[0], stored->bytes + 1);
}

static int check(size_t size, const uint8_t *found, int coded, const field *symbols, const field *payload)
{
    if (!coded)
        return size >= symbols->size;
    return size == payload->size && !memcmp(found, payload->bytes, size);
}

#define CHECK(NAME)                                                                                            \
    do {                                                                                                       \
        NAME##_coder *coder = make_##NAME(shape, &tables, of_channel);                                         \
        uint8_t *found = malloc(coder ? NAME##_bound(coder) : 1), *decoded = malloc(symbols.size);             \
        good = coder && check(NAME##_encode(coder, symbols.bytes, found), found, coded, &symbols, &payload);   \
        if (good && coded)                                                                                     \
            good = !NAME##_decode(coder, payload.bytes, payload.size, decoded) &&                              \
                   !memcmp(decoded, symbols.bytes, symbols.size) &&                                            \
                   NAME##_decode(coder, payload.bytes, payload.size - 1, decoded) != CODER_OK;                 \
        free(found);                                                                                           \
        free(decoded);                                                                                         \
        NAME##_destroy(coder);                                                                                 \
    } while (0)

int main(void)
{
    static field tables, map, symbols, payload;
    static uint16_t of_channel[LONGEST];
    char kind[16];
    int coded, vectors = 0;
    coder_shape shape;
    while (scanf("%15s %u %u %u %u %d", kind, &shape.channels, &height, &width, &shape.lanes, &coded) == 6) {
        shape.plane = height * width;
        int with_modes = !strcmp(kind, "run-huffman");
        int good = read_field(&tables) && (!with_modes || read_field(&modes)) && read_field(&map) && read_field(&symbols) &&
                   read_field(&payload);
        for (size_t i = 0; i < map.size / 2; i++)
            of_channel[i] = (uint16_t)(map.bytes[2 * i] | map.bytes[2 * i + 1] << 8);
        if (good && !strcmp(kind, "huffman"))
            CHECK(huffman);
        else if (good && with_modes)
            CHECK(run_huffman);
        else if (good && !strcmp(kind, "context"))
            CHECK(context);
        else if (good)
            CHECK(rans);
        if (!good) {
            printf("vector %d differs\n", vectors);
            return 1;
        }
        vectors++;
    }
    printf("%d vectors\n", vectors);
    return 0;
}
