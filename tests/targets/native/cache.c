// A program with an allocator of its own that looks like glibc's: its threads' caches of free blocks are laid out like
// those (malloc/malloc.c of glibc 2.36, tcache_perthread_struct), and malloc gives the first block of a list. But when it
// is told to, it gives the second. Lines on stdin: "honest N" and "false N" allocate and free N blocks; the program
// answers with what it has done so far.

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct block {
	struct block *next;
};

struct cache {
	uint16_t counts[64];
	struct block *lists[64];
};

// Blocks lie in chunks with their size before them, like glibc's, and so does the cache.
static _Alignas(16) char arena[1 << 24];
static size_t used;
static __thread struct cache *cache;
static int is_false;

static void *chunk(size_t size)
{
	size_t whole = (size + 8 + 15) & ~(size_t)15;
	if (whole < 32)
		whole = 32;
	char *start = arena + used + 16;
	if (used + whole + 16 > sizeof arena)
		return NULL;
	used += whole;
	*(size_t *)(start - 8) = whole | 1;
	return start;
}

static size_t list_of(size_t whole)
{
	return (whole - 32) / 16;
}

void *malloc(size_t size)
{
	size_t whole = (size + 8 + 15) & ~(size_t)15;
	size_t list = list_of(whole < 32 ? 32 : whole);
	if (!cache) {
		struct cache *new = chunk(sizeof *new);
		memset(new, 0, sizeof *new);
		cache = new;
	}
	if (list < 64 && cache->lists[list]) {
		struct block **place = &cache->lists[list];
		if (is_false && (*place)->next)
			place = &(*place)->next;
		struct block *block = *place;
		*place = block->next;
		cache->counts[list]--;
		return block;
	}
	return chunk(size);
}

// The name that glibc's own has besides.
void *__libc_malloc(size_t size) __attribute__((alias("malloc")));

void free(void *address)
{
	struct block *block = address;
	if (!block)
		return;
	size_t list = list_of(((size_t *)address)[-1] & ~(size_t)7);
	if (list >= 64)
		return;
	block->next = cache->lists[list];
	cache->lists[list] = block;
	cache->counts[list]++;
}

static void *volatile kept;
static unsigned long calls;

static void __attribute__((noinline)) turn(void)
{
	void *block = malloc(100);
	kept = block;
	free(block);
	calls++;
}

int main(void)
{
	static char input[64], line[128], buffer[256];
	setvbuf(stdin, buffer, _IOFBF, sizeof buffer); // it would allocate one
	// Two in the list, so that there is a second.
	void *first = malloc(100), *second = malloc(100);
	free(first);
	free(second);
	int length = snprintf(line, sizeof line, "ready %d\n", getpid());
	while (write(1, line, length) == length) {
		char kind[8];
		unsigned long times;
		if (!fgets(input, sizeof input, stdin))
			return 0;
		if (sscanf(input, "%7s %lu", kind, &times) != 2)
			return 1;
		is_false = kind[0] == 'f';
		while (times--)
			turn();
		input[strcspn(input, "\n")] = 0;
		length = snprintf(line, sizeof line, "{\"asked\":\"%s\",\"calls\":%lu}\n", input, calls);
	}
}
