// Every way of allocating and freeing that native allocators have, each from a function of its own, and
// the truth about it: what every function has allocated, and what of it was freed.
//
//   allocs [--threads N] [--seccomp] [--load LIBRARY]
//
// Lines on stdin: "run N" lets each thread do N rounds, "turn N" the same but nothing is kept, "load" opens LIBRARY as a plug-in would be,
// "fork" makes a child that allocates and ends, "leave" leaves an allocator by longjmp and by the end of
// a thread. Each is answered, when it is done, by a line of JSON. At first nothing is allocated.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

// Without this the compiler may know what `malloc` does and leave the pair out.
static void *volatile seen;

enum site {
	MALLOC, CALLOC, REALLOC, REALLOCARRAY, MEMALIGN, ALIGNED_ALLOC, POSIX_MEMALIGN, VALLOC, PVALLOC,
	KEPT, LARGE, MALLOCX, RALLOCX, XALLOCX, MI_MALLOC, MI_REALLOC, OWN, SITES
};

static const char *const names[SITES] = {
	"by_malloc", "by_calloc", "by_realloc", "by_reallocarray", "by_memalign", "by_aligned_alloc",
	"by_posix_memalign", "by_valloc", "by_pvalloc", "kept", "large", "by_mallocx", "by_rallocx",
	"by_xallocx", "by_mi_malloc", "by_mi_realloc", "by_own",
};

struct count { atomic_ullong allocs, alloc_bytes, frees, free_bytes; };
static struct count counts[SITES];

struct block { void *at; size_t size; enum site site; };

// What an allocator has that is not in C: null where the one in use does not.
static void *(*mallocx_)(size_t, int);
static void *(*rallocx_)(void *, size_t, int);
static size_t (*xallocx_)(void *, size_t, size_t, int);
static void (*sdallocx_)(void *, size_t, int);
static void *(*mi_malloc_)(size_t);
static void *(*mi_realloc_)(void *, size_t);
static void (*mi_free_)(void *);

static struct block born(enum site site, void *at, size_t size)
{
	if (!at)
		abort();
	seen = at;
	memset(at, 1, size < 16 ? size : 16);
	counts[site].allocs++;
	counts[site].alloc_bytes += size;
	return (struct block){ at, size, site };
}

static void died(struct block block)
{
	counts[block.site].frees++;
	counts[block.site].free_bytes += block.size;
}

static NOINLINE void give_back(struct block block)
{
	if (!block.at)
		return;
	died(block);
	if (block.site == MALLOCX && sdallocx_)
		sdallocx_(block.at, block.size, 0);
	else if ((block.site == MI_MALLOC || block.site == MI_REALLOC) && mi_free_)
		mi_free_(block.at);
	else
		free(block.at);
}

static NOINLINE struct block by_malloc(size_t size) { struct block b = born(MALLOC, malloc(size), size); return b; }
static NOINLINE struct block by_calloc(size_t size) { struct block b = born(CALLOC, calloc(3, size), 3 * size); return b; }
static NOINLINE struct block by_memalign(size_t size) { struct block b = born(MEMALIGN, memalign(256, size), size); return b; }
static NOINLINE struct block by_aligned_alloc(size_t size) { struct block b = born(ALIGNED_ALLOC, aligned_alloc(64, 64 * size), 64 * size); return b; }
static NOINLINE struct block by_valloc(size_t size) { struct block b = born(VALLOC, valloc(size), size); return b; }
#ifdef __GLIBC__
// Whole pages: some allocators round that up before the call goes on, others within.
static NOINLINE struct block by_pvalloc(size_t size) { size = 4096 * (1 + size / 512); struct block b = born(PVALLOC, pvalloc(size), size); return b; }
#endif
static NOINLINE struct block kept(size_t size) { struct block b = born(KEPT, malloc(size), size); return b; }
static NOINLINE struct block large(size_t size) { struct block b = born(LARGE, malloc(size), size); return b; }
static NOINLINE struct block by_mallocx(size_t size) { struct block b = born(MALLOCX, mallocx_(size, 0), size); return b; }
static NOINLINE struct block by_mi_malloc(size_t size) { struct block b = born(MI_MALLOC, mi_malloc_(size), size); return b; }

static NOINLINE struct block by_posix_memalign(size_t size)
{
	void *at = NULL;
	if (posix_memalign(&at, 128, size))
		abort();
	struct block b = born(POSIX_MEMALIGN, at, size);
	return b;
}

// One that fails leaves the block as it was; one that does not takes it.
static NOINLINE struct block by_realloc(struct block old, size_t size)
{
	void *volatile failed = realloc(old.at, PTRDIFF_MAX - 4096);
	if (failed)
		abort();
	void *at = realloc(old.at, size);
	if (old.at)
		died(old);
	struct block b = born(REALLOC, at, size);
	return b;
}

static NOINLINE struct block by_reallocarray(struct block old, size_t size)
{
	void *at = reallocarray(old.at, 2, size);
	died(old);
	struct block b = born(REALLOCARRAY, at, 2 * size);
	return b;
}

static NOINLINE struct block by_rallocx(struct block old, size_t size)
{
	void *at = rallocx_(old.at, size, 0);
	died(old);
	struct block b = born(RALLOCX, at, size);
	return b;
}

static NOINLINE struct block by_xallocx(struct block old, size_t size)
{
	if (xallocx_(old.at, size, 0, 0) < size)
		return old;
	died(old);
	struct block b = born(XALLOCX, old.at, size);
	return b;
}

static NOINLINE struct block by_mi_realloc(struct block old, size_t size)
{
	void *at = mi_realloc_(old.at, size);
	died(old);
	struct block b = born(MI_REALLOC, at, size);
	return b;
}

// Not every allocator that takes the place of the C library's has a `pvalloc`.
static int has_pvalloc;

#define RING 64

// Blocks on their way to the thread that frees them.
static _Atomic(struct block *) mailbox;

static int keeps;

static void round_of(uint64_t round, struct block *ring)
{
	size_t size = 16 + round * 7 % 1000;
	struct block new = { 0 };
	switch (round % 16) {
	case 0: new = by_malloc(size); break;
	case 1: new = by_calloc(size); break;
	case 2: new = by_realloc(by_malloc(size), 3 * size); break;
	case 3: new = by_reallocarray(by_malloc(size), size); break;
	case 4: new = by_memalign(size); break;
	case 5: new = by_aligned_alloc(size / 64 + 1); break;
	case 6: new = by_posix_memalign(size); break;
	case 7: new = by_valloc(size); break;
#ifdef __GLIBC__
	case 8: if (has_pvalloc) new = by_pvalloc(size); break;
#endif
	case 9: new = by_realloc((struct block){ 0 }, size); break;
	case 10: if (round % 256 == 10) new = large(300000 + size); break;
	case 11: if (mallocx_) new = by_mallocx(size); break;
	case 12: if (rallocx_) new = by_rallocx(by_malloc(size), 2 * size); break;
	case 13: if (xallocx_) new = by_xallocx(by_malloc(size), size + 1); break;
	case 14: if (mi_malloc_) new = by_mi_malloc(size); break;
	case 15: if (mi_realloc_) new = by_mi_realloc(by_mi_malloc(size), 5 * size); break;
	}
	if (keeps && round % 100 == 50)
		kept(48); // never freed
	struct block *place = &ring[round % RING];
	if (round % 5 == 3 && place->at) {
		// Another thread frees it; its envelope is not from an allocator.
		static _Thread_local struct block envelopes[2];
		static _Thread_local int turn;
		struct block *envelope = &envelopes[turn], *empty = NULL;
		*envelope = *place;
		if (atomic_compare_exchange_strong(&mailbox, &empty, envelope)) {
			// Ours until it was taken; so wait with the next one.
			while (atomic_load(&mailbox) == envelope)
				sched_yield();
			turn ^= 1;
		} else {
			give_back(*place);
		}
	} else {
		give_back(*place);
	}
	*place = new;
}

static atomic_int letters_stop;

static void *free_letters(void *unused)
{
	(void)unused;
	while (!letters_stop) {
		struct block *letter = atomic_load(&mailbox);
		if (letter) {
			struct block block = *letter;
			atomic_store(&mailbox, NULL);
			give_back(block);
		} else {
			sched_yield();
		}
	}
	return NULL;
}

static uint64_t rounds;
// All threads of a run are there until the last of them is done.
static pthread_barrier_t done;

static void *worker(void *unused)
{
	(void)unused;
	struct block ring[RING] = { 0 };
	for (uint64_t round = 0; round < rounds; round++)
		round_of(round, ring);
	for (int i = 0; i < RING; i++)
		give_back(ring[i]);
	pthread_barrier_wait(&done);
	return NULL;
}

static void run(int threads, uint64_t n)
{
	static pthread_t thread[8192];
	pthread_t letters;
	rounds = n;
	pthread_barrier_init(&done, NULL, threads);
	letters_stop = 0;
	// So small that the C library keeps them all.
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	pthread_create(&letters, &small, free_letters, NULL);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread[i], &small, worker, NULL))
			abort();
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	letters_stop = 1;
	pthread_join(letters, NULL);
}

// An allocator of the program's own, which may be left while it is at work.
static jmp_buf back;
static __thread int how;

NOINLINE void *je_malloc(size_t size)
{
	if (how == 1)
		longjmp(back, 1);
	if (how == 2)
		pthread_exit(NULL);
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

NOINLINE void je_free(void *at)
{
	seen = at;
	munmap(at, 4096);
}

static NOINLINE void by_own(void)
{
	struct block block = born(OWN, je_malloc(4096), 4096);
	died(block);
	je_free(block.at);
}

static void *end_in_mid_call(void *unused)
{
	(void)unused;
	how = 2;
	je_malloc(4096);
	return NULL;
}

static void *leave_thread(void *unused)
{
	(void)unused;
	pthread_exit(NULL);
}

static void leave(void)
{
	for (volatile int i = 0; i < 10; i++) {
		if (!setjmp(back)) {
			how = 1;
			je_malloc(4096);
		}
		how = 0;
		by_own();
	}
	pthread_t thread;
	pthread_create(&thread, NULL, end_in_mid_call, NULL);
	pthread_join(thread, NULL);
}

static void fork_child(void)
{
	pid_t child = fork();
	if (!child) {
		for (int i = 0; i < 1000; i++)
			seen = malloc(64);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static void find_others(void)
{
	Dl_info with, of;
	void *pvalloc_ = dlsym(RTLD_DEFAULT, "pvalloc");
	void *malloc_ = dlsym(RTLD_DEFAULT, "malloc");
	has_pvalloc = pvalloc_ && malloc_ && dladdr(pvalloc_, &of) && dladdr(malloc_, &with)
		      && of.dli_fbase == with.dli_fbase;
	mallocx_ = dlsym(RTLD_DEFAULT, "mallocx");
	rallocx_ = dlsym(RTLD_DEFAULT, "rallocx");
	xallocx_ = dlsym(RTLD_DEFAULT, "xallocx");
	sdallocx_ = dlsym(RTLD_DEFAULT, "sdallocx");
	mi_malloc_ = dlsym(RTLD_DEFAULT, "mi_malloc");
	mi_realloc_ = dlsym(RTLD_DEFAULT, "mi_realloc");
	mi_free_ = dlsym(RTLD_DEFAULT, "mi_free");
}

// A sandbox that knows nothing of the kernel's own system call for uretprobes, and kills for it.
static void sandbox(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 335, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		abort();
}

// Into a buffer of our own: stdio would allocate one.
static void tell(const char *asked)
{
	static char line[8192];
	size_t at = snprintf(line, sizeof line, "{\"asked\":\"%s\"", asked);
	for (int i = 0; i < SITES; i++)
		at += snprintf(line + at, sizeof line - at, ",\"%s\":[%llu,%llu,%llu,%llu]", names[i],
			       counts[i].allocs, counts[i].alloc_bytes, counts[i].frees, counts[i].free_bytes);
	at += snprintf(line + at, sizeof line - at, "}\n");
	if (write(1, line, at) != (ssize_t)at)
		abort();
}

int main(int argc, char **argv)
{
	int threads = 1;
	const char *library = NULL;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--threads"))
			threads = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--load"))
			library = argv[++i];
		else if (!strcmp(argv[i], "--seccomp"))
			sandbox();
	}
	find_others();
	// The C library keeps what it needs for a thread and for leaving one: let it have that now.
	run(threads, 0);
	pthread_t thread;
	if (pthread_create(&thread, NULL, leave_thread, NULL))
		abort();
	pthread_join(thread, NULL);
	tell("");
	static char line[256];
	for (size_t at = 0; read(0, line + at, 1) == 1;) {
		if (line[at] != '\n') {
			if (at < sizeof line - 2)
				at++;
			continue;
		}
		line[at] = 0;
		at = 0;
		if (!strncmp(line, "run ", 4) || !strncmp(line, "turn ", 5)) {
			keeps = line[0] == 'r';
			run(threads, strtoull(strchr(line, ' '), NULL, 10));
		} else if (!strcmp(line, "load")) {
			if (!dlopen(library, RTLD_NOW | RTLD_GLOBAL))
				abort();
			find_others();
		} else if (!strcmp(line, "fork")) {
			fork_child();
		} else if (!strcmp(line, "leave")) {
			leave();
		}
		tell(line);
	}
	return 0;
}
