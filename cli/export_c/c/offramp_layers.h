/* What offramp_model.c, which is generated, is made of. Not for callers. */
#ifndef OFFRAMP_LAYERS_H
#define OFFRAMP_LAYERS_H

#include <stddef.h>
#include <stdint.h>

enum {
    OFFRAMP_IMAGE = 0, /* the tensor that is the caller's picture */
};

/* A ring of rows in the arena: row r lies at (r mod rows). Height, width and channels of the whole. */
typedef struct {
    uint32_t at;
    uint16_t rows, height, width, channels;
    uint8_t value_bytes; /* 1, or 4 of float */
} offramp_tensor;

typedef enum {
    OFFRAMP_CONV,
    OFFRAMP_DEPTHWISE,
    OFFRAMP_ADD,
    OFFRAMP_CHANNELS_FIRST,
    OFFRAMP_LOOKUP,
    OFFRAMP_REAL,
    OFFRAMP_REAL_CONV,
    OFFRAMP_REAL_DEPTHWISE,
    OFFRAMP_MEAN,
    OFFRAMP_LOGITS,
} offramp_kind;

/* weights: of CONV outputs x kernel height x kernel width x inputs, of DEPTHWISE kernel height x kernel width x
 * channels, of LOGITS classes x height x width x channels. bias: with what the input's zero point adds, but of
 * DEPTHWISE. scale: of each output; of ADD the two ratios and the fixed part. Of what computes in float, reals are the
 * weights in the same order, another input is what a sum begins with, and scale is the least and the largest output, the scale of output bytes, and the biases. Of
 * LOOKUP weights, and of REAL scale, are 256 x chunk values; of MEAN scale is the input's, the places, the output's. */
typedef struct {
    uint8_t kind, input, other, output;
    uint8_t kernel_height, kernel_width, stride_y, stride_x, pad_top, pad_left;
    uint8_t input_zero, output_zero;
    uint16_t chunk; /* tables of a look-up; channels that a convolution in float adds up at a time */
    uint16_t level_columns;
    const int8_t *weights;
    const float *reals;
    const int32_t *bias;
    const float *scale;
    const float *levels; /* of a convolution in float whose input is bytes: 256 x level_columns */
} offramp_layer;

extern const offramp_tensor offramp_tensors[];
extern const offramp_layer offramp_layers[];
extern const uint8_t offramp_steps[]; /* the layer of each step, which makes its next row */

/* What a bundle with a score for unknown images knows of its code: of each class or of all, mean and then deviation of
 * each channel; and how far these are spread. */
extern const float offramp_centres[], offramp_deviations[];

/* Head and early exit: the symbols to the arena, the logits to OFFRAMP_CLASSES floats. */
void offramp_run(const uint8_t *pixels, uint8_t *arena, float *logits);

#ifdef OFFRAMP_LAYER_TICKS
/* What each layer took for the last image, with one reading of the clock for each of its rows. */
extern uint32_t offramp_layer_ticks[];
#endif

/* The payload of the symbols, at arena + OFFRAMP_PAYLOAD_AT; returns its bytes, 0 where the raw symbols are no longer. */
size_t offramp_encode(uint8_t *arena);

#endif
