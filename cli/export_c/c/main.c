/* A program around the three calls, for a PC and for a microcontroller alike: records in, a line out for each.
 *
 *   'T' and a float32, little-endian: start again with this threshold
 *   'I' and an image's pixels   -> image CLASS CONFIDENCE BYTES DATAGRAM, and unknown where it is
 *   'K', two bytes of a device's number, four of the first number and 16 of a key: as offramp_set_key
 *   'R', two bytes of size, little-endian, and a reply -> reply STATUS CLASS CONFIDENCE PART ERROR
 *
 * Numbers are decimal; a confidence is eight hexadecimal digits, a float32's bits; a datagram is hexadecimal, or
 * -. Exit status 0 at the end of the input between two records, 1 within one or after a record of another
 * kind. port.h has what differs from machine to machine. */
#include "offramp.h"
#include "port.h"

#ifdef OFFRAMP_LAYER_TICKS
#include "offramp_layers.h"
#endif

#include <string.h>

enum { LINE = 128, MOST_REPLY = 512 };

static uint8_t pixels[OFFRAMP_IMAGE_BYTES];
static char line[LINE];
static size_t used;

static void flush_line(void)
{
    port_write(line, used);
    used = 0;
}

static void put(const char *text)
{
    for (; *text; text++) {
        if (used == LINE)
            flush_line();
        line[used++] = *text;
    }
}

static void put_number(uint32_t number)
{
    char digits[11];
    char *at = digits + sizeof digits - 1;
    *at = 0;
    do {
        *--at = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    put(" ");
    put(at);
}

static void put_hex(uint32_t number, int digits)
{
    for (int i = digits - 1; i >= 0; i--) {
        char digit[2] = {"0123456789abcdef"[number >> (4 * i) & 15], 0};
        put(digit);
    }
}

static void put_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put(" ");
    put_hex(bits, 8);
}

static int take_image(void)
{
    offramp_result result;
    if (port_read(pixels, sizeof pixels) != sizeof pixels)
        return 0;
    uint32_t before = port_ticks();
    if (offramp_classify(pixels, &result) != OFFRAMP_OK)
        return 0;
    uint32_t ticks = port_ticks() - before;
    put("image");
    put_number(result.early.class_index);
    put_float(result.early.confidence);
    put_number((uint32_t)result.size);
    put(result.size ? " " : " -");
    for (size_t i = 0; i < result.size; i++)
        put_hex(result.datagram[i], 2);
    if (result.unknown)
        put(" unknown");
    if (ticks) {
        put(" ticks");
        put_number(ticks);
    }
#ifdef OFFRAMP_LAYER_TICKS
    uint32_t start = port_ticks(), reading = port_ticks() - start;
    put(" layers");
    put_number(reading);
    for (uint32_t i = 0; i < OFFRAMP_LAYERS; i++)
        put_number(offramp_layer_ticks[i]);
#endif
    return 1;
}

static int take_reply(void)
{
    static uint8_t reply[MOST_REPLY];
    offramp_answer answer = {0};
    uint8_t size[2];
    if (port_read(size, 2) != 2)
        return 0;
    size_t bytes = (size_t)size[0] | (size_t)size[1] << 8;
    if (bytes > sizeof reply || port_read(reply, bytes) != bytes)
        return 0;
    put("reply");
    put_number((uint32_t)offramp_reply(reply, bytes, &answer));
    put_number(answer.class_index);
    put_float(answer.confidence);
    put_number(answer.part);
    put_number(answer.error);
    return 1;
}

static int take_threshold(void)
{
    float threshold = 0.0f;
    if (port_read(&threshold, sizeof threshold) != sizeof threshold)
        return 0;
    put("threshold");
    put_number((uint32_t)offramp_init(0, threshold));
    return 1;
}

static int take_key(void)
{
    uint8_t given[22];
    if (port_read(given, sizeof given) != sizeof given)
        return 0;
    uint32_t number = 0;
    for (int i = 0; i < 4; i++)
        number |= (uint32_t)given[2 + i] << (8 * i);
    put("key");
    put_number((uint32_t)offramp_set_key((uint16_t)(given[0] | given[1] << 8), given + 6, 16, number));
    return 1;
}

int main(void)
{
    uint8_t kind;
    port_open();
    offramp_init(0, OFFRAMP_THRESHOLD);
    while (port_read(&kind, 1) == 1) {
        int taken = kind == 'I'   ? take_image()
                    : kind == 'R' ? take_reply()
                    : kind == 'T' ? take_threshold()
                    : kind == 'K' ? take_key()
                                  : 0;
        if (!taken)
            return 1;
        put("\n");
        flush_line();
    }
    return 0;
}
