// PTX of compute capability 9.0a: products of a warpgroup (128 threads) with tiles in shared memory, barriers in shared
// memory, registers moved between warpgroups. Semantics: PTX ISA 8.x, "Asynchronous warpgroup level matrix
// instructions" and "mbarrier".
//
// Tiles are [rows][64] of 2-byte elements, 128 bytes per row, at a multiple of 1024 bytes, swizzled: the 16-byte chunk
// c of row r lies at chunk c ^ (r % 8). A wider matrix is a sequence of such tiles, 64 columns each.
#pragma once

#include <cstdint>

#include "core/cuda/math.cuh"

namespace minisgl::cuda::hopper {

constexpr int kTileColumns = 64;
constexpr int kTileRowBytes = 2 * kTileColumns;

// What an instruction needs to know of a tile at `address`: groups of 8 rows lie `row_stride` bytes apart. For a matrix
// whose columns are the product's columns, the next 64 of them lie `column_stride` bytes on.
__device__ __forceinline__ std::uint64_t tile_descriptor(std::uint32_t address, std::uint32_t column_stride,
                                                         std::uint32_t row_stride = 1024) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  return kSwizzle128 | std::uint64_t{row_stride >> 4} << 32 | std::uint64_t{column_stride >> 4} << 16 |
         ((address & 0x3ffff) >> 4);
}

// Called before the first product of a batch, and after registers that products read or write were touched.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most `pending` committed batches are under way.
template <int pending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}
// Tells the compiler that products under way change `d` (it sees their registers only at the instruction itself).
template <int size>
__device__ __forceinline__ void touch(float (&d)[size][4]) {
#pragma unroll
  for (int j = 0; j < size; ++j)
    asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
}

// Has x computed before the waits that follow, while products are under way: the assembler would move it
// behind them, but it doesn't move a store over them, even one that never happens. x is not negative.
__device__ __forceinline__ void compute_before_next_wait(float x, float* shared) {
  asm volatile(
      "{\n.reg .pred negative;\nsetp.lt.f32 negative, %0, 0f00000000;\n@negative st.shared.f32 [%1], %0;\n}\n" ::"f"(x),
      "r"(shared_address(shared))
      : "memory");
}

// d [64 x n] f32 (+)= a [64 x 16] · b. A lane of warp w holds rows 16 w + lane / 4 (+ 8), of each 8 columns
// 2 * (lane % 4) and the next: d[j][0], d[j][1] in the upper row, d[j][2], d[j][3] in the lower.
template <typename T, int n>
struct Product;

#define MINISGL_OUT8(j)                                                                                                \
  "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3]), "+f"(d[j + 1][0]), "+f"(d[j + 1][1]), "+f"(d[j + 1][2]), \
      "+f"(d[j + 1][3])
#define MINISGL_OUT32(j) MINISGL_OUT8(j), MINISGL_OUT8(j + 2), MINISGL_OUT8(j + 4), MINISGL_OUT8(j + 6)
#define MINISGL_OUT_16 MINISGL_OUT8(0)
#define MINISGL_OUT_32 MINISGL_OUT8(0), MINISGL_OUT8(2)
#define MINISGL_OUT_64 MINISGL_OUT32(0)
#define MINISGL_OUT_80 MINISGL_OUT32(0), MINISGL_OUT8(8)
#define MINISGL_OUT_96 MINISGL_OUT32(0), MINISGL_OUT8(8), MINISGL_OUT8(10)
#define MINISGL_OUT_128 MINISGL_OUT32(0), MINISGL_OUT32(8)
#define MINISGL_OUT_256 MINISGL_OUT_128, MINISGL_OUT32(16), MINISGL_OUT32(24)
#define MINISGL_REG_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define MINISGL_REG_32 MINISGL_REG_16 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define MINISGL_REG_64 MINISGL_REG_32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MINISGL_REG_80 MINISGL_REG_64 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define MINISGL_REG_96 MINISGL_REG_80 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define MINISGL_REG_128 MINISGL_REG_96 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define MINISGL_REG_256                                                                                       \
  MINISGL_REG_128                                                                                             \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89," \
  "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112," \
  "%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// r0 to r5: the operands after the n / 2 of d.
#define MINISGL_PRODUCT(T, type, n, r0, r1, r2, r3, r4, r5)                                                      \
  template <>                                                                                                    \
  struct Product<T, n> {                                                                                         \
    /* a and b in shared memory, both with 16 columns of theirs: d = a · bᵀ. accumulate 0 forgets what d was. */ \
    static __device__ __forceinline__ void shared(float (&d)[n / 8][4], std::uint64_t a, std::uint64_t b,        \
                                                  int accumulate) {                                              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r2                                                      \
                   ", 0;\n"                                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" MINISGL_REG_##n          \
                   "}, %" #r0 ", %" #r1 ", p, 1, 1, 0, 0;\n}\n"                                                  \
                   : MINISGL_OUT_##n                                                                             \
                   : "l"(a), "l"(b), "r"(accumulate)                                                             \
                   : "memory");                                                                                  \
    }                                                                                                            \
    /* a in registers, b [16 x n] in shared memory: d += a · b. */                                               \
    static __device__ __forceinline__ void registers(float (&d)[n / 8][4], const std::uint32_t (&a)[4],          \
                                                     std::uint64_t b, int accumulate) {                          \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r5                                                      \
                   ", 0;\n"                                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" MINISGL_REG_##n          \
                   "}, {%" #r0 ",%" #r1 ",%" #r2 ",%" #r3 "}, %" #r4 ", p, 1, 1, 1;\n}\n"                        \
                   : MINISGL_OUT_##n                                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)                         \
                   : "memory");                                                                                  \
    }                                                                                                            \
    /* a in registers, b [n x 16] in shared memory: d = a · bᵀ. */                                               \
    static __device__ __forceinline__ void registers_rows(float (&d)[n / 8][4], const std::uint32_t (&a)[4],     \
                                                          std::uint64_t b, int accumulate) {                     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #r5                                                      \
                   ", 0;\n"                                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" MINISGL_REG_##n          \
                   "}, {%" #r0 ",%" #r1 ",%" #r2 ",%" #r3 "}, %" #r4 ", p, 1, 1, 0;\n}\n"                        \
                   : MINISGL_OUT_##n                                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)                         \
                   : "memory");                                                                                  \
    }                                                                                                            \
  };
#define MINISGL_PRODUCTS(n, r0, r1, r2, r3, r4, r5)        \
  MINISGL_PRODUCT(bf16, "bf16", n, r0, r1, r2, r3, r4, r5) \
  MINISGL_PRODUCT(half, "f16", n, r0, r1, r2, r3, r4, r5)
MINISGL_PRODUCTS(16, 8, 9, 10, 11, 12, 13)
MINISGL_PRODUCTS(32, 16, 17, 18, 19, 20, 21)
MINISGL_PRODUCTS(64, 32, 33, 34, 35, 36, 37)
MINISGL_PRODUCTS(80, 40, 41, 42, 43, 44, 45)
MINISGL_PRODUCTS(96, 48, 49, 50, 51, 52, 53)
MINISGL_PRODUCTS(128, 64, 65, 66, 67, 68, 69)
MINISGL_PRODUCTS(256, 128, 129, 130, 131, 132, 133)
#undef MINISGL_PRODUCTS
#undef MINISGL_PRODUCT

// Of a barrier that lies at this address of shared memory: see Barrier.
__device__ __forceinline__ void init_barrier(std::uint32_t barrier, std::uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive_barrier(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// A barrier in shared memory that completes a phase when `count` threads have arrived.
struct Barrier {
  std::uint64_t state;

  __device__ void init(std::uint32_t count) { init_barrier(shared_address(&state), count); }
  __device__ __forceinline__ void arrive() { arrive_barrier(shared_address(&state)); }
  // Arrives when the copies that this thread has begun are done.
  __device__ __forceinline__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(shared_address(&state)) : "memory");
  }
  // Waits until the phase of this parity is complete; the phase of parity 1 is, for a new barrier.
  __device__ __forceinline__ void wait(std::uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(
            shared_address(&state)),
        "r"(parity)
        : "memory");
  }
};

// The stage whose turn it is, and the parity of the phase in which its barriers are.
template <int stages>
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// What ordinary instructions wrote to shared memory may be read by products from here on.
__device__ __forceinline__ void publish_to_products() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Barriers 1 to 15 of the block, for `threads` of its threads.
__device__ __forceinline__ void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// Registers of each thread of a warpgroup from here on.
template <int count>
__device__ __forceinline__ void shrink_registers_to() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void grow_registers_to() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(count));
}

}  // namespace minisgl::cuda::hopper
