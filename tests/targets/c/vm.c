/* Every way in which a process changes its mappings and its break, with the truth about it.
 *
 *   vm            each case once
 *   vm flood N    N mappings of one page from one place
 *   vm stacks N   N mappings of one page, each from a call stack of its own
 *
 * Prints "ready PID", waits for a line on stdin, works, prints the truth as one line of JSON and
 * lives on until stdin closes. A site is the function that asked the kernel: what mremap adds
 * belongs to mremap's caller, what it moves stays with the first one. Bytes are whole pages.
 *
 * Between the line and the truth nothing else maps memory: no stdio, no malloc but the one that is
 * a case, whose own structures, threads and stack pages are there before. The kernel's own count of
 * mapped pages is compared after every case and the program fails when it differs, so the truth is
 * checked before it is told.
 *
 * gcc -O1 -g -fno-omit-frame-pointer -pthread
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096L
#define SITE __attribute__((noinline, noipa))

static char *map_at(void *address, long length, int flags) __attribute__((always_inline));

/* Inlined, so that the function which calls mmap is the site. */
static inline char *map_at(void *address, long length, int flags)
{
    void *at = mmap(address, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* ---- talk ---------------------------------------------------------------------------------- */

static char text[1 << 16];
static int text_length;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    text_length += vsnprintf(text + text_length, sizeof text - text_length, format, arguments);
    va_end(arguments);
}

static void flush(void)
{
    for (int done = 0; done < text_length;) {
        ssize_t n = write(STDOUT_FILENO, text + done, text_length - done);
        if (n < 0)
            _exit(1);
        done += n;
    }
    text_length = 0;
}

__attribute__((noreturn)) static void fail(const char *what)
{
    const char *reason = strerrorname_np(errno);
    dprintf(STDERR_FILENO, "vm: %s (%s)\n", what, reason ? reason : "no error");
    _exit(1);
}

static void check(int true_, const char *what)
{
    if (!true_)
        fail(what);
}

/* False at the end of stdin. */
static int read_line(void)
{
    char byte;
    while (read(STDIN_FILENO, &byte, 1) == 1)
        if (byte == '\n')
            return 1;
    return 0;
}

/* Pages the kernel says are mapped. */
static long mapped_pages(void)
{
    char line[128];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, line, sizeof line - 1);
    check(fd >= 0 && n > 0, "failed to read statm");
    close(fd);
    long pages = 0;
    for (char *digit = line; *digit >= '0' && *digit <= '9'; digit++)
        pages = pages * 10 + (*digit - '0');
    return pages;
}

/* ---- truth --------------------------------------------------------------------------------- */

static struct site {
    const char *function, *kind;
    long pages;
} sites[64];
static int site_count;
static long expected_pages;

static void truth(const char *function, const char *kind, long pages)
{
    sites[site_count++] = (struct site){function, kind, pages};
    expected_pages += pages;
}

static void tell(long calls)
{
    say("{\"sites\":[");
    for (int i = 0; i < site_count; i++)
        say("%s{\"function\":\"%s\",\"kind\":\"%s\",\"live_bytes\":%ld}", i ? "," : "", sites[i].function,
            sites[i].kind, sites[i].pages * PAGE);
    say("],\"live_bytes\":%ld,\"calls\":%ld}\n", expected_pages * PAGE, calls);
    flush();
}

/* ---- mmap and munmap ----------------------------------------------------------------------- */

SITE static char *mmap_kept(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *mmap_freed(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *unmap_start(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *unmap_middle(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *unmap_end(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *unmap_twice(void) { return map_at(NULL, 16 * PAGE, 0); }

static void mmap_and_munmap(void)
{
    check(mmap_kept() != NULL, "mmap_kept");
    truth("mmap_kept", "mmap", 16);

    check(munmap(mmap_freed(), 16 * PAGE) == 0, "mmap_freed");
    truth("mmap_freed", "mmap", 0);

    check(munmap(unmap_start(), 3 * PAGE) == 0, "unmap_start");
    truth("unmap_start", "mmap", 13);

    check(munmap(unmap_middle() + 5 * PAGE, 4 * PAGE) == 0, "unmap_middle");
    truth("unmap_middle", "mmap", 12);

    check(munmap(unmap_end() + 9 * PAGE, 7 * PAGE) == 0, "unmap_end");
    truth("unmap_end", "mmap", 9);

    /* The second covers what the first has left of its range, and the hole. */
    char *at = unmap_twice();
    check(munmap(at + 4 * PAGE, 4 * PAGE) == 0 && munmap(at + 2 * PAGE, 8 * PAGE) == 0, "unmap_twice");
    truth("unmap_twice", "mmap", 8);
}

SITE static char *unaligned_kept(void) { return map_at(NULL, 5000, 0); }
SITE static char *unaligned_unmap(void) { return map_at(NULL, 3 * PAGE + 1, 0); }

static void unaligned_lengths(void)
{
    check(unaligned_kept() != NULL, "unaligned_kept");
    truth("unaligned_kept", "mmap", 2);

    check(munmap(unaligned_unmap(), 1) == 0, "unaligned_unmap"); /* one byte is a page */
    truth("unaligned_unmap", "mmap", 3);
}

SITE static char *span_first(char *at) { return map_at(at, 8 * PAGE, MAP_FIXED); }
SITE static char *span_second(char *at) { return map_at(at, 4 * PAGE, MAP_FIXED); }
SITE static char *span_third(char *at) { return map_at(at, 8 * PAGE, MAP_FIXED); }

/* A hole of `pages`: mapped from a place of its own and let go. */
SITE static char *find_room(long pages)
{
    char *at = map_at(NULL, pages * PAGE, 0);
    check(at != NULL && munmap(at, pages * PAGE) == 0, "find_room");
    return at;
}

/* One munmap over the end of the first, all of the second, a hole, and the start of the third. */
static void unmap_spanning(void)
{
    char *at = find_room(24);
    check(span_first(at) == at && span_second(at + 8 * PAGE) && span_third(at + 16 * PAGE), "span");
    check(munmap(at + 5 * PAGE, 14 * PAGE) == 0, "unmap_spanning");
    truth("find_room", "mmap", 0);
    truth("span_first", "mmap", 5);
    truth("span_second", "mmap", 0);
    truth("span_third", "mmap", 5);
}

SITE static char *fixed_under(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *fixed_middle(char *at) { return map_at(at, 4 * PAGE, MAP_FIXED); }
SITE static char *fixed_whole_under(void) { return map_at(NULL, 6 * PAGE, 0); }
SITE static char *fixed_whole(char *at) { return map_at(at, 6 * PAGE, MAP_FIXED); }

static void fixed_replacement(void)
{
    char *at = fixed_under();
    check(fixed_middle(at + 6 * PAGE) == at + 6 * PAGE, "fixed_middle");
    truth("fixed_under", "mmap", 12);
    truth("fixed_middle", "mmap", 4);

    at = fixed_whole_under();
    check(fixed_whole(at) == at, "fixed_whole");
    truth("fixed_whole_under", "mmap", 0);
    truth("fixed_whole", "mmap", 6);
}

/* ---- mremap -------------------------------------------------------------------------------- */

SITE static char *grow_in_place_under(char *at) { return map_at(at, 8 * PAGE, MAP_FIXED); }
SITE static char *grow_in_place(char *at) { return mremap(at, 8 * PAGE, 13 * PAGE, 0); }
SITE static char *grow_moved_under(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *grow_moved(char *at) { return mremap(at, 8 * PAGE, 20 * PAGE, MREMAP_MAYMOVE); }
SITE static char *shrink_under(void) { return map_at(NULL, 16 * PAGE, 0); }
SITE static char *shrink(char *at) { return mremap(at, 16 * PAGE, 5 * PAGE - 100, 0); }
SITE static char *move_from(void) { return map_at(NULL, 4 * PAGE, 0); }
SITE static char *move_onto(void) { return map_at(NULL, 16 * PAGE, 0); }

SITE static char *move_fixed(char *from, long old_length, char *to, long new_length)
{
    return mremap(from, old_length, new_length, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

static void remapping(void)
{
    char *room = find_room(16);
    char *at = grow_in_place_under(room);
    check(grow_in_place(at) == at, "grow_in_place");
    truth("grow_in_place_under", "mmap", 8);
    truth("grow_in_place", "mmap", 5);

    /* The first half has to go elsewhere: the second half is in its way. */
    at = grow_moved_under();
    char *moved = grow_moved(at);
    check(moved != MAP_FAILED && moved != at, "grow_moved");
    truth("grow_moved_under", "mmap", 16);
    truth("grow_moved", "mmap", 12);

    at = shrink_under();
    check(shrink(at) == at, "shrink");
    truth("shrink_under", "mmap", 5);
    truth("shrink", "mmap", 0);

    /* Four pages go onto another mapping, as six: what was there goes, two are new. */
    char *from = move_from(), *onto = move_onto();
    check(move_fixed(from, 4 * PAGE, onto + 2 * PAGE, 6 * PAGE) == onto + 2 * PAGE, "move_fixed");
    truth("move_from", "mmap", 4);
    truth("move_onto", "mmap", 10);
    truth("move_fixed", "mmap", 2);
}

/* ---- brk ----------------------------------------------------------------------------------- */

SITE static int brk_first(char *end) { return brk(end); }
SITE static int brk_unaligned(char *end) { return brk(end); }
SITE static int brk_down(char *end) { return brk(end); }
SITE static int brk_again(char *end) { return brk(end); }

static char *brk_base; /* a page boundary */

static void brk_up_and_down(void)
{
    check(brk_first(brk_base + 16 * PAGE) == 0, "brk_first");
    /* +1 page, +0, +1 */
    check(brk_unaligned(brk_base + 16 * PAGE + 100) == 0, "brk_unaligned");
    check(brk_unaligned(brk_base + 16 * PAGE + 200) == 0, "brk_unaligned");
    check(brk_unaligned(brk_base + 17 * PAGE + 1) == 0, "brk_unaligned");
    /* The last page goes, then the break moves within a page, then down into the first ones. */
    check(brk_down(brk_base + 17 * PAGE) == 0, "brk_down");
    check(brk_down(brk_base + 16 * PAGE + 50) == 0, "brk_down");
    check(brk_down(brk_base + 10 * PAGE + 1) == 0, "brk_down");
    check(brk_again(brk_base + 14 * PAGE - 1) == 0, "brk_again");
    truth("brk_first", "brk", 11);
    truth("brk_unaligned", "brk", 0);
    truth("brk_down", "brk", 0);
    truth("brk_again", "brk", 3);
}

/* ---- through libc, which keeps no frame pointers --------------------------------------------- */

SITE static char *sbrk_up(long length) { return sbrk(length); }
SITE static char *sbrk_down(long length) { return sbrk(length); }
SITE static char *malloc_mapped(long length) { return malloc(length); }

static void through_libc(void)
{
    /* sbrk has rbp for itself while it calls brk. The break is one byte short of a page. */
    check(sbrk_up(6 * PAGE) == brk_base + 14 * PAGE - 1, "sbrk_up");
    check(sbrk_down(-2 * PAGE) == brk_base + 20 * PAGE - 1, "sbrk_down");
    truth("sbrk_up", "brk", 4);
    truth("sbrk_down", "brk", 0);

    /* Larger than M_MMAP_THRESHOLD: a mapping of its own, with a header of 16 bytes. */
    check(malloc_mapped(64 * PAGE) != NULL, "malloc_mapped");
    truth("malloc_mapped", "mmap", 65);
}

/* ---- what fails changes nothing ------------------------------------------------------------ */

SITE static char *failing_under(void) { return map_at(NULL, 8 * PAGE, 0); }

SITE static void failing(char *at)
{
    check(map_at(NULL, 0, 0) == NULL && errno == EINVAL, "an empty mapping");
    check(map_at(at, PAGE, MAP_FIXED_NOREPLACE) == NULL && errno == EEXIST, "no replacement");
    check(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0) == MAP_FAILED && errno == EBADF, "no file");
    check(munmap(at + 1, PAGE) != 0 && errno == EINVAL, "an unaligned address");
    check(munmap(at, 0) != 0 && errno == EINVAL, "an empty range");
    check(mremap(at, 4 * PAGE, 6 * PAGE, 0) == MAP_FAILED && errno == ENOMEM, "no room");
    check(brk(brk_base + (1L << 46)) != 0 && errno == ENOMEM, "a break too far");
}

static void failing_calls(void)
{
    failing(failing_under());
    truth("failing_under", "mmap", 8);
    truth("failing", "mmap", 0);
}

/* ---- threads ------------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 2000, HELD = 8 };
static pthread_barrier_t storm_starts, storm_ends;

/* Maps, cuts and lets go, and holds nothing in the end. */
SITE static void storm(unsigned seed)
{
    char *held[HELD] = {0};
    long pages[HELD] = {0};
    for (int round = 0; round < ROUNDS + HELD; round++) {
        int i = round % HELD;
        if (held[i]) {
            long half = pages[i] / 2;
            check(half == 0 || munmap(held[i], half * PAGE) == 0, "storm");
            check(munmap(held[i] + half * PAGE, (pages[i] - half) * PAGE) == 0, "storm");
            held[i] = NULL;
        }
        if (round < ROUNDS) {
            seed = seed * 1103515245 + 12345;
            pages[i] = 1 + (seed >> 16) % 16;
            held[i] = map_at(NULL, pages[i] * PAGE, 0);
            check(held[i] != NULL, "storm");
        }
    }
}

static void *storm_thread(void *seed)
{
    pthread_barrier_wait(&storm_starts);
    storm((unsigned)(uintptr_t)seed);
    pthread_barrier_wait(&storm_ends);
    pause();
    return NULL;
}

static void threads(void)
{
    pthread_barrier_wait(&storm_starts);
    pthread_barrier_wait(&storm_ends);
    truth("storm", "mmap", 0);
}

/* ---- for counting losses ------------------------------------------------------------------- */

SITE static void flood(long calls)
{
    for (long i = 0; i < calls; i++)
        check(map_at(NULL, PAGE, 0) != NULL, "flood");
}

SITE static void stacks_leaf(void) { check(map_at(NULL, PAGE, 0) != NULL, "stacks"); }

/* The digits of `path` are the way to the leaf: another path, another stack. */
SITE static void stacks_turn(long path, int depth)
{
    if (depth == 0)
        stacks_leaf();
    else if (path & 1)
        stacks_turn(path >> 1, depth - 1);
    else
        stacks_turn(path >> 1, depth - 1);
    __asm__ volatile(""); /* no tail call */
}

static void stacks(long calls)
{
    int depth = 1;
    while (1L << depth < calls)
        depth++;
    for (long i = 0; i < calls; i++)
        stacks_turn(i, depth);
}

/* ---- the run ------------------------------------------------------------------------------- */

/* Stack pages, so that a deeper call maps nothing. */
SITE static void touch_stack(void)
{
    volatile char pages[64 * PAGE];
    for (long i = 0; i < (long)sizeof pages; i += PAGE)
        pages[i] = 1;
}

static void run_cases(void)
{
    void (*const cases[])(void) = {
        mmap_and_munmap, unaligned_lengths, unmap_spanning, fixed_replacement,
        remapping,       brk_up_and_down,   through_libc,   failing_calls,
        threads,
    };
    long before = mapped_pages();
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        errno = 0;
        cases[i]();
        check(mapped_pages() - before == expected_pages, "the kernel counts other pages");
    }
}

int main(int argc, char **argv)
{
    int is_flood = argc == 3 && strcmp(argv[1], "flood") == 0;
    int is_stacks = argc == 3 && strcmp(argv[1], "stacks") == 0;
    if (argc != 1 && !is_flood && !is_stacks) {
        dprintf(STDERR_FILENO, "usage: vm [flood N | stacks N]\n");
        return 2;
    }
    long calls = argc == 3 ? atol(argv[2]) : 0;

    touch_stack();
    free(malloc(1));
    if (argc == 1) {
        pthread_barrier_init(&storm_starts, NULL, THREADS + 1);
        pthread_barrier_init(&storm_ends, NULL, THREADS + 1);
        for (uintptr_t i = 1; i <= THREADS; i++) {
            pthread_t thread;
            check(pthread_create(&thread, NULL, storm_thread, (void *)i) == 0, "pthread_create");
        }
    }
    brk_base = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) / PAGE * PAGE);
    check(brk(brk_base) == 0, "brk");

    say("ready %d\n", getpid());
    flush();
    if (!read_line())
        return 0;

    if (argc == 1) {
        run_cases();
    } else {
        long before = mapped_pages();
        if (is_flood)
            flood(calls);
        else
            stacks(calls);
        truth(is_flood ? "flood" : "stacks_leaf", "mmap", calls);
        check(mapped_pages() - before == expected_pages, "the kernel counts other pages");
    }
    tell(calls);
    while (read_line())
        ;
    return 0;
}
