/* Entropy coding of activations: canonical Huffman, of symbols or of runs, and static-table rANS, in lanes; and rANS
 * with frequencies that follow what has been coded.
 *
 * Plain C11, no Python, no floating point, no allocation after `*_create`. docs/reference/codec.md has the layout of
 * a payload and why it is so; common/codec/activation.py, run_huffman.py, rans.py and context.py say the same in Python,
 * byte for byte.
 *
 * Invariants:
 * - Integers only: the same input gives the same bytes on every CPU.
 * - A decoder reads inside [payload, payload + size) and its own scratch, writes exactly C*H*W symbols, and
 *   ends after at most that many steps, whatever the payload.
 * - A decoder accepts only what the encoder writes for the symbols that it returns.
 */
#ifndef OFFRAMP_CODER_H
#define OFFRAMP_CODER_H

#include <stddef.h>
#include <stdint.h>

enum {
    SYMBOLS = 256,
    MAX_LANES = 8,
    MAX_CODE_LENGTH = 15,
    MAX_HUFFMAN_RUNS = 64,
    MAX_LITERAL_ORDER = 7,
    RANS_BITS = 12,
    RANS_TOTAL = 1 << RANS_BITS,
    MAX_CONTEXT_CHANNELS = 256,
    MAX_CONTEXT_REACH = 15,
    MAX_SYMBOLS = 1 << 28, /* of one activation: what is computed from it fits 32 bits */
};

/* What is wrong with a payload; CODER_OK is 0. */
enum coder_error {
    CODER_OK = 0,
    CODER_SHORT,    /* ends before its last symbol */
    CODER_LONG,     /* bytes left over */
    CODER_PADDING,  /* padding bits, a lane's last state or its length are not what the encoder writes */
    CODER_TOKEN,    /* a run past the end of its channel, or an escape that needs none */
};

/* C channels of `plane` symbols each, split into `lanes` runs of whole channels. The caller checks:
 * 1 <= channels, 1 <= plane, channels * plane <= MAX_SYMBOLS, 1 <= lanes <= MAX_LANES, lanes <= channels. */
typedef struct {
    uint32_t channels, plane, lanes;
} coder_shape;

/* First channel of a lane: lanes differ by one channel at most. */
static inline uint32_t lane_start(const coder_shape *shape, uint32_t lane)
{
    return (uint32_t)((uint64_t)shape->channels * lane / shape->lanes);
}

typedef struct huffman_coder huffman_coder;
typedef struct run_huffman_coder run_huffman_coder;
typedef struct rans_coder rans_coder;
typedef struct context_coder context_coder;

/* A coder holds scratch memory: one call of it at a time.
 *
 * lengths: tables x 256 code lengths, complete and 1 ... 15; table_of_channel: C indices below
 * `tables`. NULL if the tables break these rules or there is no memory. */
huffman_coder *huffman_create(coder_shape shape, const uint8_t *lengths, uint32_t tables,
                              const uint16_t *table_of_channel);
void huffman_destroy(huffman_coder *coder);
/* Most bytes that huffman_encode writes. */
size_t huffman_bound(const huffman_coder *coder);
/* C*H*W symbols to a payload of the size that it returns. */
size_t huffman_encode(const huffman_coder *coder, const uint8_t *symbols, uint8_t *payload);
enum coder_error huffman_decode(const huffman_coder *coder, const uint8_t *payload, size_t size,
                                uint8_t *symbols);

/* One table of lengths, 0 ... 15, complete. With runs = 1 a symbol's own, 256 columns of at least 1, order 0. Else
 * runs x columns: of `run` modes and then the symbol that is the column's; 0 where there is no such token, but
 * column 0 is the row's escape; and then of `runs` modes, or fewer at the end of a segment. */
typedef struct {
    uint32_t runs;    /* 1 ... MAX_HUFFMAN_RUNS */
    uint32_t columns; /* 1 ... 256 */
    uint32_t order;   /* 0 ... MAX_LITERAL_ORDER, of the Exponential-Golomb code behind an escape */
    const uint8_t *lengths;
} run_huffman_table;

/* NULL if the tables break these rules or there is no memory. */
run_huffman_coder *run_huffman_create(coder_shape shape, const run_huffman_table *tables, uint32_t count,
                                      const uint16_t *table_of_channel, const uint8_t *mode_of_channel);
void run_huffman_destroy(run_huffman_coder *coder);
size_t run_huffman_bound(const run_huffman_coder *coder);
size_t run_huffman_encode(const run_huffman_coder *coder, const uint8_t *symbols, uint8_t *payload);
enum coder_error run_huffman_decode(const run_huffman_coder *coder, const uint8_t *payload, size_t size,
                                    uint8_t *symbols);

enum token_kind {
    TOKEN_SYMBOL, /* `run` symbols equal to the table's mode, then `symbol` */
    TOKEN_ESCAPE, /* the same, with the symbol's own 8 bits behind the token */
    TOKEN_FULL,   /* run + 1 symbols equal to the mode; fewer at the end of a channel */
};

typedef struct {
    uint16_t frequency; /* of RANS_TOTAL */
    uint8_t run, symbol, kind;
} rans_token;

/* One table: the frequencies sum to RANS_TOTAL. With runs = 1 there are no runs: each token is one symbol.
 * With runs > 1 there is one TOKEN_FULL of run = runs - 1, and no TOKEN_SYMBOL of the mode. Each run below
 * `runs` has an escape, unless runs = 1 and each symbol has a token. */
typedef struct {
    uint32_t tokens; /* 1 ... 256 */
    uint32_t runs;   /* 1 ... 128 */
    uint8_t mode;
    rans_token token[SYMBOLS];
} rans_table;

/* NULL if the tables break these rules or there is no memory. */
rans_coder *rans_create(coder_shape shape, const rans_table *tables, uint32_t count,
                        const uint16_t *table_of_channel);
void rans_destroy(rans_coder *coder);
size_t rans_bound(const rans_coder *coder);
size_t rans_encode(const rans_coder *coder, const uint8_t *symbols, uint8_t *payload);
enum coder_error rans_decode(const rans_coder *coder, const uint8_t *payload, size_t size, uint8_t *symbols);

/* A log-linear model of a symbol given those around it (context.py), one behind the other: a mode for each channel;
 * channels x (2 * reach + 2) of 16 bits, little-endian; channels x height x 2, channels x width x 2 and channels x 2 x
 * 2 x (5 * channels) signed bytes. The caller checks: 1 <= each side, channels <= MAX_CONTEXT_CHANNELS, 1 <= reach <=
 * MAX_CONTEXT_REACH, channels * height * width <= MAX_SYMBOLS, and as many bytes as context_model_bytes says.
 * NULL if there is no memory. */
size_t context_model_bytes(uint32_t channels, uint32_t height, uint32_t width, uint32_t reach);
context_coder *context_create(uint32_t channels, uint32_t height, uint32_t width, uint32_t reach,
                              const uint8_t *model);
void context_destroy(context_coder *coder);
size_t context_bound(const context_coder *coder);
size_t context_encode(const context_coder *coder, const uint8_t *symbols, uint8_t *payload);
enum coder_error context_decode(const context_coder *coder, const uint8_t *payload, size_t size, uint8_t *symbols);

#endif
