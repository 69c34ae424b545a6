/* Init, classify and reply: the early exit's decision, and datagrams; see offramp.h. */
#include "offramp.h"
#include "offramp_layers.h"
#include "offramp_seal.h"

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
    HEADER_BYTES = 5,
    SEALED_HEADER_BYTES = 9,
    REPLY_HEADER_BYTES = 3,
    SEALED_REPLY_HEADER_BYTES = 5,
    MOST_FIELDS = CLASS_BYTES + 2,
    FALLBACK = 0x80,
};

#ifndef OFFRAMP_ARENA_ATTRIBUTE
#define OFFRAMP_ARENA_ATTRIBUTE /* a section, where the block has to lie in a certain memory */
#endif

static _Alignas(8) uint8_t arena[OFFRAMP_ARENA_BYTES] OFFRAMP_ARENA_ATTRIBUTE;
static float early[OFFRAMP_CLASSES]; /* the early exit's probabilities, for the image that is waited for */
static float exit_threshold;
static uint32_t next_number, waited_for;
static uint16_t own_device;
static uint8_t ready, waiting, sealed, used_up;
static seal_key own_key;
static const uint8_t digest[32] = OFFRAMP_DIGEST;

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
    next_number = sequence;
    sealed = 0;
    used_up = 0;
    exit_threshold = threshold;
    ready = 1;
    return OFFRAMP_OK;
}

offramp_status offramp_set_key(uint16_t device, const uint8_t *key, size_t size, uint32_t number)
{
    if (!ready)
        return OFFRAMP_NOT_READY;
    if (!key || !seal_expand(&own_key, key, size))
        return OFFRAMP_RANGE;
    own_device = device;
    next_number = number;
    sealed = 1;
    waiting = 0;
    return OFFRAMP_OK;
}

uint32_t offramp_number(void)
{
    return next_number;
}

/* direction: 0 of a request, 1 of a reply, which has a salt. */
static void make_nonce(uint8_t *nonce, uint8_t direction, uint32_t number, const uint8_t *salt)
{
    memset(nonce, 0, SEAL_NONCE_BYTES);
    nonce[0] = direction;
    nonce[1] = (uint8_t)own_device;
    nonce[2] = (uint8_t)(own_device >> 8);
    for (int i = 0; i < 4; i++)
        nonce[3 + i] = (uint8_t)(number >> (8 * i));
    if (salt)
        memcpy(nonce + 7, salt, 2);
}

/* The datagram of the symbols in the arena: header, payload, and checksum or tag. */
static size_t write_datagram(uint8_t *datagram, uint32_t number)
{
    uint8_t *payload = arena + OFFRAMP_PAYLOAD_AT, *at = datagram + 3;
    size_t size = offramp_encode(arena);
    datagram[0] = (uint8_t)(VERSION << 5 | (sealed ? SEALED : 0) | REQUEST_KIND << 2);
    if (!size) {
        datagram[0] |= CODEC_RAW;
        size = OFFRAMP_SYMBOLS;
        memcpy(payload, arena + OFFRAMP_SYMBOLS_AT, size);
    }
    memcpy(datagram + 1, digest, 2);
    if (sealed) {
        uint8_t nonce[SEAL_NONCE_BYTES];
        *at++ = (uint8_t)own_device;
        *at++ = (uint8_t)(own_device >> 8);
        for (int i = 0; i < 4; i++)
            *at++ = (uint8_t)(number >> (8 * i));
        make_nonce(nonce, 0, number, NULL);
        seal_close(&own_key, nonce, digest, sizeof digest, datagram, SEALED_HEADER_BYTES, payload, size, payload + size);
        return SEALED_HEADER_BYTES + size + SEAL_TAG_BYTES;
    }
    *at++ = (uint8_t)number;
    *at = (uint8_t)(number >> 8);
    size += HEADER_BYTES;
    uint32_t crc = crc24(datagram, size, OFFRAMP_DIGEST_CRC);
    for (int i = 0; i < CHECKSUM_BYTES; i++)
        datagram[size++] = (uint8_t)(crc >> (16 - 8 * i));
    return size;
}

#if OFFRAMP_CENTRES
/* How far mean and deviation of each channel's symbols are from what is known of the class, and a doubt. */
static uint8_t is_unknown(uint32_t best)
{
    const uint64_t places = OFFRAMP_CODED_HEIGHT * OFFRAMP_CODED_WIDTH;
    const uint8_t *at = arena + OFFRAMP_SYMBOLS_AT;
    const float *centre = offramp_centres + (OFFRAMP_CENTRES > 1 ? best : 0) * 2u * OFFRAMP_CODED_CHANNELS;
    float away = 0.0f;
    for (uint32_t c = 0; c < OFFRAMP_CODED_CHANNELS; c++) {
        uint64_t total = 0, squares = 0;
        for (uint32_t i = 0; i < places; i++, at++) {
            total += *at;
            squares += (uint32_t)*at * *at;
        }
        float mean = (float)total / (float)places;
        float deviation = sqrtf((float)(places * squares - total * total)) / (float)places;
        mean = (mean - centre[c]) / offramp_deviations[c];
        deviation = (deviation - centre[OFFRAMP_CODED_CHANNELS + c]) / offramp_deviations[OFFRAMP_CODED_CHANNELS + c];
        away += mean * mean + deviation * deviation;
    }
    return away / (float)(2 * OFFRAMP_CODED_CHANNELS) + 2.0f * (1.0f - early[best]) > OFFRAMP_UNKNOWN_THRESHOLD;
}
#endif

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
#if OFFRAMP_CENTRES
    result->unknown = is_unknown(best);
#endif
    if (early[best] > exit_threshold)
        return OFFRAMP_OK;
    if (used_up)
        return OFFRAMP_USED_UP;
    waited_for = sealed ? next_number : next_number & 0xFFFFu;
    next_number++;
    used_up = sealed && !next_number;
    waiting = 1;
    uint8_t *datagram = arena + OFFRAMP_PAYLOAD_AT - (sealed ? SEALED_HEADER_BYTES : HEADER_BYTES);
    result->datagram = datagram;
    result->size = write_datagram(datagram, waited_for);
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

static uint32_t checksum_at(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 8 | bytes[2];
}

offramp_status offramp_reply(const uint8_t *datagram, size_t size, offramp_answer *answer)
{
    if (!ready)
        return OFFRAMP_NOT_READY;
    if (!datagram || !answer)
        return OFFRAMP_RANGE;
    size_t header = sealed ? SEALED_REPLY_HEADER_BYTES : REPLY_HEADER_BYTES;
    size_t trailer = sealed ? SEAL_TAG_BYTES : CHECKSUM_BYTES;
    if (size < header + 1 + trailer || datagram[0] >> 5 != VERSION || !(datagram[0] & SEALED) != !sealed ||
        (datagram[0] >> 2 & 3) != REPLY_KIND)
        return OFFRAMP_MALFORMED;
    uint8_t form = datagram[0] & 3, at[MOST_FIELDS];
    size_t fields = size - header - trailer;
    if (form > FORM_ERROR || fields != (form == FORM_ERROR ? 1u : (size_t)CLASS_BYTES + 1 + form))
        return OFFRAMP_MALFORMED;
    int expected = waiting && (uint32_t)(datagram[1] | datagram[2] << 8) == (waited_for & 0xFFFFu);
    memcpy(at, datagram + header, fields);
    if (!sealed && crc24(datagram, size - trailer, OFFRAMP_DIGEST_CRC) != checksum_at(datagram + size - trailer))
        return OFFRAMP_CHECKSUM;
    if (!expected)
        return OFFRAMP_IGNORED;
    if (sealed) {
        uint8_t nonce[SEAL_NONCE_BYTES];
        make_nonce(nonce, 1, waited_for, datagram + 3);
        if (!seal_open(&own_key, nonce, digest, sizeof digest, datagram, header, at, fields, datagram + size - trailer))
            return OFFRAMP_CHECKSUM;
    }
    *answer = (offramp_answer){.part = OFFRAMP_PARTS};
    if (form == FORM_ERROR) {
        if (!at[0])
            return OFFRAMP_MALFORMED;
        answer->error = at[0];
        waiting = 0;
        return OFFRAMP_NO_ANSWER;
    }
    uint32_t index = at[0];
#if OFFRAMP_CLASSES > 256
    index |= (uint32_t)at[1] << 8;
#endif
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
