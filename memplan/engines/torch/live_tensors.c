/* Counts the bytes of live CPU tensors exactly: stands in front of c10::alloc_cpu and c10::free_cpu.
 *
 * Preloaded into the engine process. libc10.so calls both through its own PLT, so these definitions
 * win; the originals are looked up in the library that is already loaded (RTLD_NEXT finds nothing,
 * because torch is loaded RTLD_LOCAL). Sizes are malloc's own. Every tensor that is not small is
 * remembered with the owner that was set when it was made, so that the composition at the peak is known.
 *
 * Called thousands of times a step, between computations that leave nothing in the processor's caches:
 * what counts here is how many lines of memory are touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OWNERS 64          /* parts of the model that memory is told apart by */
#define RECENT 64          /* live tensors that are looked for first: most live for a moment only */
#define SLOTS (1 << 15)    /* for older ones; half of them can be taken */
#define ALLOCATE "_ZN3c109alloc_cpuEm"
#define FREE "_ZN3c108free_cpuEPv"
#define SMALL (64 << 10)   /* tensors below this many bytes are counted for owner 0: a step makes
                              thousands of them, one after the other, and few live at once */

/* All that a small tensor touches beside its own size: one line of memory.
 *
 * The thread that takes the counts needs no lock for its small tensors: no other thread touches net and
 * most. Where other threads make tensors meanwhile, a peak is off by what these hold at most. */
static struct {
  int32_t owner;     /* module << 8 | owner; set by the engine before it enters a part of the model */
  int32_t counting;  /* 0: neither what is made nor what is freed; for measuring what counting costs */
  int32_t is_glibc;  /* malloc keeps a size before what it gives */
  int32_t module_at_most;
  int64_t net, most; /* bytes made less freed since they were booked last, now and at most */
  uintptr_t taker;   /* the thread that takes the counts; 0: none yet */
  void *(*allocate)(size_t);
  void (*release)(void *);
} hot __attribute__((aligned(64))) = {.counting = 1};

/* What a tensor that is not small touches first: another line. */
static struct {
  atomic_flag lock;
  int32_t module_at_peak;
  int32_t recent_count, remembered;
  int64_t live, peak;
  int64_t not_remembered; /* bytes of tensors for which there was no slot */
  int64_t by_owner[OWNERS], by_owner_at_peak[OWNERS];
} now __attribute__((aligned(64))) = {.lock = ATOMIC_FLAG_INIT};

struct tensor {
  uintptr_t address;
  int64_t size_owner; /* size << 8 | owner */
};
static struct tensor recent[RECENT] __attribute__((aligned(64))); /* the newest about last */
static struct tensor older[SLOTS];

static void take_lock(void) {
  while (atomic_flag_test_and_set_explicit(&now.lock, memory_order_acquire)) {
  }
}
static void give_lock(void) { atomic_flag_clear_explicit(&now.lock, memory_order_release); }

static uintptr_t this_thread(void) {
#ifdef __x86_64__
  uintptr_t self; /* as pthread_self, without a call */
  __asm__("mov %%fs:0x10, %0" : "=r"(self));
  return self;
#else
  return (uintptr_t)pthread_self();
#endif
}

/* glibc's malloc_usable_size, which looks at the header of the next chunk too. */
static int64_t glibc_size(const void *memory) {
  size_t head = ((const size_t *)memory)[-1];
  return (int64_t)(head & ~(size_t)7) - (head & 2 ? 16 : 8); /* 2: a mapping of its own */
}

static int64_t size_of(void *memory) {
  return hot.is_glibc ? glibc_size(memory) : (int64_t)malloc_usable_size(memory);
}

/* Whether malloc is glibc's and sizes stand where they do in those that we know. */
static int has_glibc_sizes(void) {
  void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  if (!libc || dlsym(libc, "malloc") != dlsym(RTLD_DEFAULT, "malloc")) return 0;
  /* To free a mapping of less than 32 MiB would raise the size from which glibc maps. */
  static const size_t sizes[] = {1, 25, 1000, 70000, 40 << 20};
  int is_same = sizeof(size_t) == 8;
  for (size_t i = 0; is_same && i < sizeof sizes / sizeof *sizes; i++) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, sizes[i])) return 0;
    is_same = glibc_size(memory) == (int64_t)malloc_usable_size(memory);
    free(memory);
  }
  return is_same;
}

static void *original(void *library, const char *symbol) {
  void *found = library ? dlsym(library, symbol) : NULL;
  if (!found) {
    fprintf(stderr, "memplan: libc10.so has no %s\n", symbol);
    abort();
  }
  return found;
}

static __attribute__((noinline, cold)) void find_originals(void) {
  void *libc10 = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
  hot.is_glibc = has_glibc_sizes();
  hot.release = (void (*)(void *))original(libc10, FREE);
  hot.allocate = (void *(*)(size_t))original(libc10, ALLOCATE);
}

/* Open addressing with linear probing; a removal moves later entries of its run back. */
static size_t home_of(uintptr_t address) { return (address >> 6) * 0x9E3779B97F4A7C15ull >> 49; }

static void put(struct tensor tensor) {
  if (now.remembered > SLOTS / 2) { /* counted for owner 0 from now on */
    int64_t size = tensor.size_owner >> 8;
    now.not_remembered += size;
    now.by_owner[(tensor.size_owner & 0xff) % OWNERS] -= size;
    now.by_owner[0] += size;
    return;
  }
  size_t slot = home_of(tensor.address);
  while (older[slot].address) slot = (slot + 1) % SLOTS;
  older[slot] = tensor;
  now.remembered++;
}

static void remember(uintptr_t address, int64_t size_owner) {
  if (now.recent_count == RECENT) {
    int half = RECENT / 2;
    for (int i = 0; i < half; i++) put(recent[i]);
    now.recent_count -= half;
    memmove(recent, recent + half, now.recent_count * sizeof *recent);
  }
  recent[now.recent_count++] = (struct tensor){address, size_owner};
}

static int64_t forget(uintptr_t address) { /* -1: never remembered */
  for (int i = now.recent_count - 1; i >= 0; i--) {
    if (recent[i].address != address) continue;
    int64_t found = recent[i].size_owner;
    recent[i] = recent[--now.recent_count]; /* nearly in order; to move the rest is a cold call */
    return found;
  }
  size_t slot = home_of(address);
  while (older[slot].address != address) {
    if (!older[slot].address) return -1;
    slot = (slot + 1) % SLOTS;
  }
  int64_t found = older[slot].size_owner;
  for (size_t next = (slot + 1) % SLOTS; older[next].address; next = (next + 1) % SLOTS) {
    size_t distance = (next - home_of(older[next].address)) % SLOTS;
    if (distance >= (next - slot) % SLOTS) {
      older[slot] = older[next];
      slot = next;
    }
  }
  older[slot].address = 0;
  now.remembered--;
  return found;
}

static void note_peak(int64_t bytes, int32_t module) {
  now.peak = bytes;
  now.module_at_peak = module;
  memcpy(now.by_owner_at_peak, now.by_owner, sizeof now.by_owner);
}

/* Before anything else changes what is live; the lock is held. */
static void book_ours(void) {
  if (now.live + hot.most > now.peak) {
    note_peak(now.live + hot.most, hot.module_at_most);
    now.by_owner_at_peak[0] += hot.most;
  }
  now.live += hot.net;
  now.by_owner[0] += hot.net;
  hot.net = hot.most = 0;
}

static __attribute__((noinline)) void born(void *memory, int64_t size) {
  int32_t at = hot.owner, owner = (at & 0xff) % OWNERS;
  int is_small = size < SMALL;
  take_lock();
  if (this_thread() == hot.taker) book_ours();
  now.live += size;
  now.by_owner[is_small ? 0 : owner] += size;
  if (!is_small) remember((uintptr_t)memory, size << 8 | owner);
  if (now.live > now.peak) note_peak(now.live, at >> 8);
  give_lock();
}

static __attribute__((noinline)) void died(void *memory, int64_t size) {
  int is_small = size < SMALL;
  take_lock();
  if (this_thread() == hot.taker) book_ours();
  int64_t found = is_small ? size << 8 : forget((uintptr_t)memory);
  if (found < 0) { /* made without a slot, or while nothing was counted */
    if (now.not_remembered < size) size = now.not_remembered;
    now.not_remembered -= size;
    found = size << 8;
  }
  now.live -= found >> 8;
  now.by_owner[found & 0xff] -= found >> 8;
  give_lock();
}

void *_ZN3c109alloc_cpuEm(size_t size) { /* c10::alloc_cpu(unsigned long) */
  if (!hot.allocate) find_originals();
  void *memory = hot.allocate(size);
  if (!memory || !hot.counting) return memory;
  int64_t made_bytes = size_of(memory);
  if (made_bytes >= SMALL || this_thread() != hot.taker) {
    born(memory, made_bytes);
  } else if ((hot.net += made_bytes) > hot.most) {
    hot.most = hot.net;
    hot.module_at_most = hot.owner >> 8;
  }
  return memory;
}

void _ZN3c108free_cpuEPv(void *memory) { /* c10::free_cpu(void*) */
  if (!hot.allocate) find_originals();
  if (memory && hot.counting) {
    int64_t freed_bytes = size_of(memory);
    if (freed_bytes >= SMALL || this_thread() != hot.taker)
      died(memory, freed_bytes);
    else
      hot.net -= freed_bytes;
  }
  hot.release(memory);
}

/* To be called by one thread, whose small tensors are counted without a lock from then on.
 * The interval that ends now: out[0] the peak of live bytes in it, out[1] live now, out[2] the module
 * at the peak, then OWNERS values: bytes by owner at the peak. The next one starts at what is live. */
void memplan_take_tensors(int64_t *out) {
  take_lock();
  if (!hot.taker) hot.taker = this_thread();
  if (this_thread() == hot.taker) book_ours();
  out[0] = now.peak;
  out[1] = now.live;
  out[2] = now.module_at_peak;
  memcpy(out + 3, now.by_owner_at_peak, sizeof now.by_owner);
  now.peak = now.live;
  now.module_at_peak = 0;
  memcpy(now.by_owner_at_peak, now.by_owner, sizeof now.by_owner);
  give_lock();
}

/* To be written: owner, and behind it counting. */
int32_t *memplan_tensors_told(void) { return &hot.owner; }

/* Where nothing was counted for a while, what is remembered may be gone: forgets all of it, if it is much.
 * What is live is wrong from then on. */
void memplan_forget_tensors(void) {
  take_lock();
  if (now.remembered >= SLOTS / 4) {
    memset(older, 0, sizeof older);
    now.remembered = now.recent_count = 0;
  }
  give_lock();
}

/* Of Python's stable interface, so that none of its headers is needed. Weak: what is preloaded is so into
 * every program that the engine starts too. */
#define WEAK __attribute__((weak))
WEAK void *PyBytes_FromStringAndSize(const char *, ssize_t), *PyCFunction_NewEx(void *, void *, void *);
WEAK void *PyObject_Vectorcall(void *, void *const *, size_t, void *);
WEAK char *PyBytes_AsString(void *);
WEAK void Py_IncRef(void *), Py_DecRef(void *);

struct part {
  void *forward;
  int32_t running;
};

static void *call_part(void *self, void *const *arguments, ssize_t count, void *names) {
  const struct part *part = (const void *)PyBytes_AsString(self);
  int32_t before = hot.owner;
  hot.owner = part->running;
  void *made = PyObject_Vectorcall(part->forward, arguments, (size_t)count, names);
  hot.owner = before;
  return made;
}

static struct { /* PyMethodDef, Include/methodobject.h */
  const char *name;
  void *(*function)(void *, void *const *, ssize_t, void *);
  int flags;
  const char *doc;
} method = {"forward", call_part, 0x80 | 0x2 /* METH_FASTCALL | METH_KEYWORDS */, NULL};

/* A function of Python's: forward, while running is the owner. Forward lives as long as the process. The
 * same written in Python takes 5 us at every part of a model, whose layers leave nothing of it cached. */
void *memplan_part_function(void *forward, int32_t running) {
  struct part part = {forward, running};
  void *self = PyBytes_FromStringAndSize((const char *)&part, sizeof part);
  if (!self) return NULL;
  Py_IncRef(forward);
  void *made = PyCFunction_NewEx(&method, self, NULL);
  Py_DecRef(self);
  return made;
}

/* Python's own heap: arenas of small objects, mapped one by one. */
static atomic_llong interpreter_bytes;

void *memplan_map_arena(void *context, size_t size) {
  (void)context;
  void *arena = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (arena == MAP_FAILED) return NULL;
  atomic_fetch_add(&interpreter_bytes, (long long)size);
  return arena;
}

void memplan_unmap_arena(void *context, void *arena, size_t size) {
  (void)context;
  munmap(arena, size);
  atomic_fetch_sub(&interpreter_bytes, (long long)size);
}

int64_t memplan_interpreter_bytes(void) { return atomic_load(&interpreter_bytes); }
