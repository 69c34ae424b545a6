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
} offramp_tensor;

typedef enum {
    OFFRAMP_CONV,
    OFFRAMP_DEPTHWISE,
    OFFRAMP_ADD,
    OFFRAMP_CHANNELS_FIRST,
    OFFRAMP_LOGITS,
} offramp_kind;

/* weights: of CONV outputs x kernel height x kernel width x inputs, of DEPTHWISE kernel height x kernel width x
 * channels, of LOGITS classes x height x width x channels. bias: with what the input's zero point adds, but of
 * DEPTHWISE. scale: of each output; of ADD the two ratios and the fixed part. */
typedef struct {
    uint8_t kind, input, other, output;
    uint8_t kernel_height, kernel_width, stride_y, stride_x, pad_top, pad_left;
    uint8_t input_zero, output_zero;
    const int8_t *weights;
    const int32_t *bias;
    const float *scale;
} offramp_layer;

extern const offramp_tensor offramp_tensors[];
extern const offramp_layer offramp_layers[];
extern const uint8_t offramp_steps[]; /* the layer of each step, which makes its next row */

/* Head and early exit: the symbols to the arena, the logits to OFFRAMP_CLASSES floats. */
void offramp_run(const uint8_t *pixels, uint8_t *arena, float *logits);

/* The payload of the symbols, at arena + OFFRAMP_PAYLOAD_AT; returns its bytes, 0 where the raw symbols are no longer. */
size_t offramp_encode(uint8_t *arena);

#endif
