// Words that blocks of the kernel of all layers hand each other, and barriers within a block.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/cuda/tile_copies.cuh"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/hopper/decode_stack.h"

namespace minisgl::cuda::stack {

constexpr int kWarps = 8;  // that compute
constexpr int kComputing = kWarps * 32;
constexpr int kThreads = kComputing + 128;  // of the others one warp loads
constexpr int kTileRows = 8;                // rows of weights
constexpr int kUnit = 128;                  // inputs of a slot that a warp multiplies: four a lane
constexpr int kSlotInputs = kWarps * kUnit;
constexpr int kMostInputs = 16384;
constexpr int kPassRows = 32;    // tiles times rows of a pass, whose sums lie in shared memory
constexpr int kPositions = 16;   // of a tile of keys and values
constexpr int kMostQueries = 8;  // query heads of a KV head
constexpr int kRowPad = 64;      // bytes: neighbouring rows lie in other banks
constexpr int kTilesAhead = 3;   // that a warp has the second-level cache ask for
constexpr unsigned kMostWaits = 1u << 23;
constexpr int kKeptRows = 2048;  // positions of a block's part whose places in the cache it keeps

// Ends the kernel, with an error, where a wait takes longer than anything that it can wait for. A store to nowhere:
// beside a trap the compiler gives no thread more registers than the block started with.
__device__ __forceinline__ void count_wait(unsigned& waits) {
  if (++waits == kMostWaits) asm volatile("st.global.u32 [%0], %1;\n" ::"l"(std::uint64_t{0}), "r"(waits) : "memory");
}

__device__ __forceinline__ void wait_phase(std::uint32_t barrier, std::uint32_t parity) {
  unsigned waits = 0;
#pragma unroll 1
  for (std::uint32_t done = 0;; count_wait(waits)) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    if (done) return;
  }
}
__device__ __forceinline__ void sync_computing() {
  asm volatile("bar.sync 1, %0;\n" ::"n"(kComputing) : "memory");
}

__device__ __forceinline__ uint4 load_words(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ bool has_tag(const uint4& v, std::uint32_t tag) {
  return (((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) & 0xffffu) == 0;
}
__device__ __forceinline__ void await_words(const uint4* from, std::uint32_t tag, uint4& v) {
  unsigned waits = 0;
#pragma unroll 1
  for (; !has_tag(v, tag); count_wait(waits)) {
    v = load_words(from);
  }
}
__device__ __forceinline__ void store_word(std::uint32_t* to, float value, std::uint32_t tag) {
  const std::uint32_t bits = __bfloat16_as_ushort(__float2bfloat16(value));
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;\n" ::"l"(to), "r"(bits << 16 | (tag & 0xffffu)) : "memory");
}
// Of more than one row words are pairs of values without tags, half as many bytes. What stands where a pair has not
// been written yet: no pair looks so, as the conversion makes another NaN.
constexpr std::uint32_t kNoPair = 0xffffffffu;
__device__ __forceinline__ bool has_pairs(const uint4& v) {
  return v.x != kNoPair && v.y != kNoPair && v.z != kNoPair && v.w != kNoPair;
}
// A layer's pairs lie in one of two places in turn.
__device__ __forceinline__ std::uint32_t* pairs_of(const StackArgs& args, int index, std::uint32_t tag) {
  return args.words[index] + (tag % 2 == 0 ? 0 : args.pairs[index]);
}
__device__ __forceinline__ uint2 await_pairs(const uint2* from) {
  uint2 v;
  unsigned waits = 0;
#pragma unroll 1
  do {
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];\n" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
    count_wait(waits);
  } while (v.x == kNoPair || v.y == kNoPair);
  return v;
}
// Makes room for the pair of the layer behind, where that of the layer before lies, which all have read.
__device__ __forceinline__ void clear_pair(const StackArgs& args, int index, int at, std::uint32_t tag) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;\n" ::"l"(pairs_of(args, index, tag + 1) + at), "r"(kNoPair)
               : "memory");
}
__device__ __forceinline__ void store_pair(const StackArgs& args, int index, int at, std::uint32_t tag,
                                           std::uint32_t pair) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;\n" ::"l"(pairs_of(args, index, tag) + at), "r"(pair) : "memory");
  clear_pair(args, index, at, tag);
}
__device__ __forceinline__ float low_of(std::uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_of(std::uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
// f32 values of attention's parts, with tags of 32 bits.
__device__ __forceinline__ void store_part(std::uint64_t* to, float value, std::uint32_t tag) {
  const std::uint64_t word = std::uint64_t{__float_as_uint(value)} << 32 | tag;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;\n" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ void store_parts(std::uint64_t* to, float first, float second, std::uint32_t tag) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};\n" ::"l"(to),
               "l"(std::uint64_t{__float_as_uint(first)} << 32 | tag),
               "l"(std::uint64_t{__float_as_uint(second)} << 32 | tag)
               : "memory");
}
// Two of them that lie side by side.
__device__ __forceinline__ ulonglong2 load_parts(const std::uint64_t* from) {
  ulonglong2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n" : "=l"(v.x), "=l"(v.y) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ void await_parts(const std::uint64_t* from, std::uint32_t tag, ulonglong2& v) {
  unsigned waits = 0;
#pragma unroll 1
  for (; static_cast<std::uint32_t>(v.x) != tag || static_cast<std::uint32_t>(v.y) != tag; count_wait(waits))
    v = load_parts(from);
}
__device__ __forceinline__ float part_value(unsigned long long word) {
  return __uint_as_float(static_cast<std::uint32_t>(word >> 32));
}

__device__ __forceinline__ void fetch_to_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(from));
}
__device__ __forceinline__ void copy_row(std::uint32_t to, const void* from, std::uint32_t bytes,
                                         std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;\n" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(static_cast<std::uint64_t>(hopper::Keep::briefly))
      : "memory");
}

}  // namespace minisgl::cuda::stack
