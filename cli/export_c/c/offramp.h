/* The device's half of a network in two parts, on a microcontroller: three calls.
 *
 *   offramp_init(0, OFFRAMP_THRESHOLD);
 *   offramp_classify(pixels, &result);
 *   if (result.size)
 *       send(result.datagram, result.size);
 *   ...
 *   if (offramp_reply(received, size, &answer) == OFFRAMP_OK)
 *       use(answer.class_index);
 *
 * Plain C11 with single-precision floats: no operating system, no heap, no dependency but memcpy, memset and fmaf. All
 * memory is one static block of OFFRAMP_ARENA_BYTES and a few hundred bytes of state. One image is in progress at a
 * time; nothing here may be called from an interrupt while another call runs. */
#ifndef OFFRAMP_H
#define OFFRAMP_H

#include "offramp_model.h"

#include <stddef.h>
#include <stdint.h>

typedef enum {
    OFFRAMP_OK = 0,
    OFFRAMP_NOT_READY,  /* offramp_init was not called, or refused its threshold */
    OFFRAMP_RANGE,      /* a threshold that is not 0 ... 1, a key of another size, or a null pointer */
    OFFRAMP_MALFORMED,  /* a reply that is too short, of another version or kind, or of a class that there is not */
    OFFRAMP_CHECKSUM,   /* damaged on its way, of another bundle, or not sealed with this key */
    OFFRAMP_IGNORED,    /* a reply to an image that this device does not wait for: old, or the second one */
    OFFRAMP_NO_ANSWER,  /* the server could not answer: the early exit's answer stands, answer->error says why */
    OFFRAMP_USED_UP,    /* unsure, but the key has no numbers left: nothing is to be sent */
} offramp_status;

typedef struct {
    uint16_t class_index; /* into offramp_class_names */
    float confidence;     /* 0 ... 1 */
    uint8_t part;         /* which part of the network answered, from 1: 1 is this device */
    uint8_t error;        /* of a reply without an answer: docs/reference/wire-format.md of Offramp lists them */
} offramp_answer;

typedef struct {
    offramp_answer early;    /* of the early exit, also where it is unsure */
    const uint8_t *datagram; /* to send, valid until the next call; NULL where the early exit is sure */
    size_t size;             /* its bytes, 0 without a datagram */
    uint8_t unknown;         /* 1: unlike all that the bundle knows, sent or not; 0 also where it has no such score */
} offramp_result;

/* Class names, UTF-8, in the order of their indices. */
extern const char *const offramp_class_names[OFFRAMP_CLASSES];

/* Before all else. sequence: the number of the first datagram. threshold: the early exit answers where its confidence
 * is above it; OFFRAMP_THRESHOLD is the bundle's own, 1 sends every image, 0 none. */
offramp_status offramp_init(uint16_t sequence, float threshold);

/* One image: OFFRAMP_IMAGE_HEIGHT rows of OFFRAMP_IMAGE_WIDTH pixels of 3 bytes, red first. It is only read. */
offramp_status offramp_classify(const uint8_t *pixels, offramp_result *result);

/* From now on datagrams are hidden and authentic, and replies have to be: AES-CCM with the device's key of 16 or 32
 * bytes, which the gateway has under the device's number. A number must never be used for two images, not even after a
 * restart: keep offramp_number() in flash, for instance by storing the next multiple of 256 before it is reached, and
 * start there. Call it after offramp_init, which forgets the key. */
offramp_status offramp_set_key(uint16_t device, const uint8_t *key, size_t size, uint32_t number);

/* The number of the next datagram. */
uint32_t offramp_number(void);

/* What came back for the last image that was to be sent. Anything may be given: it is checked. Until a reply is OK or
 * OFFRAMP_NO_ANSWER the device goes on waiting; to give up, use the early exit's answer. */
offramp_status offramp_reply(const uint8_t *datagram, size_t size, offramp_answer *answer);

#endif
