/* Rates is a quote service in C: each session gets a copy of the rate table, and one kind of session
 * never gives its copy back.
 *
 *   rates [SESSIONS-PER-SECOND]
 *
 * Prints its truth as a line of JSON each second and lives on until stdin closes. A table is larger
 * than what malloc keeps in its arenas, so that each one is a mapping.
 *
 * gcc -O1 -g -fno-omit-frame-pointer -pthread
 */
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TABLE_BYTES (256 * 1024)
#define RECENT 16

struct table {
    struct table *next;
    double rates[TABLE_BYTES / sizeof(double) - 8];
};

/* Tables of sessions that were closed by a time-out: nobody looks here again. */
static struct table *expired;
static long leaked;

/* The tables of the last sessions, a cache: the oldest makes room. */
static struct table *recent[RECENT];

static struct table *load_table(void)
{
    struct table *table = malloc(sizeof *table);
    if (table == NULL)
        exit(1);
    memset(table->rates, 1, sizeof table->rates);
    return table;
}

static void expire_session(void)
{
    struct table *table = load_table(); /* the leak */
    table->next = expired;
    expired = table;
    leaked++;
}

static void close_session(long number)
{
    struct table *table = load_table();
    free(recent[number % RECENT]);
    recent[number % RECENT] = table;
}

static void quote(void)
{
    struct table *table = load_table();
    free(table);
}

/* Milliseconds. */
static long now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    long per_second = argc > 1 ? atol(argv[1]) : 8;
    if (per_second <= 0 || per_second > 1000) {
        fprintf(stderr, "usage: rates [SESSIONS-PER-SECOND]\n");
        return 2;
    }
    /* Else the first free of a table would have malloc keep all later ones. */
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
    long began = now();
    for (long number = 0;; number++) {
        expire_session();
        close_session(number);
        for (int i = 0; i < 8; i++)
            quote();
        if (number % per_second == 0)
            printf("{\"pid\":%d,\"leaked\":%ld,\"leaked_bytes\":%ld}\n", getpid(), leaked,
                   leaked * (long)sizeof(struct table));
        char line[64];
        /* What a stall holds up is made up for. */
        long pause = began + (number + 1) * 1000 / per_second - now();
        if (poll(&input, 1, pause > 0 ? pause : 0) > 0 && read(STDIN_FILENO, line, sizeof line) <= 0)
            return 0;
    }
}
