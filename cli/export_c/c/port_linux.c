/* Standard input and output. */
#define _POSIX_C_SOURCE 200809L
#include "port.h"

#include <stdlib.h>
#include <unistd.h>

void port_open(void)
{
}

size_t port_read(void *to, size_t size)
{
    size_t got = 0;
    while (got < size) {
        ssize_t n = read(0, (uint8_t *)to + got, size - got);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    return got;
}

void port_write(const void *from, size_t size)
{
    while (size) {
        ssize_t n = write(1, from, size);
        if (n <= 0)
            exit(1);
        from = (const uint8_t *)from + n;
        size -= (size_t)n;
    }
}

uint32_t port_ticks(void)
{
    return 0;
}
