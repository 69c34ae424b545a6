/* The layers of a quantized network, a row of output at a time; offramp_steps is the order.
 *
 * The arithmetic is that of ONNX Runtime's integer kernels: sums of 32 bits, and then one multiplication in single
 * precision, rounded to the nearest and halves to even. Compile with -std=c11, or with -ffp-contract=off. */
#include "offramp_layers.h"
#include "offramp_model.h"

#include <float.h>
#include <math.h>
#include <string.h>

#ifdef OFFRAMP_LAYER_TICKS
#include "port.h"
uint32_t offramp_layer_ticks[OFFRAMP_LAYERS];
#endif

#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && !defined(OFFRAMP_PORTABLE)
#include <arm_acle.h>
#define HAVE_DSP
/* By a byte: bytes 1 and 3 come where 0 and 2 are unpacked. */
static inline uint32_t turned(uint32_t word)
{
    return word >> 8 | word << 24;
}
#endif

_Static_assert(FLT_EVAL_METHOD == 0, "float must be computed in single precision");
_Static_assert(sizeof(float) == 4 && FLT_MANT_DIG == 24, "float must be IEEE 754's binary32");

static const uint8_t *image;
static uint8_t *memory;
static uint16_t done[OFFRAMP_LAYERS];

/* Rounded to the nearest and halves to even, for |value| below 2^22: adding 1.5 * 2^23 leaves no bit for a fraction. */
static int32_t to_nearest(float value)
{
    const float shift = 12582912.0f;
    float shifted = value + shift;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4B400000;
}

static uint8_t to_byte(float value, float least, float most, int32_t zero)
{
    value = value < least ? least : value > most ? most : value;
    return (uint8_t)(to_nearest(value) + zero);
}

static uint8_t requantize(int32_t sum, float scale, int32_t zero)
{
    return to_byte((float)sum * scale, (float)-zero, (float)(255 - zero), zero);
}

static const uint8_t *row_of(uint32_t index, uint32_t row)
{
    const offramp_tensor *t = &offramp_tensors[index];
    size_t bytes = (size_t)t->width * t->channels * t->value_bytes;
    return index == OFFRAMP_IMAGE ? image + row * bytes : memory + t->at + row % t->rows * bytes;
}

static uint8_t *own_row(uint32_t index, uint32_t row)
{
    const offramp_tensor *t = &offramp_tensors[index];
    return memory + t->at + (size_t)(row % t->rows) * t->width * t->channels * t->value_bytes;
}

/* Two sums at once, of two rows of weights with the same inputs: what takes time in a network. */
static void dot_pair(const int8_t *first, const int8_t *second, const uint8_t *inputs, size_t n, int32_t sums[2])
{
    int32_t a = sums[0], b = sums[1];
#ifdef HAVE_DSP
    for (; n >= 4; n -= 4, first += 4, second += 4, inputs += 4) {
        int8x4_t v, w;
        uint8x4_t x;
        memcpy(&v, first, 4);
        memcpy(&w, second, 4);
        memcpy(&x, inputs, 4);
        int16x2_t even = (int16x2_t)__uxtb16(x), odd = (int16x2_t)__uxtb16(turned(x));
        a = __smlad(__sxtb16(v), even, a);
        b = __smlad(__sxtb16(w), even, b);
        a = __smlad(__sxtb16((int8x4_t)turned((uint32_t)v)), odd, a);
        b = __smlad(__sxtb16((int8x4_t)turned((uint32_t)w)), odd, b);
    }
#endif
    for (; n; n--, first++, second++, inputs++) {
        a += *first * *inputs;
        b += *second * *inputs;
    }
    sums[0] = a;
    sums[1] = b;
}

/* The pixels below one kernel as one run of bytes: where they lie, or gathered with the zero point around them. */
static const uint8_t *patch_of(const offramp_layer *l, uint32_t row, uint32_t column)
{
    const offramp_tensor *in = &offramp_tensors[l->input];
    size_t bytes = (size_t)in->channels * in->value_bytes;
    int32_t top = (int32_t)(row * l->stride_y) - l->pad_top, left = (int32_t)(column * l->stride_x) - l->pad_left;
    if (l->kernel_height == 1 && l->kernel_width == 1)
        return row_of(l->input, (uint32_t)top) + (size_t)left * bytes;
    uint8_t *at = memory + OFFRAMP_PATCH_AT;
    for (int32_t y = top; y < top + l->kernel_height; y++) {
        const uint8_t *line = y < 0 || y >= in->height ? NULL : row_of(l->input, (uint32_t)y);
        for (int32_t x = left; x < left + l->kernel_width; x++, at += bytes) {
            if (line && x >= 0 && x < in->width)
                memcpy(at, line + (size_t)x * bytes, bytes);
            else
                memset(at, l->input_zero, bytes);
        }
    }
    return memory + OFFRAMP_PATCH_AT;
}

static void conv_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *out = &offramp_tensors[l->output];
    size_t n = (size_t)l->kernel_height * l->kernel_width * offramp_tensors[l->input].channels;
    uint8_t *to = own_row(l->output, row);
    for (uint32_t column = 0; column < out->width; column++) {
        const uint8_t *patch = patch_of(l, row, column);
        const int8_t *weights = l->weights;
        for (uint32_t o = 0; o < out->channels; o += 2, weights += 2 * n) {
            int paired = o + 1u < out->channels;
            int32_t sums[2] = {l->bias[o], paired ? l->bias[o + 1] : 0};
            dot_pair(weights, paired ? weights + n : weights, patch, n, sums);
            *to++ = requantize(sums[0], l->scale[o], l->output_zero);
            if (paired)
                *to++ = requantize(sums[1], l->scale[o + 1], l->output_zero);
        }
    }
}

static void depthwise_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *in = &offramp_tensors[l->input], *out = &offramp_tensors[l->output];
    size_t channels = in->channels;
    const uint8_t *inputs[OFFRAMP_MOST_TAPS];
    const int8_t *weights[OFFRAMP_MOST_TAPS];
    int32_t top = (int32_t)(row * l->stride_y) - l->pad_top, zero = l->input_zero;
    uint8_t *to = own_row(l->output, row);
    for (uint32_t column = 0; column < out->width; column++) {
        int32_t left = (int32_t)(column * l->stride_x) - l->pad_left;
        uint32_t taps = 0;
        for (int32_t y = 0; y < l->kernel_height; y++) {
            if (top + y < 0 || top + y >= in->height)
                continue;
            const uint8_t *line = row_of(l->input, (uint32_t)(top + y));
            for (int32_t x = 0; x < l->kernel_width; x++) {
                if (left + x < 0 || left + x >= in->width)
                    continue;
                inputs[taps] = line + (size_t)(left + x) * channels;
                weights[taps++] = l->weights + (size_t)(y * l->kernel_width + x) * channels;
            }
        }
        size_t c = 0;
        for (; c + 4 <= channels; c += 4) {
            int32_t s0 = l->bias[c], s1 = l->bias[c + 1], s2 = l->bias[c + 2], s3 = l->bias[c + 3];
            for (uint32_t t = 0; t < taps; t++) {
                const uint8_t *x = inputs[t] + c;
                const int8_t *w = weights[t] + c;
                s0 += (x[0] - zero) * w[0];
                s1 += (x[1] - zero) * w[1];
                s2 += (x[2] - zero) * w[2];
                s3 += (x[3] - zero) * w[3];
            }
            to[c] = requantize(s0, l->scale[c], l->output_zero);
            to[c + 1] = requantize(s1, l->scale[c + 1], l->output_zero);
            to[c + 2] = requantize(s2, l->scale[c + 2], l->output_zero);
            to[c + 3] = requantize(s3, l->scale[c + 3], l->output_zero);
        }
        for (; c < channels; c++) {
            int32_t sum = l->bias[c];
            for (uint32_t t = 0; t < taps; t++)
                sum += (inputs[t][c] - zero) * weights[t][c];
            to[c] = requantize(sum, l->scale[c], l->output_zero);
        }
        to += channels;
    }
}

static void add_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *out = &offramp_tensors[l->output];
    const uint8_t *a = row_of(l->input, row), *b = row_of(l->other, row);
    uint8_t *to = own_row(l->output, row);
    size_t n = (size_t)out->width * out->channels;
    float ratio_a = l->scale[0], ratio_b = l->scale[1], fixed = l->scale[2];
    for (size_t i = 0; i < n; i++)
        to[i] = to_byte(fmaf((float)a[i], ratio_a, fmaf((float)b[i], ratio_b, fixed)), 0.0f, 255.0f, 0);
}

static void channels_first_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *out = &offramp_tensors[l->output];
    const uint8_t *from = row_of(l->input, row);
    uint8_t *to = memory + out->at + (size_t)row * out->width;
    for (uint32_t x = 0; x < out->width; x++)
        for (uint32_t c = 0; c < out->channels; c++)
            to[(size_t)c * out->height * out->width + x] = *from++;
}

static void logits_of(const offramp_layer *l, float *logits)
{
    const offramp_tensor *in = &offramp_tensors[l->input];
    size_t n = (size_t)in->height * in->width * in->channels;
    for (uint32_t k = 0; k < OFFRAMP_CLASSES; k++) {
        int32_t sums[2] = {l->bias[k], 0};
        dot_pair(l->weights + k * n, l->weights + k * n, memory + in->at, n, sums);
        logits[k] = (float)sums[0] * l->scale[k];
    }
}

/* Rows of float lie at multiples of 8 bytes, by the plan and because each of their values has 4. */
static const float *reals_at(const uint8_t *bytes)
{
    return (const float *)(const void *)bytes;
}

/* A byte of an input's pixel as its channel's table has it. */
static float level_of(const offramp_layer *l, const uint8_t *pixel, size_t channel)
{
    return l->levels[(size_t)pixel[channel] * l->level_columns + (l->level_columns > 1 ? channel : 0)];
}

/* The floats below one kernel: a tensor's own, or looked up for bytes. */
static const float *real_patch_of(const offramp_layer *l, uint32_t row, uint32_t column)
{
    if (!l->levels)
        return reals_at(patch_of(l, row, column));
    const offramp_tensor *in = &offramp_tensors[l->input];
    int32_t top = (int32_t)(row * l->stride_y) - l->pad_top, left = (int32_t)(column * l->stride_x) - l->pad_left;
    uint8_t *at = memory + OFFRAMP_PATCH_AT;
    for (int32_t y = top; y < top + l->kernel_height; y++) {
        const uint8_t *line = y < 0 || y >= in->height ? NULL : row_of(l->input, (uint32_t)y);
        for (int32_t x = left; x < left + l->kernel_width; x++) {
            for (size_t c = 0; c < in->channels; c++, at += 4) {
                int inside = line && x >= 0 && x < in->width;
                float value = inside ? level_of(l, line + (size_t)x * in->channels, c) : 0.0f;
                memcpy(at, &value, 4);
            }
        }
    }
    return reals_at(memory + OFFRAMP_PATCH_AT);
}

/* One result of a layer in float: to a float, or rounded to a byte. */
static void put_real(const offramp_layer *l, uint8_t *row, size_t index, float value)
{
    value = value < l->scale[0] ? l->scale[0] : value > l->scale[1] ? l->scale[1] : value;
    if (offramp_tensors[l->output].value_bytes > 1)
        memcpy(row + 4 * index, &value, 4);
    else
        row[index] = to_byte(value / l->scale[2], (float)-l->output_zero, (float)(255 - l->output_zero), l->output_zero);
}

static void real_conv_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *out = &offramp_tensors[l->output];
    size_t channels = offramp_tensors[l->input].channels, taps = (size_t)l->kernel_height * l->kernel_width, at = 0;
    uint8_t *to = own_row(l->output, row);
    const float *addends = l->other == l->input ? NULL : reals_at(row_of(l->other, row));
    for (uint32_t column = 0; column < out->width; column++) {
        const float *patch = real_patch_of(l, row, column), *weights = l->reals;
        for (uint32_t o = 0; o < out->channels; o++, weights += taps * channels) {
            float total = addends ? addends[at] : 0.0f;
            for (size_t first = 0; first < channels; first += l->chunk) {
                size_t end = first + l->chunk < channels ? first + l->chunk : channels;
                float sum = 0.0f;
                for (size_t t = 0; t < taps; t++)
                    for (size_t c = first; c < end; c++)
                        sum = fmaf(patch[t * channels + c], weights[t * channels + c], sum);
                total = sum + total;
            }
            put_real(l, to, at++, total + l->scale[3 + o]);
        }
    }
}

static void real_depthwise_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *in = &offramp_tensors[l->input], *out = &offramp_tensors[l->output];
    size_t channels = in->channels, at = 0;
    int32_t top = (int32_t)(row * l->stride_y) - l->pad_top;
    uint8_t *to = own_row(l->output, row);
    for (uint32_t column = 0; column < out->width; column++) {
        int32_t left = (int32_t)(column * l->stride_x) - l->pad_left;
        for (size_t c = 0; c < channels; c++) {
            float sum = 0.0f;
            for (int32_t y = 0; y < l->kernel_height; y++) {
                if (top + y < 0 || top + y >= in->height)
                    continue;
                const uint8_t *line = row_of(l->input, (uint32_t)(top + y));
                for (int32_t x = 0; x < l->kernel_width; x++) {
                    if (left + x < 0 || left + x >= in->width)
                        continue;
                    const uint8_t *pixel = line + (size_t)(left + x) * channels * in->value_bytes;
                    sum = fmaf(l->levels ? level_of(l, pixel, c) : reals_at(pixel)[c],
                               l->reals[(size_t)(y * l->kernel_width + x) * channels + c], sum);
                }
            }
            put_real(l, to, at++, sum + l->scale[3 + c]);
        }
    }
}

/* Each byte by its channel's table: to another byte, or to a float. */
static void table_row(const offramp_layer *l, uint32_t row)
{
    const offramp_tensor *in = &offramp_tensors[l->input];
    const uint8_t *from = row_of(l->input, row);
    uint8_t *to = own_row(l->output, row);
    size_t n = (size_t)in->width * in->channels;
    for (size_t i = 0; i < n; i++) {
        size_t at = (size_t)from[i] * l->chunk + (l->chunk > 1 ? i % in->channels : 0);
        if (l->kind == OFFRAMP_LOOKUP)
            to[i] = (uint8_t)l->weights[at];
        else
            memcpy(to + 4 * i, &l->scale[at], 4);
    }
}

static void mean_of(const offramp_layer *l)
{
    const offramp_tensor *in = &offramp_tensors[l->input];
    const uint8_t *from = memory + in->at;
    uint8_t *to = own_row(l->output, 0);
    size_t places = (size_t)in->height * in->width;
    for (uint32_t c = 0; c < in->channels; c++) {
        int32_t sum = 0;
        for (size_t i = 0; i < places; i++)
            sum += from[i * in->channels + c] - l->input_zero;
        float mean = (float)sum * l->scale[0] / l->scale[1];
        to[c] = to_byte(mean / l->scale[2], (float)-l->output_zero, (float)(255 - l->output_zero), l->output_zero);
    }
}

void offramp_run(const uint8_t *pixels, uint8_t *arena, float *logits)
{
    image = pixels;
    memory = arena;
    memset(done, 0, sizeof done);
#ifdef OFFRAMP_LAYER_TICKS
    memset(offramp_layer_ticks, 0, sizeof offramp_layer_ticks);
#endif
    for (uint32_t step = 0; step < OFFRAMP_STEPS; step++) {
        const offramp_layer *l = &offramp_layers[offramp_steps[step]];
        uint32_t row = done[offramp_steps[step]]++;
#ifdef OFFRAMP_LAYER_TICKS
        uint32_t before = port_ticks();
#endif
        switch ((offramp_kind)l->kind) {
        case OFFRAMP_CONV:
            conv_row(l, row);
            break;
        case OFFRAMP_DEPTHWISE:
            depthwise_row(l, row);
            break;
        case OFFRAMP_ADD:
            add_row(l, row);
            break;
        case OFFRAMP_CHANNELS_FIRST:
            channels_first_row(l, row);
            break;
        case OFFRAMP_LOOKUP:
        case OFFRAMP_REAL:
            table_row(l, row);
            break;
        case OFFRAMP_REAL_CONV:
            real_conv_row(l, row);
            break;
        case OFFRAMP_REAL_DEPTHWISE:
            real_depthwise_row(l, row);
            break;
        case OFFRAMP_MEAN:
            mean_of(l);
            break;
        case OFFRAMP_LOGITS:
            logits_of(l, logits);
            break;
        }
#ifdef OFFRAMP_LAYER_TICKS
        offramp_layer_ticks[offramp_steps[step]] += port_ticks() - before;
#endif
    }
}
