/* Init, classify and reply: the early exit's decision, and datagrams; see offramp.h. */
#include "offramp.h"
#include "offramp_layers.h"

#include <math.h>
#include <string.h>

enum {
    VERSION = 1,
    REQUEST_KIND = 0,
    REPLY_KIND = 1,
    CODEC_RAW = 1,
    FORM_ANSWER = 0,
    FORM_PART = 1,
    FORM_ERROR = 2,
    SEALED = 0x10,
    CHECKSUM_BYTES = 3,
    CLASS_BYTES = OFFRAMP_CLASSES <= 256 ? 1 : 2,
    REPLY_HEADER = 3,
    FALLBACK = 0x80,
};

#ifndef OFFRAMP_ARENA_ATTRIBUTE
#define OFFRAMP_ARENA_ATTRIBUTE /* a section, where the block has to lie in a certain memory */
#endif

static _Alignas(8) uint8_t arena[OFFRAMP_ARENA_BYTES] OFFRAMP_ARENA_ATTRIBUTE;
static float early[OFFRAMP_CLASSES]; /* the early exit's probabilities, for the image that is waited for */
static float exit_threshold;
static uint16_t next_sequence, waited_for;
static uint8_t ready, waiting;

/* CRC-24 of RFC 9580, without a table: a datagram is short. */
static uint32_t crc24(const uint8_t *data, size_t size, uint32_t crc)
{
    for (size_t i = 0; i < size; i++) {
        crc ^= (uint32_t)data[i] << 16;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc << 1) ^ (crc & 0x800000u ? 0x1864CFBu : 0);
    }
    return crc & 0xFFFFFFu;
}

/* e^x for x <= 0, to about two units in the last place. */
static float exponential(float x)
{
    if (x < -86.0f)
        return 0.0f;
    float turns = x * 1.44269504f;
    int32_t power = (int32_t)(turns - 0.5f);
    float rest = fmaf((float)power, -0.693359375f, x);
    rest = fmaf((float)power, 2.12194440e-4f, rest);
    float sum = 1.0f / 5040.0f;
    sum = fmaf(sum, rest, 1.0f / 720.0f);
    sum = fmaf(sum, rest, 1.0f / 120.0f);
    sum = fmaf(sum, rest, 1.0f / 24.0f);
    sum = fmaf(sum, rest, 1.0f / 6.0f);
    sum = fmaf(sum, rest, 0.5f);
    sum = fmaf(sum, rest, 1.0f);
    sum = fmaf(sum, rest, 1.0f);
    uint32_t bits = (uint32_t)(power + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* Logits to probabilities, in place; returns the likeliest class. */
static uint32_t softmax(float *values)
{
    uint32_t best = 0;
    float total = 0.0f;
    for (uint32_t k = 0; k < OFFRAMP_CLASSES; k++) {
        values[k] /= OFFRAMP_TEMPERATURE;
        if (values[k] > values[best])
            best = k;
    }
    float top = values[best];
    for (uint32_t k = 0; k < OFFRAMP_CLASSES; k++) {
        values[k] = exponential(values[k] - top);
        total += values[k];
    }
    for (uint32_t k = 0; k < OFFRAMP_CLASSES; k++)
        values[k] /= total;
    return best;
}

offramp_status offramp_init(uint16_t sequence, float threshold)
{
    ready = 0;
    waiting = 0;
    if (!(threshold >= 0.0f && threshold <= 1.0f))
        return OFFRAMP_RANGE;
    next_sequence = sequence;
    exit_threshold = threshold;
    ready = 1;
    return OFFRAMP_OK;
}

/* The datagram of the symbols in the arena: header, payload, checksum. */
static size_t write_datagram(uint8_t *datagram, uint16_t sequence)
{
    static const uint8_t digest[2] = OFFRAMP_SHORT_DIGEST;
    uint8_t *payload = arena + OFFRAMP_PAYLOAD_AT;
    size_t size = offramp_encode(arena);
    datagram[0] = (uint8_t)(VERSION << 5 | REQUEST_KIND << 2);
    if (!size) {
        datagram[0] |= CODEC_RAW;
        size = OFFRAMP_SYMBOLS;
        memcpy(payload, arena + OFFRAMP_SYMBOLS_AT, size);
    }
    memcpy(datagram + 1, digest, sizeof digest);
    datagram[3] = (uint8_t)sequence;
    datagram[4] = (uint8_t)(sequence >> 8);
    size += OFFRAMP_HEADER_BYTES;
    uint32_t crc = crc24(datagram, size, OFFRAMP_DIGEST_CRC);
    for (int i = 0; i < CHECKSUM_BYTES; i++)
        datagram[size++] = (uint8_t)(crc >> (16 - 8 * i));
    return size;
}

offramp_status offramp_classify(const uint8_t *pixels, offramp_result *result)
{
    if (!ready)
        return OFFRAMP_NOT_READY;
    if (!pixels || !result)
        return OFFRAMP_RANGE;
    *result = (offramp_result){.datagram = NULL};
    waiting = 0;
    offramp_run(pixels, arena, early);
    uint32_t best = softmax(early);
    result->early = (offramp_answer){.class_index = (uint16_t)best, .confidence = early[best], .part = 1};
    if (early[best] > exit_threshold)
        return OFFRAMP_OK;
    waited_for = next_sequence++;
    waiting = 1;
    result->datagram = arena + OFFRAMP_PAYLOAD_AT - OFFRAMP_HEADER_BYTES;
    result->size = write_datagram(arena + OFFRAMP_PAYLOAD_AT - OFFRAMP_HEADER_BYTES, waited_for);
    return OFFRAMP_OK;
}

#if OFFRAMP_BOTH_EXITS
/* What the server says and what the early exit said, together; docs/explanation/early-exit.md has why. */
static void fold(offramp_answer *answer)
{
    const float least = 1e-9f, even = 1.0f / OFFRAMP_CLASSES;
    uint32_t said = answer->class_index, best = 0;
    float named = answer->confidence > even ? answer->confidence : even;
    float others = 1.0f - early[said] > least ? 1.0f - early[said] : least, total = 0.0f, top = -1.0f;
    for (uint32_t k = 0; k < OFFRAMP_CLASSES; k++) {
        float own = early[k] > least ? early[k] : least, server = own * ((1.0f - named) / others);
        server = k == said || server > named ? named : server;
        float joint = sqrtf(own * server);
        total += joint;
        if (joint > top) {
            top = joint;
            best = k;
        }
    }
    answer->class_index = (uint16_t)best;
    answer->confidence = top / total;
}
#endif

offramp_status offramp_reply(const uint8_t *datagram, size_t size, offramp_answer *answer)
{
    if (!ready)
        return OFFRAMP_NOT_READY;
    if (!datagram || !answer)
        return OFFRAMP_RANGE;
    if (size < REPLY_HEADER + 1 + CHECKSUM_BYTES || datagram[0] >> 5 != VERSION || datagram[0] & SEALED ||
        (datagram[0] >> 2 & 3) != REPLY_KIND)
        return OFFRAMP_MALFORMED;
    size_t end = size - CHECKSUM_BYTES, fields = end - REPLY_HEADER;
    uint8_t form = datagram[0] & 3;
    const uint8_t *at = datagram + REPLY_HEADER;
    if (form > FORM_ERROR || fields != (form == FORM_ERROR ? 1u : (size_t)CLASS_BYTES + 1 + form))
        return OFFRAMP_MALFORMED;
    uint32_t crc = crc24(datagram, end, OFFRAMP_DIGEST_CRC);
    uint32_t found = (uint32_t)datagram[end] << 16 | (uint32_t)datagram[end + 1] << 8 | datagram[end + 2];
    if (crc != found)
        return OFFRAMP_CHECKSUM;
    if (!waiting || (uint16_t)(datagram[1] | datagram[2] << 8) != waited_for)
        return OFFRAMP_IGNORED;
    *answer = (offramp_answer){.part = OFFRAMP_PARTS};
    if (form == FORM_ERROR) {
        if (!at[0])
            return OFFRAMP_MALFORMED;
        answer->error = at[0];
        waiting = 0;
        return OFFRAMP_NO_ANSWER;
    }
    uint32_t index = at[0];
    if (CLASS_BYTES == 2)
        index |= (uint32_t)at[1] << 8;
    if (index >= OFFRAMP_CLASSES)
        return OFFRAMP_MALFORMED;
    answer->class_index = (uint16_t)index;
    answer->confidence = (float)at[CLASS_BYTES] / 255.0f;
    if (form == FORM_PART) {
        answer->part = at[CLASS_BYTES + 1] & (FALLBACK - 1);
        if (!answer->part || answer->part > OFFRAMP_PARTS)
            return OFFRAMP_MALFORMED;
    }
    waiting = 0;
#if OFFRAMP_BOTH_EXITS
    fold(answer);
#endif
    return OFFRAMP_OK;
}
