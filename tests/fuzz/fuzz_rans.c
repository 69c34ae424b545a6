/* libFuzzer target: rANS payloads and symbols, for shapes and tables that the input chooses. */
#include "fuzz.h"

DEFINE_CHECKS(rans)

/* Each run's escape, FULL, and as many symbols as the input says; frequencies from flat to one that has all. */
static void draw_table(input *in, rans_table *table)
{
    static const uint32_t runs[] = {1, 1, 1, 2, 3, 4, 8, 16, 127, 128};
    memset(table, 0, sizeof *table);
    table->runs = runs[draw(in) % 10];
    table->mode = (uint8_t)draw(in);
    uint32_t wanted = draw(in), share = draw(in), tokens = 0;
    generator g = seeded(in);
    uint8_t seen[128][SYMBOLS] = {{0}};
    int all = table->runs == 1 && wanted == 255;
    if (!all) {
        for (uint32_t run = 0; run < table->runs; run++)
            table->token[tokens++] = (rans_token){1, (uint8_t)run, 0, TOKEN_ESCAPE};
        if (table->runs > 1)
            table->token[tokens++] = (rans_token){1, (uint8_t)(table->runs - 1), table->mode, TOKEN_FULL};
    }
    for (uint32_t i = 0; tokens < SYMBOLS && i < (all ? SYMBOLS : wanted); i++) {
        uint32_t run = next(&g) % table->runs;
        uint8_t symbol = (uint8_t)(all ? i : next(&g) % 16 + table->mode);
        if (seen[run][symbol]++ || (table->runs > 1 && symbol == table->mode))
            continue;
        table->token[tokens++] = (rans_token){1, (uint8_t)run, symbol, TOKEN_SYMBOL};
    }
    table->tokens = tokens;
    uint32_t left = RANS_TOTAL - tokens, favourite = next(&g) % tokens;
    for (uint32_t i = 0; i < tokens && left; i++) {
        uint32_t more = next(&g) % (1 + left * share / 256 / 8);
        table->token[i].frequency = (uint16_t)(1 + more);
        left -= more;
    }
    table->token[favourite].frequency = (uint16_t)(table->token[favourite].frequency + left);
    for (uint32_t i = tokens - 1; i > 0; i--) {
        uint32_t j = next(&g) % (i + 1);
        rans_token token = table->token[i];
        table->token[i] = table->token[j];
        table->token[j] = token;
    }
}

/* One value of a table changed. */
static void damage(input *in, rans_table *table)
{
    rans_token *token = &table->token[draw(in)];
    switch (draw(in) % 7) {
    case 0: table->tokens = draw_below(in, 65536); break;
    case 1: table->runs = draw_below(in, 65536); break;
    case 2: table->mode = (uint8_t)draw(in); break;
    case 3: token->frequency = (uint16_t)draw_below(in, 65536); break;
    case 4: token->run = (uint8_t)draw(in); break;
    case 5: token->symbol = (uint8_t)draw(in); break;
    default: token->kind = (uint8_t)draw(in); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    coder_shape shape = draw_shape(&in);
    uint32_t tables = 1 + draw(&in) % 3, hostile = draw(&in) >= 250;
    rans_table *table = malloc(tables * sizeof *table);
    uint16_t *of_channel = malloc(shape.channels * sizeof *of_channel);
    REQUIRE(table && of_channel);
    for (uint32_t i = 0; i < tables; i++)
        draw_table(&in, &table[i]);
    if (hostile)
        damage(&in, &table[draw(&in) % tables]);
    uint32_t map = draw(&in);
    for (uint32_t c = 0; c < shape.channels; c++)
        of_channel[c] = (uint16_t)((c * map >> 2) % tables);
    rans_coder *coder = rans_create(shape, table, tables, of_channel);
    REQUIRE(coder || hostile);
    if (coder) {
        size_t count = symbols_of(&shape);
        check_payload(coder, count, in.at, in.left);
        uint8_t *symbols = draw_symbols(&in, count);
        if (draw(&in) & 1) /* near the tables' own symbols */
            for (size_t i = 0; i < count; i++)
                symbols[i] = (uint8_t)(symbols[i] % 4 + table->mode);
        check_symbols(coder, count, symbols, &in);
        check_payload(coder, count, in.at, in.left);
        free(symbols);
        rans_destroy(coder);
    }
    free(table);
    free(of_channel);
    return 0;
}
