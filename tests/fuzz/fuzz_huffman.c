/* libFuzzer target: Huffman payloads and symbols, for shapes and tables that the input chooses. */
#include "fuzz.h"

DEFINE_CHECKS(huffman)

/* Leaves of a code tree, split until there are 256: any complete code of 1 ... 15 bits can come of it. */
static void draw_lengths(input *in, uint8_t *lengths)
{
    uint32_t steepness = draw(in);
    generator g = seeded(in);
    uint32_t leaves = 2;
    lengths[0] = lengths[1] = 1;
    while (leaves < SYMBOLS) {
        uint32_t i = next(&g) % 256 < steepness ? leaves - 1 : next(&g) % leaves;
        while (lengths[i] == MAX_CODE_LENGTH)
            i = (i + 1) % leaves;
        lengths[leaves++] = ++lengths[i];
    }
    for (uint32_t i = SYMBOLS - 1; i > 0; i--) {
        uint32_t j = next(&g) % (i + 1);
        uint8_t length = lengths[i];
        lengths[i] = lengths[j];
        lengths[j] = length;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    coder_shape shape = draw_shape(&in);
    uint32_t tables = 1 + draw(&in) % 3, hostile = draw(&in) == 255;
    uint8_t *lengths = malloc((size_t)tables * SYMBOLS);
    uint16_t *of_channel = malloc(shape.channels * sizeof *of_channel);
    REQUIRE(lengths && of_channel);
    for (uint32_t i = 0; i < tables; i++)
        draw_lengths(&in, lengths + (size_t)i * SYMBOLS);
    if (hostile)
        lengths[draw_below(&in, tables * SYMBOLS)] = (uint8_t)draw(&in);
    uint32_t map = draw(&in);
    for (uint32_t c = 0; c < shape.channels; c++)
        of_channel[c] = (uint16_t)((c * map >> 2) % tables);
    huffman_coder *coder = huffman_create(shape, lengths, tables, of_channel);
    free(lengths);
    free(of_channel);
    REQUIRE(coder || hostile);
    if (coder) {
        size_t count = symbols_of(&shape);
        check_payload(coder, count, in.at, in.left);
        uint8_t *symbols = draw_symbols(&in, count);
        check_symbols(coder, count, symbols, &in);
        check_payload(coder, count, in.at, in.left); /* over what a longer payload left behind */
        free(symbols);
        huffman_destroy(coder);
    }
    return 0;
}
