/* The tables of rans.c.
 *
 * Two forms, by how a program is compiled; both give the same bytes:
 * - as it is, tables are made on the heap by rans_create, for encoding and decoding, with reciprocals in the place of
 *   divisions;
 * - with OFFRAMP_NO_HEAP they are constants that `offramp export-c` writes, for encoding alone, four bytes a token.
 *   The caller fills in a rans_coder, and gives scratch memory.
 */
#ifndef OFFRAMP_RANS_H
#define OFFRAMP_RANS_H

#include "ans.h"

enum {
    ESCAPE_FREQUENCY = RANS_TOTAL / SYMBOLS,
    ABSENT = 256,
    JUMP_FROM = 1, /* modes a token, by its table, from which they are jumped over, not looked at one by one */
};

#ifdef OFFRAMP_NO_HEAP

enum { ESCAPE_FLAG = 1 << 15 }; /* in `start` */
typedef uint8_t cell;

typedef struct {
    uint16_t frequency, start;
} encode_entry;

typedef struct {
    const encode_entry *encode;
    const uint8_t *column;  /* of a symbol in `token`; the last column is the escape's */
    const cell *token;      /* runs x columns; where a run and symbol have no token, the row's escape */
    uint32_t columns, runs;
    uint8_t mode, full, jumps;
} table;

struct rans_coder {
    coder_shape shape;
    size_t most;                /* bytes of a payload that is of use; rans_encode returns 0 for a longer one */
    uint8_t *tokens, *literals; /* lanes x plane */
    uint16_t *words;            /* lanes x (most / 2 + 2 x plane + 2) */
    const table *const *of_channel;
};

static inline encode_entry encoding(uint32_t frequency, uint32_t start)
{
    return (encode_entry){(uint16_t)frequency, (uint16_t)start};
}

static inline uint32_t limit_of(const encode_entry *e)
{
    return (uint32_t)e->frequency << 4;
}

static inline uint32_t next_state(uint32_t state, const encode_entry *e)
{
    uint32_t f = e->frequency;
    return ((state / f) << RANS_BITS) + state % f + (e->start & (ESCAPE_FLAG - 1u));
}

static inline int is_escape(const table *t, uint32_t token)
{
    return t->encode[token].start >= ESCAPE_FLAG;
}

static inline size_t lane_words(const rans_coder *coder, uint32_t channels)
{
    (void)channels;
    return coder->most / 2 + 2 * (size_t)coder->shape.plane + 2;
}

/* Whether a lane with so many words makes its payload longer than is of use. */
static inline int is_hopeless(const rans_coder *coder, size_t words)
{
    return words > coder->most / 2;
}

#else

typedef uint16_t cell;

typedef struct {
    uint16_t frequency, start;
    uint8_t run, symbol, kind;
} decode_entry;

/* How a token changes the state x: x + bias + floor(x / frequency) * complement. */
typedef struct {
    uint64_t reciprocal; /* ceil(2^64 / frequency), exact for x below 2^32; or gives x - 1 for frequency 1 */
    uint32_t bias, complement, limit; /* from limit << 16 on, x writes a word first */
} encode_entry;

typedef struct {
    uint8_t of_slot[RANS_TOTAL];
    decode_entry decode[SYMBOLS];
    encode_entry encode[SYMBOLS];
    uint8_t column[SYMBOLS]; /* of a symbol in `token`; the last column is the escape's */
    cell *token;             /* runs x columns; ABSENT where a run and symbol have no token */
    uint32_t columns, runs;
    uint8_t mode, full, jumps;
} table;

struct rans_coder {
    coder_shape shape;
    size_t payload_bytes;
    uint8_t *payload;           /* decoding: the payload with zeros behind it */
    uint8_t *tokens, *literals; /* encoding: a channel of each lane, and the symbols behind its escapes */
    uint16_t *words;            /* encoding: the lanes' words, each filled from its end */
    table *tables;
    uint32_t count;
    const table **of_channel;
};

static inline encode_entry encoding(uint32_t frequency, uint32_t start)
{
    uint32_t complement = RANS_TOTAL - frequency;
    if (frequency == 1)
        return (encode_entry){UINT64_MAX, start + complement, complement, frequency << 4};
    return (encode_entry){UINT64_MAX / frequency + 1, start, complement, frequency << 4};
}

ALWAYS_INLINE uint32_t limit_of(const encode_entry *e)
{
    return e->limit;
}

ALWAYS_INLINE uint32_t next_state(uint32_t state, const encode_entry *e)
{
    return state + e->bias + quotient(state, e->reciprocal) * e->complement;
}

ALWAYS_INLINE int is_escape(const table *t, uint32_t token)
{
    return t->decode[token].kind == TOKEN_ESCAPE;
}

/* Two words a symbol at most, and one that is written before it is known to be needed. */
ALWAYS_INLINE size_t lane_words(const rans_coder *coder, uint32_t channels)
{
    return (size_t)channels * coder->shape.plane * 2 + 1;
}

ALWAYS_INLINE int is_hopeless(const rans_coder *coder, size_t words)
{
    (void)coder;
    (void)words;
    return 0;
}

#endif
#endif
