/* The state of asymmetric numeral systems (Duda, 2013) as bytes: what rANS with any model of symbols writes.
 *
 * A lane is one coder: a 32-bit state and 16-bit little-endian words, in the order in which they are read.
 * It starts with its state, big-endian and without leading zeros: 3 bytes if the lane's length is odd, 4 if
 * it is even, all of the lane if that is no more than 4. The encoder starts from state 1, not from the
 * interval's lower bound: words are only written once the state has grown into the interval, so that a lane
 * costs its information and the byte it is rounded up to. The decoder, in reverse, reads no more words once
 * the lane is used up, and must end in state 1.
 */
#ifndef OFFRAMP_ANS_H
#define OFFRAMP_ANS_H

#include "bytes.h"

enum {
    LOWER = 1 << 16, /* the state lies in [LOWER, 2^32) once it has grown */
    SLACK = 8,       /* zeros behind a payload that is read */
};

/* A word, if the state has left the interval and there is one. A word that does not bring it back was
 * never written. */
#define REFILL(state, at, end, bad)                                                                            \
    do {                                                                                                       \
        uint32_t word = (uint32_t)(at)[0] | (uint32_t)(at)[1] << 8;                                            \
        uint32_t reads = ((state) < LOWER) & ((at) < (end));                                                   \
        (state) = (state) << (reads << 4) | (word & (0u - reads));                                             \
        (at) += 2 * reads;                                                                                     \
        (bad) |= reads & ((state) < LOWER);                                                                    \
    } while (0)

/* The state that a lane starts with; `at` goes behind it. */
ALWAYS_INLINE enum coder_error read_state(const uint8_t **at, const uint8_t *end, uint32_t *state)
{
    size_t length = (size_t)(end - *at);
    if (!length)
        return CODER_SHORT;
    size_t bytes = length <= 4 ? length : 4 - length % 2;
    uint32_t found = 0;
    for (size_t i = 0; i < bytes; i++)
        found = found << 8 | *(*at)++;
    *state = found;
    int minimal = found >> (8 * (bytes - 1)) != 0;
    return minimal && (length <= 4 || found >= LOWER) ? CODER_OK : CODER_PADDING;
}

/* A lane's last state and its words, as they are read; returns where they end. */
ALWAYS_INLINE uint8_t *write_lane(uint8_t *out, uint32_t state, const uint16_t *word, const uint16_t *end)
{
    uint32_t bytes = 1;
    while (bytes < 4 && state >> (8 * bytes))
        bytes++;
    while (bytes-- > 0)
        *out++ = (uint8_t)(state >> (8 * bytes));
    for (; word < end; word++) {
        *out++ = (uint8_t)*word;
        *out++ = (uint8_t)(*word >> 8);
    }
    return out;
}

#endif
