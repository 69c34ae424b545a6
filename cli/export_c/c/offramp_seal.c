/* See offramp_seal.h. By the table of FIPS 197, a byte at a time: short, and as fast as a radio needs. */
#include "offramp_seal.h"

#include <string.h>

enum {
    BLOCK = 16,
    LENGTH_BYTES = 2,                                                          /* of a text, RFC 3610's L */
    MAC_FLAGS = 1 << 6 | (SEAL_TAG_BYTES - 2) / 2 << 3 | (LENGTH_BYTES - 1), /* with data; RFC 3610, 2.2 */
    COUNTER_FLAGS = LENGTH_BYTES - 1,
};

static const uint8_t SUBSTITUTES[256] = {
    0x63, 0x7c, 0x77, 0x7b, 0xf2, 0x6b, 0x6f, 0xc5, 0x30, 0x01, 0x67, 0x2b, 0xfe, 0xd7, 0xab, 0x76,
    0xca, 0x82, 0xc9, 0x7d, 0xfa, 0x59, 0x47, 0xf0, 0xad, 0xd4, 0xa2, 0xaf, 0x9c, 0xa4, 0x72, 0xc0,
    0xb7, 0xfd, 0x93, 0x26, 0x36, 0x3f, 0xf7, 0xcc, 0x34, 0xa5, 0xe5, 0xf1, 0x71, 0xd8, 0x31, 0x15,
    0x04, 0xc7, 0x23, 0xc3, 0x18, 0x96, 0x05, 0x9a, 0x07, 0x12, 0x80, 0xe2, 0xeb, 0x27, 0xb2, 0x75,
    0x09, 0x83, 0x2c, 0x1a, 0x1b, 0x6e, 0x5a, 0xa0, 0x52, 0x3b, 0xd6, 0xb3, 0x29, 0xe3, 0x2f, 0x84,
    0x53, 0xd1, 0x00, 0xed, 0x20, 0xfc, 0xb1, 0x5b, 0x6a, 0xcb, 0xbe, 0x39, 0x4a, 0x4c, 0x58, 0xcf,
    0xd0, 0xef, 0xaa, 0xfb, 0x43, 0x4d, 0x33, 0x85, 0x45, 0xf9, 0x02, 0x7f, 0x50, 0x3c, 0x9f, 0xa8,
    0x51, 0xa3, 0x40, 0x8f, 0x92, 0x9d, 0x38, 0xf5, 0xbc, 0xb6, 0xda, 0x21, 0x10, 0xff, 0xf3, 0xd2,
    0xcd, 0x0c, 0x13, 0xec, 0x5f, 0x97, 0x44, 0x17, 0xc4, 0xa7, 0x7e, 0x3d, 0x64, 0x5d, 0x19, 0x73,
    0x60, 0x81, 0x4f, 0xdc, 0x22, 0x2a, 0x90, 0x88, 0x46, 0xee, 0xb8, 0x14, 0xde, 0x5e, 0x0b, 0xdb,
    0xe0, 0x32, 0x3a, 0x0a, 0x49, 0x06, 0x24, 0x5c, 0xc2, 0xd3, 0xac, 0x62, 0x91, 0x95, 0xe4, 0x79,
    0xe7, 0xc8, 0x37, 0x6d, 0x8d, 0xd5, 0x4e, 0xa9, 0x6c, 0x56, 0xf4, 0xea, 0x65, 0x7a, 0xae, 0x08,
    0xba, 0x78, 0x25, 0x2e, 0x1c, 0xa6, 0xb4, 0xc6, 0xe8, 0xdd, 0x74, 0x1f, 0x4b, 0xbd, 0x8b, 0x8a,
    0x70, 0x3e, 0xb5, 0x66, 0x48, 0x03, 0xf6, 0x0e, 0x61, 0x35, 0x57, 0xb9, 0x86, 0xc1, 0x1d, 0x9e,
    0xe1, 0xf8, 0x98, 0x11, 0x69, 0xd9, 0x8e, 0x94, 0x9b, 0x1e, 0x87, 0xe9, 0xce, 0x55, 0x28, 0xdf,
    0x8c, 0xa1, 0x89, 0x0d, 0xbf, 0xe6, 0x42, 0x68, 0x41, 0x99, 0x2d, 0x0f, 0xb0, 0x54, 0xbb, 0x16,
};

static uint8_t doubled(uint8_t value)
{
    return (uint8_t)(value << 1 ^ (value & 0x80 ? 0x1b : 0));
}

int seal_expand(seal_key *key, const uint8_t *bytes, size_t size)
{
    if (size != 16 && size != 32)
        return 0;
    size_t words = size / 4;
    uint8_t constant = 1;
    key->rounds = (uint8_t)(words + 6);
    memcpy(key->round_keys, bytes, size);
    for (size_t i = words; i < 4u * (key->rounds + 1u); i++) {
        uint8_t word[4];
        memcpy(word, key->round_keys + 4 * (i - 1), 4);
        if (i % words == 0) {
            uint8_t first = word[0];
            for (size_t b = 0; b < 3; b++)
                word[b] = SUBSTITUTES[word[b + 1]];
            word[3] = SUBSTITUTES[first];
            word[0] ^= constant;
            constant = doubled(constant);
        } else if (words == 8 && i % words == 4) {
            for (size_t b = 0; b < 4; b++)
                word[b] = SUBSTITUTES[word[b]];
        }
        for (size_t b = 0; b < 4; b++)
            key->round_keys[4 * i + b] = key->round_keys[4 * (i - words) + b] ^ word[b];
    }
    return 1;
}

static void add_round_key(const seal_key *key, size_t round, uint8_t *state)
{
    for (size_t i = 0; i < BLOCK; i++)
        state[i] ^= key->round_keys[BLOCK * round + i];
}

/* One block, in place. */
static void encrypt(const seal_key *key, uint8_t *state)
{
    add_round_key(key, 0, state);
    for (size_t round = 1; round <= key->rounds; round++) {
        uint8_t shifted[BLOCK];
        for (size_t i = 0; i < BLOCK; i++)
            shifted[i] = SUBSTITUTES[state[(i + 4 * (i % 4)) % BLOCK]];
        for (size_t c = 0; c < BLOCK; c += 4) {
            const uint8_t *s = shifted + c;
            if (round == key->rounds) {
                memcpy(state + c, s, 4);
                continue;
            }
            uint8_t all = s[0] ^ s[1] ^ s[2] ^ s[3];
            for (size_t b = 0; b < 4; b++)
                state[c + b] = (uint8_t)(s[b] ^ all ^ doubled(s[b] ^ s[(b + 1) % 4]));
        }
        add_round_key(key, round, state);
    }
}

/* Bytes into a chain of blocks; `at` is where the next one goes. */
static void chain(const seal_key *key, uint8_t *mac, size_t *at, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        mac[(*at)++] ^= bytes[i];
        if (*at == BLOCK) {
            encrypt(key, mac);
            *at = 0;
        }
    }
}

static void end_of_part(const seal_key *key, uint8_t *mac, size_t *at)
{
    if (*at)
        encrypt(key, mac);
    *at = 0;
}

static void authenticate(const seal_key *key, const uint8_t *nonce, const uint8_t *data, size_t data_bytes,
                         const uint8_t *more, size_t more_bytes, const uint8_t *text, size_t size, uint8_t *mac)
{
    size_t at = 0, length = data_bytes + more_bytes;
    uint8_t sizes[2] = {(uint8_t)(length >> 8), (uint8_t)length};
    mac[0] = MAC_FLAGS;
    memcpy(mac + 1, nonce, SEAL_NONCE_BYTES);
    mac[14] = (uint8_t)(size >> 8);
    mac[15] = (uint8_t)size;
    encrypt(key, mac);
    chain(key, mac, &at, sizes, 2);
    chain(key, mac, &at, data, data_bytes);
    chain(key, mac, &at, more, more_bytes);
    end_of_part(key, mac, &at);
    chain(key, mac, &at, text, size);
    end_of_part(key, mac, &at);
}

/* The key's stream over the text, from its counter's block on. */
static void cover(const seal_key *key, const uint8_t *nonce, uint32_t counter, uint8_t *text, size_t size)
{
    uint8_t stream[BLOCK];
    for (size_t i = 0; i < size; i++) {
        if (i % BLOCK == 0) {
            stream[0] = COUNTER_FLAGS;
            memcpy(stream + 1, nonce, SEAL_NONCE_BYTES);
            stream[14] = (uint8_t)(counter >> 8);
            stream[15] = (uint8_t)counter++;
            encrypt(key, stream);
        }
        text[i] ^= stream[i % BLOCK];
    }
}

void seal_close(const seal_key *key, const uint8_t *nonce, const uint8_t *data, size_t data_bytes, const uint8_t *more,
                size_t more_bytes, uint8_t *text, size_t size, uint8_t *tag)
{
    uint8_t mac[BLOCK];
    authenticate(key, nonce, data, data_bytes, more, more_bytes, text, size, mac);
    cover(key, nonce, 1, text, size);
    cover(key, nonce, 0, mac, SEAL_TAG_BYTES);
    memcpy(tag, mac, SEAL_TAG_BYTES);
}

int seal_open(const seal_key *key, const uint8_t *nonce, const uint8_t *data, size_t data_bytes, const uint8_t *more,
              size_t more_bytes, uint8_t *text, size_t size, const uint8_t *tag)
{
    uint8_t mac[BLOCK], differs = 0;
    cover(key, nonce, 1, text, size);
    authenticate(key, nonce, data, data_bytes, more, more_bytes, text, size, mac);
    cover(key, nonce, 0, mac, SEAL_TAG_BYTES);
    for (size_t i = 0; i < SEAL_TAG_BYTES; i++)
        differs |= (uint8_t)(mac[i] ^ tag[i]);
    return !differs;
}
