/* What the exported program makes of any reply: never more than its buffers, and an answer that there is, once. */
#include "offramp.h"

#include <stdlib.h>
#include <string.h>

enum { KEY = 1, CHECKSUM = 2, MOST = 300 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int holds)
{
    if (!holds)
        abort();
}

static uint32_t crc24(const uint8_t *data, size_t size)
{
    uint32_t crc = OFFRAMP_DIGEST_CRC;
    for (size_t i = 0; i < size; i++) {
        crc ^= (uint32_t)data[i] << 16;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc << 1) ^ (crc & 0x800000u ? 0x1864CFBu : 0);
    }
    return crc & 0xFFFFFFu;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t pixels[OFFRAMP_IMAGE_BYTES], key[16];
    if (size < 2 || size > MOST)
        return 0;
    const uint8_t mode = data[0];
    offramp_result result;
    /* The number that is waited for is the second byte, so that replies are to be found. */
    need(offramp_init(data[1], 1.0f) == OFFRAMP_OK);
    if (mode & KEY)
        need(offramp_set_key(1, key, sizeof key, data[1]) == OFFRAMP_OK);
    need(offramp_classify(pixels, &result) == OFFRAMP_OK && result.size);
    /* Of the size that it has, so that a byte too many is found. */
    size_t bytes = size - 2 + (mode & CHECKSUM ? 3 : 0);
    uint8_t *reply = malloc(bytes + 1);
    need(reply != NULL);
    memcpy(reply + 1, data + 2, size - 2);
    if (mode & CHECKSUM) {
        uint32_t crc = crc24(reply + 1, size - 2);
        for (size_t i = 0; i < 3; i++)
            reply[1 + size - 2 + i] = (uint8_t)(crc >> (16 - 8 * i));
    }
    offramp_answer answer = {.class_index = 0xFFFF};
    offramp_status status = offramp_reply(reply + 1, bytes, &answer);
    need(status <= OFFRAMP_USED_UP && status != OFFRAMP_NOT_READY && status != OFFRAMP_RANGE);
    if (status == OFFRAMP_OK) {
        need(answer.class_index < OFFRAMP_CLASSES && answer.part >= 1 && answer.part <= OFFRAMP_PARTS);
        need(answer.confidence >= 0.0f && answer.confidence <= 1.0f && !answer.error);
    }
    if (status == OFFRAMP_NO_ANSWER)
        need(answer.error);
    if (status == OFFRAMP_OK || status == OFFRAMP_NO_ANSWER)
        need(offramp_reply(reply + 1, bytes, &answer) == OFFRAMP_IGNORED);
    free(reply);
    return 0;
}
