/* Arm's MPS2 board with a Cortex-M4 or M7 (AN386, AN500), as QEMU has it: start-up, and files of the PC that runs it by
 * Arm's semihosting: offramp.in is read, offramp.out written. A board of yours has its own start-up and drivers.
 *
 * With OFFRAMP_TICKS the system timer is read, in cycles of the board's 25 MHz. Under `qemu-system-arm -icount shift=8`
 * an instruction takes 256 ns, which is 6.4 cycles of 40 ns: fine enough to count each one. */
#include "port.h"

#include <string.h>

int main(void);
void reset(void);
void fault(void);
int semihosting(int call, const void *arguments);
/* From mps2.ld: only their addresses mean something, of the two with bytes in their names a size. */
extern uint32_t stack_top, data_start, data_load, data_bytes, bss_start, bss_bytes;

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 24, OPEN_READ = 1, OPEN_WRITE = 5 };
static int input, output;

__attribute__((naked)) int semihosting(int call, const void *arguments)
{
    (void)call;
    (void)arguments;
    __asm volatile("bkpt 0xab\n bx lr");
}

static int open_file(const char *name, uint32_t mode)
{
    struct {
        const char *name;
        uint32_t mode, length;
    } arguments = {name, mode, strlen(name)};
    return semihosting(SYS_OPEN, &arguments);
}

static uint32_t transfer(int call, int file, const void *at, size_t size)
{
    struct {
        int file;
        const void *at;
        uint32_t size;
    } arguments = {file, at, size};
    return (uint32_t)semihosting(call, &arguments); /* bytes that were not transferred */
}

void port_open(void)
{
    input = open_file("offramp.in", OPEN_READ);
    output = open_file("offramp.out", OPEN_WRITE);
}

size_t port_read(void *to, size_t size)
{
    size_t left = size;
    while (left) {
        size_t still = transfer(SYS_READ, input, (uint8_t *)to + (size - left), left);
        if (still >= left) /* the end; more than that is an error */
            break;
        left = still;
    }
    return size - left;
}

void port_write(const void *from, size_t size)
{
    transfer(SYS_WRITE, output, from, size);
}

#ifdef OFFRAMP_TICKS
#define SYSTICK ((volatile uint32_t *)0xE000E010) /* control, reload, value */
enum { ENABLE = 1, INTERRUPT = 2, CORE_CLOCK = 4, RELOAD = 0xFFFFFF };
static volatile uint32_t turns;

void port_turn(void);
void port_turn(void)
{
    turns++;
}

uint32_t port_ticks(void)
{
    if (!SYSTICK[0]) {
        SYSTICK[1] = RELOAD;
        SYSTICK[2] = 0;
        SYSTICK[0] = ENABLE | INTERRUPT | CORE_CLOCK;
    }
    uint32_t before, now;
    do {
        before = turns;
        now = SYSTICK[2];
    } while (before != turns);
    return (before + 1) * (RELOAD + 1u) - now;
}
#else
#define port_turn fault
uint32_t port_ticks(void)
{
    return 0;
}
#endif

void fault(void)
{
    semihosting(SYS_EXIT, (const void *)0x20023); /* a run-time error */
    for (;;)
        ;
}

void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* the floating-point unit on */
    __asm volatile("dsb\n isb");
    memcpy(&data_start, &data_load, (uintptr_t)&data_bytes);
    memset(&bss_start, 0, (uintptr_t)&bss_bytes);
    /* An application's exit, or a run-time error: the status is all that this call can say. */
    semihosting(SYS_EXIT, main() ? (const void *)0x20023 : (const void *)0x20026);
    for (;;)
        ;
}

typedef struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vector_table;

__attribute__((section(".vectors"), used)) static const vector_table vectors = {
    &stack_top, {reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, port_turn},
};
