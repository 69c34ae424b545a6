/* AES-CCM (FIPS 197, RFC 3610) as datagrams use it: a nonce of 13 bytes, a tag of 8. Not for callers. */
#ifndef OFFRAMP_SEAL_H
#define OFFRAMP_SEAL_H

#include <stddef.h>
#include <stdint.h>

enum { SEAL_NONCE_BYTES = 13, SEAL_TAG_BYTES = 8 };

typedef struct {
    uint8_t round_keys[15 * 16];
    uint8_t rounds;
} seal_key;

/* A key of 16 or 32 bytes; 0 for another size. */
int seal_expand(seal_key *key, const uint8_t *bytes, size_t size);

/* Hides the text in place and writes its tag. data: authenticated, not hidden; two pieces, below 65,280 bytes. */
void seal_close(const seal_key *key, const uint8_t *nonce, const uint8_t *data, size_t data_bytes, const uint8_t *more,
                size_t more_bytes, uint8_t *text, size_t size, uint8_t *tag);

/* Shows it again, in place; 0 where the tag is not the right one, and then the text is not to be used. */
int seal_open(const seal_key *key, const uint8_t *nonce, const uint8_t *data, size_t data_bytes, const uint8_t *more,
              size_t more_bytes, uint8_t *text, size_t size, const uint8_t *tag);

#endif
