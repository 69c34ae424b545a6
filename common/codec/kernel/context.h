/* The model of context.c and the memory that it works in.
 *
 * With OFFRAMP_NO_HEAP only encoding is compiled: the model is constants that `offramp export-c` writes, and the caller
 * fills in a context_coder, with scratch memory whose `near` is zero. The bytes are the same. */
#ifndef OFFRAMP_CONTEXT_H
#define OFFRAMP_CONTEXT_H

#include "ans.h"

enum { AROUND = 4 /* places whose symbols are looked at beside a symbol's own */ };

typedef struct {
    uint16_t frequency, start; /* below 2^bits: there are several classes */
    uint8_t bits;
} step;

#ifdef OFFRAMP_NO_HEAP
#define STORED const
#else
#define STORED
#endif

struct context_coder {
    uint32_t channels, height, width, inputs; /* inputs: of m and of s, distances and then sizes */
    int32_t reach;
    const uint8_t *mode;
    const int8_t *rows, *columns;
    uint8_t *model;          /* what the caller gave, and the pointers above point into; without a heap, none */
    STORED int16_t *base;    /* channels x classes */
    STORED int16_t *weights; /* channels x 2 x inputs */
    int16_t *near;    /* (height + 1) x (width + 2) x channels distances, a margin of zeros */
    int16_t *around;  /* inputs */
    uint8_t *payload; /* decoding: the payload with zeros behind it */
    step *steps;      /* encoding: two a symbol at most */
    uint16_t *words;  /* encoding: filled from the end */
};

#endif
