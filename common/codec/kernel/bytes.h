/* Loads, stores and bit tricks, for any byte order and any alignment.
 *
 * OFFRAMP_PORTABLE takes the way in plain C everywhere, so that it can be tested where it is not needed. */
#ifndef OFFRAMP_BYTES_H
#define OFFRAMP_BYTES_H

#include "coder.h"

#include <string.h>

#if defined(__GNUC__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#define ALWAYS_INLINE static inline
#endif

/* x86-64 since 2013 (v3) shifts by a variable amount in one instruction instead of three, and has wider vectors for
 * the compiler to use, given leave to. */
#if defined(__GNUC__) && defined(__x86_64__) && !defined(OFFRAMP_PORTABLE)
#define HAVE_X86_64_V3 (__builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx2"))
#define TARGET_X86_64_V3 __attribute__((target("bmi2,avx2")))
#else
#define HAVE_X86_64_V3 0
#define TARGET_X86_64_V3
#endif

#if defined(__GNUC__) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ &&               \
    !defined(OFFRAMP_PORTABLE)
ALWAYS_INLINE uint64_t load_be64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

ALWAYS_INLINE void store_be64(uint8_t *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, 8);
}

ALWAYS_INLINE void store_le32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

ALWAYS_INLINE uint64_t load_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

ALWAYS_INLINE void store_le64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, 8);
}

ALWAYS_INLINE uint32_t count_trailing_zeros(uint64_t v)
{
    return (uint32_t)__builtin_ctzll(v);
}

ALWAYS_INLINE uint32_t count_leading_zeros(uint64_t v)
{
    return (uint32_t)__builtin_clzll(v);
}
#else
ALWAYS_INLINE uint64_t load_be64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

ALWAYS_INLINE void store_be64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

ALWAYS_INLINE void store_le32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++, v >>= 8)
        p[i] = (uint8_t)v;
}

ALWAYS_INLINE uint64_t load_le64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

ALWAYS_INLINE void store_le64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++, v >>= 8)
        p[i] = (uint8_t)v;
}

ALWAYS_INLINE uint32_t count_trailing_zeros(uint64_t v)
{
    uint32_t n = 0;
    for (; !(v & 1); v >>= 1)
        n++;
    return n;
}

ALWAYS_INLINE uint32_t count_leading_zeros(uint64_t v)
{
    uint32_t n = 0;
    for (; !(v >> 63); v <<= 1)
        n++;
    return n;
}
#endif

/* floor(x * reciprocal / 2^64). */
ALWAYS_INLINE uint32_t quotient(uint32_t x, uint64_t reciprocal)
{
#if defined(__SIZEOF_INT128__) && !defined(OFFRAMP_PORTABLE)
    __extension__ typedef unsigned __int128 uint128;
    return (uint32_t)((uint128)x * reciprocal >> 64);
#else
    uint64_t low = (reciprocal & 0xFFFFFFFF) * x, high = (reciprocal >> 32) * x;
    return (uint32_t)((high + (low >> 32)) >> 32);
#endif
}

/* Bytes of a lane's length: a lane of an activation below 64 Ki symbols is shorter than 64 KiB. */
static inline uint32_t length_width(const coder_shape *shape)
{
    return (uint64_t)shape->channels * shape->plane < 65536 ? 2 : 4;
}

static inline void store_length(uint8_t *p, uint32_t width, size_t length)
{
    for (uint32_t i = 0; i < width; i++)
        p[i] = (uint8_t)(length >> (8 * i));
}

static inline size_t load_length(const uint8_t *p, uint32_t width)
{
    size_t length = 0;
    for (uint32_t i = 0; i < width; i++)
        length |= (size_t)p[i] << (8 * i);
    return length;
}

#endif
