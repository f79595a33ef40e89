// Kept keeps blocks of malloc in each way that there is, or loses them, each from a function of its own that is
// named after it: what still points to a block is known.
//
// It says when it is ready, allocates at the first line on stdin, and says so; it ends when stdin closes. If that line
// is "fade" it keeps very many blocks in one way, and frees them from then on, one after the other. Built with
// LeakSanitizer it tells at the end what that has found.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef SANITIZED
#include <sanitizer/lsan_interface.h>
#endif

// Blocks of each kind, and their size.
enum { EACH = 64, SIZE = 240, FADING = 200000 };

#define APART __attribute__((noinline))

struct node {
	struct node *next;
	char rest[SIZE - sizeof(struct node *)];
};

void *in_global[EACH];
void *in_fading[FADING];
struct node *in_list;
char *inside[EACH];
__thread void *in_thread[EACH];
void **in_mapping;
void **in_block;
static pthread_barrier_t filled;

APART static void *lost(void) { return malloc(SIZE); }
APART static struct node *lost_list(void) { return malloc(sizeof(struct node)); }
APART static struct node *lost_ring(void) { return malloc(sizeof(struct node)); }
APART static void *kept_in_global(void) { return malloc(SIZE); }
APART static struct node *kept_in_list(void) { return malloc(sizeof(struct node)); }
APART static void *kept_by_inside(void) { return malloc(SIZE); }
APART static void *kept_on_stack(void) { return malloc(SIZE); }
APART static void *kept_in_thread(void) { return malloc(SIZE); }
APART static void *kept_in_block(void) { return malloc(SIZE); }
APART static struct node *kept_in_register(void) { return malloc(sizeof(struct node)); }
APART static void *kept_for_a_while(void) { return malloc(SIZE); }
APART static void *kept_in_mapping(void) { return malloc(SIZE); }

// What functions that have returned left on the stack.
APART static void wipe(void) {
	volatile char dead[1 << 15];
	memset((char *)dead, 0, sizeof dead);
}

static void *holder(void *unused) {
	(void)unused;
	void *volatile on_stack[EACH];
	for (int i = 0; i < EACH; i++) {
		on_stack[i] = kept_on_stack();
		in_thread[i] = kept_in_thread();
	}
	pthread_barrier_wait(&filled);
	for (;;)
		pause();
	return on_stack[0];
}

// A list whose first node only a register of a thread that waits points to.
APART static struct node *list_of_a_register(void) {
	struct node *list = NULL;
	for (int i = 0; i < EACH; i++) {
		struct node *node = kept_in_register();
		node->next = list;
		list = node;
	}
	return list;
}

static void *register_holder(void *unused) {
	(void)unused;
	struct node *list = list_of_a_register();
	pthread_barrier_wait(&filled);
	// pause() for ever, with the list in %rbx and what has been called before wiped off below the stack pointer.
	__asm__ volatile("lea -0x4000(%%rsp), %%rdi\n\t"
			 "mov $0x800, %%ecx\n\t"
			 "xor %%eax, %%eax\n\t"
			 "rep stosq\n"
			 "1:\tmov $34, %%eax\n\t"
			 "syscall\n\t"
			 "jmp 1b"
			 : "+b"(list)
			 :
			 : "rax", "rcx", "rdi", "r11", "memory");
	return NULL;
}

APART static void fill(void) {
	for (int i = 0; i < EACH; i++) {
		void *volatile forgotten = lost();
		forgotten = NULL;
		(void)forgotten;
		in_global[i] = kept_in_global();
		inside[i] = (char *)kept_by_inside() + 100;
		in_mapping[i] = kept_in_mapping();
	}
	struct node *list = NULL;
	for (int i = 0; i < EACH; i++) {
		struct node *node = lost_list();
		node->next = list;
		list = node;
		node = kept_in_list();
		node->next = in_list;
		in_list = node;
	}
	struct node *first = lost_ring(), *last = first;
	for (int i = 1; i < EACH; i++) {
		last->next = lost_ring();
		last = last->next;
	}
	last->next = first;
	in_block = malloc(EACH * sizeof *in_block);
	for (int i = 0; i < EACH; i++)
		in_block[i] = kept_in_block();
	pthread_t thread;
	pthread_create(&thread, NULL, holder, NULL);
	pthread_create(&thread, NULL, register_holder, NULL);
	pthread_barrier_wait(&filled);
}

// Some 20,000 a second.
static void *fade(void *unused) {
	(void)unused;
	for (int i = 0; i < FADING; i++) {
		void *block = in_fading[i];
		in_fading[i] = NULL;
		free(block);
		if (i % 20 == 0)
			usleep(850);
	}
	return NULL;
}

int main(void) {
	char line[64];
	pthread_barrier_init(&filled, NULL, 3);
	// With room around, or the kernel may make one mapping of it and of a stack.
	char *room = mmap(NULL, 3 << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	in_mapping = (void **)(room + (1 << 16));
	mprotect(in_mapping, 1 << 16, PROT_READ | PROT_WRITE);
	printf("{\"ready\":true,\"pid\":%d}\n", getpid());
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		return 1;
	if (strcmp(line, "fade\n") == 0) {
		pthread_t thread;
		for (int i = 0; i < FADING; i++)
			in_fading[i] = kept_for_a_while();
		pthread_create(&thread, NULL, fade, NULL);
	} else {
		fill();
	}
	wipe();
	printf("{\"each\":%d,\"size\":%d}\n", EACH, SIZE);
	fflush(stdout);
	while (fgets(line, sizeof line, stdin))
		;
#ifdef SANITIZED
	__lsan_do_leak_check();
#endif
	_exit(0);
}
