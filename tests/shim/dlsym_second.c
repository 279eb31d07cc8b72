/* dlsym_second.c - see dlsym_first.c. */
__attribute__((visibility("default"))) int dlsym_which(void);
int dlsym_which(void) { return 2; }
