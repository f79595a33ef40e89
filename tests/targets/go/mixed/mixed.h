#include <stddef.h>

/* Blocks so large that malloc maps each, and so small that it moves the program break for them. */
void leak_large(size_t bytes);
void leak_small(size_t bytes);
/* A mapping of its own. */
void leak_mapping(size_t bytes);
/* Starts a thread that calls Go ten times a second. */
void start_clock(void);
