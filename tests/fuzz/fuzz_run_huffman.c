/* libFuzzer target: payloads and symbols of Huffman codes over runs, for shapes and tables that the input chooses. */
#include "fuzz.h"

DEFINE_CHECKS(run_huffman)

enum { LONGEST_TABLE = MAX_HUFFMAN_RUNS * SYMBOLS + 1 };

/* Leaves of a code tree, split until there are `count`: any complete code of 1 ... 15 bits can come of it. */
static void draw_lengths(input *in, uint8_t *lengths, uint32_t count)
{
    uint32_t steepness = draw(in);
    generator g = seeded(in);
    uint32_t leaves = 2;
    lengths[0] = lengths[1] = 1;
    while (leaves < count) {
        uint32_t i = next(&g) % 256 < steepness ? leaves - 1 : next(&g) % leaves;
        while (lengths[i] == MAX_CODE_LENGTH)
            i = (i + 1) % leaves;
        lengths[leaves++] = ++lengths[i];
    }
    if (draw(in) & 1) /* or the shortest codes first, as is likely */
        for (uint32_t i = count - 1; i > 0; i--) {
            uint32_t j = next(&g) % (i + 1);
            uint8_t length = lengths[i];
            lengths[i] = lengths[j];
            lengths[j] = length;
        }
}

/* A table with each row's escape, FULL, and as many of the other tokens as the input says. */
static void draw_table(input *in, run_huffman_table *table, uint8_t *lengths)
{
    static const uint32_t runs[] = {1, 1, 2, 3, 4, 8, 16, 33, MAX_HUFFMAN_RUNS};
    static const uint32_t columns[] = {1, 2, 3, 5, 9, 17, 64, 255, 256};
    static uint8_t drawn[LONGEST_TABLE];
    table->runs = runs[draw(in) % 9];
    table->columns = table->runs == 1 ? SYMBOLS : columns[draw(in) % 9];
    table->order = table->runs == 1 ? 0 : draw(in) % (MAX_LITERAL_ORDER + 1);
    table->lengths = lengths;
    uint32_t share = draw(in), cells = table->runs * table->columns + (table->runs > 1), count = 0;
    generator g = seeded(in);
    memset(lengths, 0, LONGEST_TABLE);
    for (uint32_t cell = 0; cell < cells; cell++) {
        int needed = table->runs == 1 || cell % table->columns == 0 || cell + 1 == cells;
        if (needed || next(&g) % 256 < share) {
            lengths[cell] = 1;
            count++;
        }
    }
    draw_lengths(in, drawn, count);
    for (uint32_t cell = cells; cell-- > 0;)
        if (lengths[cell])
            lengths[cell] = drawn[--count];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    coder_shape shape = draw_shape(&in);
    uint32_t tables = 1 + draw(&in) % 3, hostile = draw(&in) >= 250;
    run_huffman_table table[3];
    uint8_t *lengths = malloc((size_t)tables * LONGEST_TABLE), *modes = malloc(shape.channels);
    uint16_t *of_channel = malloc(shape.channels * sizeof *of_channel);
    REQUIRE(lengths && modes && of_channel);
    for (uint32_t i = 0; i < tables; i++)
        draw_table(&in, &table[i], lengths + (size_t)i * LONGEST_TABLE);
    if (hostile)
        switch (draw(&in) % 4) {
        case 0: table[0].runs = draw(&in) % (MAX_HUFFMAN_RUNS + 1); break;
        case 1: table[0].columns = draw_below(&in, SYMBOLS + 1); break;
        case 2: table[0].order = draw(&in); break;
        default: lengths[draw_below(&in, LONGEST_TABLE)] = (uint8_t)draw(&in); break;
        }
    uint32_t map = draw(&in), mode = draw(&in), spread = draw(&in);
    for (uint32_t c = 0; c < shape.channels; c++) {
        of_channel[c] = (uint16_t)((c * map >> 2) % tables);
        modes[c] = (uint8_t)(mode + c * (spread & 3));
    }
    run_huffman_coder *coder = run_huffman_create(shape, table, tables, of_channel, modes);
    free(lengths);
    free(of_channel);
    REQUIRE(coder || hostile);
    if (coder) {
        size_t count = symbols_of(&shape);
        check_payload(coder, count, in.at, in.left);
        uint8_t *symbols = draw_symbols(&in, count);
        if (draw(&in) & 1) /* near the modes */
            for (size_t i = 0; i < count; i++)
                symbols[i] = (uint8_t)(modes[i / shape.plane] + symbols[i] % 5 - 2);
        check_symbols(coder, count, symbols, &in);
        check_payload(coder, count, in.at, in.left); /* over what a longer payload left behind */
        free(symbols);
        run_huffman_destroy(coder);
    }
    free(modes);
    return 0;
}
