/* libFuzzer target: payloads and symbols of a context model that the input chooses. */
#include "fuzz.h"

DEFINE_CHECKS(context)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    uint32_t channels = 1 + draw(&in) % 9, height = 1 + draw(&in) % 9, width = 1 + draw(&in) % 9;
    uint32_t reach = 1 + draw(&in) % MAX_CONTEXT_REACH, steep = draw(&in), mode = draw(&in);
    generator g = seeded(&in);
    size_t bytes = context_model_bytes(channels, height, width, reach), count = (size_t)channels * height * width;
    uint8_t *model = malloc(bytes);
    REQUIRE(model);
    /* Small numbers of either sign, or all that there are; every byte may be any. */
    for (size_t i = 0; i < bytes; i++)
        model[i] = (uint8_t)(steep > 200 ? next(&g) : next(&g) % (1 + steep / 8) - steep / 16);
    for (uint32_t c = 0; c < channels; c++)
        model[c] = (uint8_t)(mode + c % 3);
    context_coder *coder = context_create(channels, height, width, reach, model);
    REQUIRE(coder);
    free(model);
    check_payload(coder, count, in.at, in.left);
    uint8_t *symbols = draw_symbols(&in, count);
    if (draw(&in) & 1) /* near the modes */
        for (size_t i = 0; i < count; i++)
            symbols[i] = (uint8_t)(symbols[i] % 4 + mode);
    check_symbols(coder, count, symbols, &in);
    check_payload(coder, count, in.at, in.left);
    free(symbols);
    context_destroy(coder);
    return 0;
}
