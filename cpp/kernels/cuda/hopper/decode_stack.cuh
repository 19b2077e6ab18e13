// All layers of a decode step of few rows in one kernel, whose blocks run at once, one a processor. Bound by reading
// the weights once.
//
// One warp of a block, the loader, streams the block's share of all weights through a ring in shared memory, from layer
// to layer, and waits for nothing but room in it and, so that words don't wait behind weights, for those that it has
// asked for. The others multiply what lies there as soon as the activations come: each warp the same inputs of all
// weights. Activations travel between blocks as words. In steps of one row a word is a bf16 value with a tag that says
// which layer of which step wrote it: whoever reads it asks for it until it has the tag that is due. In steps of more
// rows it is a pair of values, in one of two places in turn, and its writer has cleared the place a layer before: half
// as many bytes, but a pair takes longer to come. So there are no barriers between blocks.
//
// A word is written or cleared again a layer later. By then all have read it: whoever does it has read something that
// depends on words which each block wrote after it had read that one. For this every block has a share of each product.
#pragma once

#include <limits>

#include "kernels/cuda/hopper/decode_stack_loader.cuh"

namespace minisgl::cuda::stack {

// The warps that multiply. Code runs once a layer and is read anew each time where it is long, so all products share
// it.
template <int dim, bool single>
class Computing {
  static constexpr int kBatch = 8;

 public:
  __device__ Computing(const StackArgs& args, const Room& room, unsigned char* memory, std::uint32_t epoch)
      : args_(args),
        room_(room),
        memory_(memory),
        base_(shared_address(memory)),
        epoch_(epoch),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        layers_(reinterpret_cast<StackLayer*>(memory + room.layers)),
        full_(base_ + room.barriers),
        weights_(base_ + room.ring + lane_ / 4 * kRowBytes + warp_ * kUnit * 2 + lane_ % 4 * 16),
        attention_(args, memory + room.attention, reinterpret_cast<std::int32_t*>(memory + room.rows)) {}

  __device__ __forceinline__ void run() {
    prepare();
    bool is_first = true;
#pragma unroll 1
    for (int layer = 0; layer < args_.num_layers; ++layer) {
      layer_ = layers_ + layer;
      tag_ = epoch_ + static_cast<std::uint32_t>(layer) + 1;
      is_last_ = layer + 1 == args_.num_layers;
#pragma unroll 1
      for (int p = 0; p < 4; ++p) {
        const auto product = static_cast<Product>(p);
        const Cut& cut = room_.cuts[p];
        Unit first, second;  // their weights are at hand before x is
        read_first(product, cut, first, second);
        gather(product, cut, is_first);
        is_first = false;
        multiply(product, cut, first, second);
        if (product == Product::qkv) {
          if (!is_last_) fetch_norms(layer_ + 1);
          attention_.run(*layer_, is_last_ ? nullptr : layer_ + 1, tag_);
        }
      }
    }
  }

 private:
  // What a lane multiplies of a slot.
  struct Unit {
    uint4 x[kUnit / 32], weights[kUnit / 32];
  };

  // What stays the same over the layers.
  __device__ __forceinline__ void prepare() {
    for (int i = threadIdx.x; i < args_.num_layers * static_cast<int>(sizeof(StackLayer) / 8); i += kComputing)
      reinterpret_cast<std::uint64_t*>(layers_)[i] = reinterpret_cast<const std::uint64_t*>(args_.layers)[i];
    auto* shares = reinterpret_cast<Share*>(memory_ + room_.shares);
    if (threadIdx.x < 4) shares[threadIdx.x] = share_of(room_.cuts[threadIdx.x]);
    const Share down = share_of(room_.cuts[static_cast<int>(Product::down)]);
    const int first = down.first * kTileRows;
    own_ = (down.end - down.first) * kTileRows;
    auto* residual = reinterpret_cast<float*>(memory_ + room_.residual);
    for (int i = threadIdx.x; i < args_.rows * own_; i += kComputing)
      residual[i] = to_float(args_.residual[std::int64_t{i / own_} * args_.hidden + first + i % own_]);
    attention_.prepare();
    sync_computing();
    fetch_norm(layers_->input_norm);
    attention_.fetch(*layers_);
  }

  // Has the second-level cache ask for norms of a later layer, a line a block.
  __device__ __forceinline__ void fetch_norms(const StackLayer* layer) const {
    if (threadIdx.x >= 2) return;
    const float* norm = threadIdx.x == 0 ? layer->input_norm : layer->mlp_norm;
    for (int i = 32 * static_cast<int>(blockIdx.x); i < args_.hidden; i += 32 * static_cast<int>(gridDim.x))
      fetch_to_l2(norm + i);
    const float* heads = threadIdx.x == 0 ? layer->query_norm : layer->key_norm;
    if (heads != nullptr && 32 * blockIdx.x < dim) fetch_to_l2(heads + 32 * blockIdx.x);
  }

  // A warp's inputs of a product, the same of each slot, come to x from other blocks' words, or of the first product
  // from the step's embedded tokens; where there is a norm times its weights, and their squares are summed by units.
  __device__ __forceinline__ void gather(Product product, const Cut& cut, bool is_first) {
    const bool normed = product == Product::qkv || product == Product::gate_up;
    const int index = product == Product::qkv ? 4 : static_cast<int>(product);
    const std::uint32_t tag = product == Product::qkv ? tag_ - 1 : tag_;
    x_stride_ = cut.slots * kSlotInputs * 2 + kRowPad;
    if (normed) {
      squares_at_ ^= 1;
      wait_copies<0>();  // the norm's weights
      __syncwarp();
    } else if (product == Product::output || !is_last_) {
      fetch_norm(product == Product::output ? layer_->mlp_norm : layer_[1].input_norm);
    }
    if constexpr (single) {
      gather_row(args_.words[index], tag, cut, normed, is_first);
    } else {
      const std::uint32_t* pairs = pairs_of(args_, index, tag);
      gather_rows(is_first ? args_.residual : reinterpret_cast<const bf16*>(pairs), cut, normed, is_first);
    }
    __syncwarp();
  }
  // All that are lacking are asked for at once, as often as it takes.
  __device__ __forceinline__ void gather_row(const std::uint32_t* words, std::uint32_t tag, const Cut& cut, bool normed,
                                             bool is_first) {
    const int own = warp_ * kUnit + lane_ * 4;
#pragma unroll 1
    for (int first = 0; first < cut.slots; first += kBatch) {
      uint4 v[kBatch];
      int at[kBatch];  // -1: nothing to ask for
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int input = (first + i) * kSlotInputs + own;
        at[i] = first + i < cut.slots && input < cut.inputs ? input : -1;
        v[i] = make_uint4(~tag, 0, 0, 0);
      }
      unsigned waits = 0;
#pragma unroll 1
      for (bool lacks = true; lacks; count_wait(waits)) {
        lacks = false;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (at[i] < 0 || has_tag(v[i], tag)) continue;
          v[i] = is_first ? embedded(at[i], tag) : load_words(reinterpret_cast<const uint4*>(words + at[i]));
          lacks = true;
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i >= cut.slots) break;
        take_words(v[i], (first + i) * kSlotInputs + own, cut.inputs, normed, first + i);
      }
    }
  }
  __device__ __forceinline__ void take_words(const uint4& v, int input, int inputs, bool normed, int slot) {
    auto& x = *reinterpret_cast<uint2*>(memory_ + room_.x + input * 2);
    const bool is_input = input < inputs;
    if (!normed) {
      x = is_input ? make_uint2(__byte_perm(v.x, v.y, 0x7632), __byte_perm(v.z, v.w, 0x7632)) : make_uint2(0, 0);
      return;
    }
    const float value[4] = {is_input ? high_of(v.x) : 0.0f, is_input ? high_of(v.y) : 0.0f,
                            is_input ? high_of(v.z) : 0.0f, is_input ? high_of(v.w) : 0.0f};
    const float4 weight = *reinterpret_cast<const float4*>(memory_ + room_.norm + input * 4);
    x = make_uint2(pack2<bf16>(value[0] * weight.x, value[1] * weight.y),
                   pack2<bf16>(value[2] * weight.z, value[3] * weight.w));
    const float squares =
        warp_sum(value[0] * value[0] + value[1] * value[1] + value[2] * value[2] + value[3] * value[3]);
    if (lane_ == 0) squares_of()[slot * 2 * kWarps + warp_] = squares;
  }
  // Half a warp takes one row, the other half the next.
  __device__ __forceinline__ void gather_rows(const bf16* from, const Cut& cut, bool normed, bool is_first) {
    const int slots = cut.slots, inputs = cut.inputs, own = warp_ * kUnit + lane_ % 16 * 8;
    const int items = (args_.rows + 1) / 2 * slots;
    int row = lane_ / 16, slot = 0;
#pragma unroll 1
    for (int first = 0; first < items; first += kBatch) {
      uint4 v[kBatch];
      int at[kBatch];  // -1: nothing to ask for
      int next_row = row, next_slot = slot;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int input = next_slot * kSlotInputs + own;
        at[i] = first + i < items && next_row < args_.rows && input < inputs ? next_row * inputs + input : -1;
        const std::uint32_t start = at[i] < 0 ? 0 : kNoPair;
        v[i] = make_uint4(start, start, start, start);
        if (++next_slot == slots) {
          next_slot = 0;
          next_row += 2;
        }
      }
      unsigned waits = 0;
#pragma unroll 1
      for (bool lacks = true; lacks; count_wait(waits)) {
        lacks = false;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (at[i] < 0 || has_pairs(v[i])) continue;
          v[i] = load_words(reinterpret_cast<const uint4*>(from + at[i]));
          lacks = !is_first;
        }
      }
      __syncwarp();
      float squares[kBatch] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i >= items) break;
        squares[i] = take_pairs(v[i], row, slot * kSlotInputs + own, normed);
        if (++slot == slots) {
          slot = 0;
          row += 2;
        }
      }
      if (normed) put_squares(squares, first, items);
    }
  }
  // Returns the lane's sum of squares.
  __device__ __forceinline__ float take_pairs(const uint4& v, int row, int input, bool normed) {
    const std::uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
    std::uint32_t out[4] = {v.x, v.y, v.z, v.w};
    float squares = 0.0f;
    if (normed) {
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        const float4 weight = *reinterpret_cast<const float4*>(memory_ + room_.norm + (input + 2 * k) * 4);
        const float value[4] = {low_of(pairs[k]), high_of(pairs[k]), low_of(pairs[k + 1]), high_of(pairs[k + 1])};
        out[k] = pack2<bf16>(value[0] * weight.x, value[1] * weight.y);
        out[k + 1] = pack2<bf16>(value[2] * weight.z, value[3] * weight.w);
        squares += value[0] * value[0] + value[1] * value[1] + value[2] * value[2] + value[3] * value[3];
      }
    }
    if (row < args_.rows)
      *reinterpret_cast<uint4*>(memory_ + room_.x + row * x_stride_ + input * 2) =
          make_uint4(out[0], out[1], out[2], out[3]);
    return squares;
  }
  // The sums over half warps of items from `first` on: each exchange adds two halves of what a lane has left.
  __device__ __forceinline__ void put_squares(float (&squares)[kBatch], int first, int items) {
    static_assert(kBatch == 8);
#pragma unroll
    for (int left = kBatch / 2; left > 0; left /= 2) {
      const bool upper = (lane_ & 2 * left) != 0;
#pragma unroll
      for (int i = 0; i < left; ++i) {
        const float away = upper ? squares[i] : squares[i + left], kept = upper ? squares[i + left] : squares[i];
        squares[i] = kept + __shfl_xor_sync(0xffffffffu, away, 2 * left);
      }
    }
    const float sum = squares[0] + __shfl_xor_sync(0xffffffffu, squares[0], 1);
    const int item = first + lane_ % 16 / 2;
    if (lane_ % 2 == 0 && item < items) squares_of()[(item * 2 + lane_ / 16) * kWarps + warp_] = sum;
  }
  // The lane's weights of the next norm, on their way to shared memory; zeros behind the last.
  __device__ __forceinline__ void fetch_norm(const float* norm) const {
#pragma unroll 1
    for (int i = warp_ * kUnit + lane_ * 4; i < room_.cuts[0].slots * kSlotInputs; i += kSlotInputs)
      copy_16_async(base_ + room_.norm + i * 4, norm + i, i < args_.hidden);
    commit_copies();
  }
  // As words.
  __device__ __forceinline__ uint4 embedded(int at, std::uint32_t tag) const {
    const uint2 pairs = __ldcg(reinterpret_cast<const uint2*>(args_.residual + at));
    tag &= 0xffffu;
    return {pairs.x << 16 | tag, (pairs.x & 0xffff0000u) | tag, pairs.y << 16 | tag, (pairs.y & 0xffff0000u) | tag};
  }
  // [pairs of rows][slots of a row][2][kWarps]
  __device__ __forceinline__ float* squares_of() const {
    return reinterpret_cast<float*>(memory_ + room_.squares) + squares_at_ * (room_.squares_bytes / 4);
  }

  __device__ __forceinline__ const Share& share_of_block(Product product) const {
    return reinterpret_cast<const Share*>(memory_ + room_.shares)[static_cast<int>(product)];
  }
  __device__ __forceinline__ void read_first(Product product, const Cut& cut, Unit& first, Unit& second) {
    const Share share = share_of_block(product);
    read_weights(first);
    if (min(room_.most_tiles, share.end - share.first) * cut.slots > 1) read_weights(second);
  }

  // The block's share of a product of x. Warps meet once a pass: their sums lie in two places in turn.
  __device__ __forceinline__ void multiply(Product product, const Cut& cut, Unit& first, Unit& second) {
    const Share share = share_of_block(product);
    const int rows = args_.rows;
#pragma unroll 1
    for (int tile = share.first; tile < share.end; tile += room_.most_tiles) {
      const int tiles = min(room_.most_tiles, share.end - tile);
      float* sums = reinterpret_cast<float*>(memory_ + room_.sums + sums_at_ * kSumBytes);
      if (tile > share.first) {
        read_weights(first);
        if (tiles * cut.slots > 1) read_weights(second);
      }
      multiply_tiles(tiles, cut, sums + warp_ * kPassRows * kTileRows, first, second);
      sync_computing();
      // Outputs of a tile, or pairs of them.
      const int shift = (product == Product::gate_up ? 2 : 3) - (single ? 0 : 1);
#pragma unroll 1
      for (int i = threadIdx.x; i < tiles * rows << shift; i += kComputing) {
        const int place = (i & ((1 << shift) - 1)) * kOutputs, t = room_.by_rows.quotient(i >> shift);
        const int row = (i >> shift) - t * rows;
        finish(product, cut, row, tile + t, tile - share.first + t, place, sums + (t * rows + row) * kTileRows + place);
      }
      sums_at_ ^= 1;
    }
  }

  struct Place {
    std::uint32_t x;           // of this lane's inputs in the first slot
    bool has_row;              // else the lane's inputs are zeros
    int slots, ahead, behind;  // of a tile: all, that which is read next, that which is multiplied next
    int units;                 // whose x is yet to be read: it is that of all tiles where they have one slot
    float* sums;
  };
  // Of each slot a warp multiplies its unit, while it reads the next from shared memory. sums [tiles][rows][kTileRows];
  // even, odd: the first units, with their weights.
  __device__ __forceinline__ void multiply_tiles(int tiles, const Cut& cut, float* sums, Unit& even, Unit& odd) {
    const int row = lane_ / 4;
    const bool has_row = row < args_.rows;
    Place at{base_ + room_.x + row * x_stride_ + warp_ * kUnit * 2 + lane_ % 4 * 16,
             has_row,
             cut.slots,
             0,
             0,
             cut.slots == 1 ? 2 : std::numeric_limits<int>::max(),
             sums + row * kTileRows + lane_ % 4 * 2};
    asm volatile("" : "+r"(at.slots));  // stays in a register
#pragma unroll
    for (int s = 0; s < kUnit / 32; ++s) even.x[s] = odd.x[s] = make_uint4(0, 0, 0, 0);
    float d[4][4] = {};
    int left = tiles * cut.slots;
    read_x(even, at);
    if (left > 1) read_x(odd, at);
#pragma unroll 1
    for (;; left -= 2) {
      multiply_unit(even, at, d);
      if (left <= 1) break;
      if (left > 2) {
        read_x(even, at);
        read_weights(even);
      }
      multiply_unit(odd, at, d);
      if (left <= 2) break;
      if (left > 3) {
        read_x(odd, at);
        read_weights(odd);
      }
    }
  }
  __device__ __forceinline__ void read_x(Unit& unit, Place& at) const {
    const std::uint32_t x = at.x + at.ahead * kSlotInputs * 2;
    if (++at.ahead == at.slots) at.ahead = 0;
    if (at.units-- > 0 && at.has_row) {
#pragma unroll
      for (int s = 0; s < kUnit / 32; ++s) unit.x[s] = load_shared<uint4>(x + 64 * s);
    }
  }
  __device__ __forceinline__ void read_weights(Unit& unit) {
    wait_phase(full_ + 8 * slot_, parity_);
    const std::uint32_t weights = weights_ + slot_ * kSlotBytes;
#pragma unroll
    for (int s = 0; s < kUnit / 32; ++s) unit.weights[s] = load_shared<uint4>(weights + 64 * s);
    if (++slot_ == room_.slots) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }
  __device__ __forceinline__ void multiply_unit(const Unit& unit, Place& at, float (&d)[4][4]) {
#pragma unroll
    for (int s = 0; s < kUnit / 32; ++s) {
      mma_16816<bf16>(d[s % 2 * 2], {unit.x[s].x, 0, unit.x[s].y, 0}, unit.weights[s].x, unit.weights[s].y);
      mma_16816<bf16>(d[s % 2 * 2 + 1], {unit.x[s].z, 0, unit.x[s].w, 0}, unit.weights[s].z, unit.weights[s].w);
    }
    if (lane_ == 0) hopper::arrive_barrier(full_ + 8 * (room_.slots + done_));
    if (++done_ == room_.slots) done_ = 0;
    if (++at.behind < at.slots) return;
    at.behind = 0;
    if (at.has_row)
      *reinterpret_cast<float2*>(at.sums) = {d[0][0] + d[1][0] + d[2][0] + d[3][0],
                                             d[0][1] + d[1][1] + d[2][1] + d[3][1]};
    at.sums += args_.rows * kTileRows;
#pragma unroll
    for (auto& part : d) part[0] = part[1] = 0.0f;
  }

  // Outputs: the sums over the warps, their norm's factor, and what becomes of them. own_tile: among the block's.
  static constexpr int kOutputs = single ? 1 : 2;
  __device__ __forceinline__ void finish(Product product, const Cut& cut, int row, int tile, int own_tile, int place,
                                         const float* sums) {
    const bool gated = product == Product::gate_up;
    float value[kOutputs] = {}, up[kOutputs] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      add(value, sums + w * kPassRows * kTileRows);
      if (gated) add(up, sums + w * kPassRows * kTileRows + 4);
    }
    const float inverse = gated || product == Product::qkv ? inverse_of(row, cut.slots) : 1.0f;
    const int column = tile * (gated ? kTileRows / 2 : kTileRows) + place;
#pragma unroll
    for (int k = 0; k < kOutputs; ++k) {
      value[k] *= inverse;
      if (gated) {
        value[k] = __fdividef(value[k], 1.0f + __expf(-value[k])) * (up[k] * inverse);
      } else if (product == Product::qkv) {
        if (layer_->qkv_bias != nullptr) value[k] += __ldg(layer_->qkv_bias + column + k);
      } else {
        float* residual =
            reinterpret_cast<float*>(memory_ + room_.residual) + row * own_ + own_tile * kTileRows + place + k;
        value[k] = to_float(__float2bfloat16(*residual + value[k]));
        *residual = value[k];
      }
    }
    const int width = cut.tiles * kTileRows >> (gated ? 1 : 0);
    const int out = product == Product::qkv ? 0 : product == Product::output ? 2 : gated ? 3 : 4;
    const bool leaves = is_last_ && product == Product::down;  // to where the residual came from
    const int at = row * width + column;
    if constexpr (single) {
      if (leaves)
        args_.residual[at] = __float2bfloat16(value[0]);
      else
        store_word(args_.words[out] + at, value[0], tag_);
    } else {
      const std::uint32_t pair = pack2<bf16>(value[0], value[1]);
      if (leaves) {
        reinterpret_cast<std::uint32_t*>(args_.residual)[at / 2] = pair;
        clear_pair(args_, out, at / 2, tag_);
      } else {
        store_pair(args_, out, at / 2, tag_, pair);
      }
    }
  }
  static __device__ __forceinline__ void add(float (&sum)[kOutputs], const float* more) {
    if constexpr (single) {
      sum[0] += *more;
    } else {
      const float2 pair = *reinterpret_cast<const float2*>(more);
      sum[0] += pair.x;
      sum[1] += pair.y;
    }
  }
  // What a row of x is multiplied by after the product.
  __device__ __forceinline__ float inverse_of(int row, int slots) const {
    const float* squares = squares_of() + (row / 2 * slots * 2 + row % 2) * kWarps;
    float total = 0.0f;
#pragma unroll 1
    for (int k = 0; k < slots; ++k) {
#pragma unroll
      for (int w = 0; w < kWarps; w += 4) {
        const float4 four = *reinterpret_cast<const float4*>(squares + 2 * k * kWarps + w);
        total += (four.x + four.y) + (four.z + four.w);
      }
    }
    return rsqrtf(__fdividef(total, static_cast<float>(args_.hidden)) + args_.norm_eps);
  }

  const StackArgs& args_;
  const Room& room_;
  unsigned char* memory_;
  std::uint32_t base_, epoch_, tag_ = 0;
  int warp_, lane_;
  StackLayer* layers_;  // in shared memory
  const StackLayer* layer_ = nullptr;
  bool is_last_ = false;
  int own_ = 0;  // columns of the residual
  int x_stride_ = 0, squares_at_ = 0, sums_at_ = 0;
  std::uint32_t full_, weights_;  // in shared memory: the ring's barriers, the lane's weights of its first slot
  int slot_ = 0, done_ = 0;       // of the ring: that which is read next, that which is multiplied next
  std::uint32_t parity_ = 0;
  Attention<dim, single> attention_;
};

template <int dim, bool single>
__global__ void __launch_bounds__(kThreads, 1)
    decode_stack_kernel(const __grid_constant__ StackArgs args, const __grid_constant__ Room room) {
  extern __shared__ __align__(128) unsigned char memory[];
  const std::uint32_t base = shared_address(memory);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < room.slots; ++i) {
      const std::uint32_t full = base + room.barriers + 8 * i;
      hopper::init_barrier(full, 1);
      hopper::init_barrier(full + 8 * room.slots, kWarps);
    }
  }
  // What lies behind a row's last inputs is multiplied by zeros.
  if (room.has_rests) {
    for (int i = 16 * threadIdx.x; i < room.slots * kSlotBytes; i += 16 * kThreads)
      *reinterpret_cast<uint4*>(memory + room.ring + i) = make_uint4(0, 0, 0, 0);
  }
  hopper::publish_barriers();
  __syncthreads();
  if (threadIdx.x >= kComputing) {
    hopper::shrink_registers_to<40>();
    if (threadIdx.x < kComputing + 32) load_weights(args, room, base);
  } else {
    hopper::grow_registers_to<232>();
    wait_for_previous();
    const std::uint32_t epoch = *static_cast<volatile std::uint32_t*>(args.epoch);
    Computing<dim, single>(args, room, memory, epoch).run();
    // All blocks have read it: they had to, for this one to get here.
    if (blockIdx.x == 0 && threadIdx.x == 0) *args.epoch = epoch + static_cast<std::uint32_t>(args.num_layers);
  }
}

}  // namespace minisgl::cuda::stack
