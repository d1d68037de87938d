/* Counts the bytes of live CPU tensors exactly: stands in front of c10::alloc_cpu and c10::free_cpu.
 *
 * Preloaded into the engine process. libc10.so calls both through its own PLT, so these definitions
 * win; the originals are looked up in the library that is already loaded (RTLD_NEXT finds nothing,
 * because torch is loaded RTLD_LOCAL). Sizes are malloc's own, at birth and at death alike.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_llong live, peak;

static void *original(const char *symbol) {
  void *library = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
  void *found = library ? dlsym(library, symbol) : NULL;
  if (!found) {
    fprintf(stderr, "memplan: libc10.so has no %s\n", symbol);
    abort();
  }
  return found;
}

void *_ZN3c109alloc_cpuEm(size_t size) { /* c10::alloc_cpu(unsigned long) */
  static void *(*call)(size_t);
  if (!call) call = (void *(*)(size_t))original("_ZN3c109alloc_cpuEm");
  void *memory = call(size);
  if (memory) {
    long long held = malloc_usable_size(memory);
    long long now = atomic_fetch_add(&live, held) + held;
    long long seen = atomic_load(&peak);
    while (now > seen && !atomic_compare_exchange_weak(&peak, &seen, now)) {
    }
  }
  return memory;
}

void _ZN3c108free_cpuEPv(void *memory) { /* c10::free_cpu(void*) */
  static void (*call)(void *);
  if (!call) call = (void (*)(void *))original("_ZN3c108free_cpuEPv");
  if (memory) atomic_fetch_sub(&live, (long long)malloc_usable_size(memory));
  call(memory);
}

int64_t memplan_live_bytes(void) { return atomic_load(&live); }

/* The most that was live since the last call; the next interval starts at what is live now. */
int64_t memplan_take_peak_bytes(void) { return atomic_exchange(&peak, atomic_load(&live)); }
