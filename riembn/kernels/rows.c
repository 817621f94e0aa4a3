/* Fused row updates on a CPU, for float and double; compiled by riembn/kernels/c_library.py, called by cpu.py. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define SAFE_EXPONENT 24 /* as in riembn/optim/reference.py */
#define PAGE 4096
#define LINE 64

/* A processor reads ahead by itself, but stops at the end of a page of memory until it has looked up where the next one
 * lies, which a virtual machine makes slow. Asking for one line of a page well ahead has that looked up meanwhile. More
 * lines of it made things worse (they confuse the reading ahead); 8 to 24 pages ahead did the same. Near the end of a
 * tensor the page is another's, or nobody's: a prefetch never faults. */
static inline void ask_for_page(const void *here) {
    __builtin_prefetch((const void *)(((uintptr_t)here + 24 * PAGE) & ~(uintptr_t)(PAGE - 1)));
}

/* The first lines of the next row are on their way while this one is written. */
static inline void ask_for_start(const void *row) {
    for (uintptr_t line = 0; line < 16; line++) __builtin_prefetch((const void *)((uintptr_t)row + LINE * line));
}

/* Each thread takes the rows whose entries lie in its equal share of all entries: neighbors in memory, no queue. */
typedef struct { int64_t tensor, row; } place_t;

static place_t place_of(int64_t tensors, const int64_t *rows, const int64_t *fan_in, double share) {
    double total = 0, before = 0;
    for (int64_t k = 0; k < tensors; k++) total += (double)rows[k] * (double)fan_in[k];
    const double wanted = share * total;
    for (int64_t k = 0; k < tensors; k++) {
        const double size = (double)rows[k] * (double)fan_in[k];
        if (before + size > wanted) return (place_t){k, (int64_t)((wanted - before) / (double)fan_in[k])};
        before += size;
    }
    return (place_t){tensors, 0};
}

#define PARTED(tensors, rows, fan_in, k, row)                                                                     \
    const double count_ = omp_get_num_threads(), mine_ = omp_get_thread_num();                                    \
    const place_t from_ = place_of(tensors, rows, fan_in, mine_ / count_);                                        \
    const place_t to_ = place_of(tensors, rows, fan_in, (mine_ + 1) / count_);                                    \
    for (int64_t k = from_.tensor; k < tensors && k <= to_.tensor; k++)                                           \
        for (int64_t row = k == from_.tensor ? from_.row : 0, end_ = k == to_.tensor ? to_.row : rows[k];         \
             row < end_; row++)

#define REAL float
#define NAME(x) x##_float
#define TINY 1e-30 /* below, squares of float have lost digits */
#define HUGE_SQUARE 1e37
#include "rows.h"
#undef REAL
#undef NAME
#undef TINY
#undef HUGE_SQUARE

#define REAL double
#define NAME(x) x##_double
#define TINY 1e-280
#define HUGE_SQUARE 1e300
#include "rows.h"
