/* What differs between a PC and a microcontroller, for main.c: where records come from, and where lines go. */
#ifndef PORT_H
#define PORT_H

#include <stddef.h>
#include <stdint.h>

void port_open(void);
/* As many bytes as asked for, fewer at the end of the input. */
size_t port_read(void *to, size_t size);
void port_write(const void *from, size_t size);
/* A clock for measuring, or always 0. */
uint32_t port_ticks(void);

#endif
