// Quantised weights into their forms when they are loaded, and back into bf16 where many rows are multiplied. Bound by
// the bytes read and written.
#include "core/cuda/runtime.h"
#include "core/error.h"
#include "gemm/cuda/file_formats.cuh"
#include "gemm/cuda/quantised_form.cuh"

namespace minisgl::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

__device__ __forceinline__ std::uint32_t pack_scales(file_formats::Scales scales) {
  return pack2<half>(scales.scale, scales.beside);
}

// Puts the integer of byte b of word w of run j into a share's words.
template <typename Form>
__device__ __forceinline__ void put_integer(RowShare<Form>& share, int j, int w, int b, std::uint32_t q) {
  if constexpr (Form::kBits == 8) {
    share.low[2 * j + w] |= q << (8 * b);
  } else {
    share.low[j] |= (q & 15) << (8 * b + 4 * w);
  }
  if constexpr (Form::kBits == 5) share.high[0] |= (q >> 4) << (8 * b + 2 * j + w);
  if constexpr (Form::kBits == 6) share.high[j / 2] |= (q >> 4) << (8 * b + 4 * (j % 2) + 2 * w);
}
template <typename Form>
__device__ __forceinline__ void store_share(const RowShare<Form>& share, std::byte* unit, int place) {
  for (int k = 0; k < Form::kLowWords / 4; ++k)
    *reinterpret_cast<uint4*>(unit + 512 * k + 16 * place) =
        make_uint4(share.low[4 * k], share.low[4 * k + 1], share.low[4 * k + 2], share.low[4 * k + 3]);
  for (int k = 0; k < Form::kHighWords; ++k)
    reinterpret_cast<std::uint32_t*>(unit + Form::kHighAt)[Form::kHighWords * place + k] = share.high[k];
}
// word: the scale and what stands beside it.
template <typename Form>
__device__ __forceinline__ void store_scale(std::byte* unit, int row, int group, std::uint32_t word) {
  std::byte* scales = unit + Form::kScalesAt + row * Form::kScaleRowBytes;
  if constexpr (Form::kZero == ZeroKind::middle) {
    reinterpret_cast<std::uint16_t*>(scales)[group] = static_cast<std::uint16_t>(word);
  } else {
    reinterpret_cast<std::uint32_t*>(scales)[group] = word;
  }
}

// A thread makes a share of a unit's row. The first one writes the row's scales.
template <typename Source, typename Form>
__global__ void pack_kernel(const std::uint8_t* raw, std::int64_t rows, std::int64_t cols, std::byte* out) {
  const std::int64_t num_chunks = (cols + kUnitColumns - 1) / kUnitColumns;
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = index / (4 * num_chunks), chunk = index % (4 * num_chunks) / 4;
  const int s = static_cast<int>(index % 4);
  if (row >= (rows + kUnitRows - 1) / kUnitRows * kUnitRows) return;
  std::byte* unit = out + (row / kUnitRows * num_chunks + chunk) * Form::kBytes;
  const int in_unit = static_cast<int>(row % kUnitRows);
  const auto block_of = [&](std::int64_t column) {
    return raw + (row * cols + column) / Source::kElements * Source::kBytes;
  };
  RowShare<Form> share = {};
  for (int j = 0; j < 4; ++j) {
    for (int w = 0; w < 2; ++w) {
      for (int b = 0; b < 4; ++b) {
        const std::int64_t column = chunk * kUnitColumns + 32 * j + Form::column(s, w, b);
        if (row >= rows || column >= cols) continue;
        const int q = Source::integer(block_of(column), static_cast<int>(column % Source::kElements));
        put_integer(share, j, w, b, static_cast<std::uint32_t>(q));
      }
    }
  }
  store_share(share, unit, 4 * in_unit + s);
  if (s != 0) return;
  for (int group = 0; group < Form::kGroups; ++group) {
    const std::int64_t column = chunk * kUnitColumns + Form::kGroup * group;
    std::uint32_t word = 0;
    if (row < rows && column < cols)
      word = pack_scales(Source::scales(block_of(column), static_cast<int>(column % Source::kElements)));
    store_scale<Form>(unit, in_unit, group, word);
  }
}

// A warp takes a unit, a lane a share of a row; rows leave through shared memory, 16 bytes a lane.
template <typename Form>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const std::byte* data, std::int64_t rows, std::int64_t cols, bf16* y) {
  constexpr int kStride = 256 + 16;  // bytes of a row; neighbouring rows meet in few banks
  __shared__ __align__(16) unsigned char all[kThreads / 32][8 * kStride];
  unsigned char* own = all[threadIdx.x / 32];
  const std::int64_t num_chunks = (cols + kUnitColumns - 1) / kUnitColumns;
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;  // of the unit
  const std::int64_t unit_row = index / num_chunks, chunk = index % num_chunks;
  const int lane = threadIdx.x % 32, r = lane / 4, s = lane % 4;
  if (unit_row * kUnitRows >= rows) return;
  const std::byte* unit = data + index * Form::kBytes;
  RowShare<Form> share;
  share.load(lane, loads_from(unit));
  const auto load_scale = loads_from(unit + Form::kScalesAt + r * Form::kScaleRowBytes);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    std::uint32_t words[2];
    share.bytes(j, words);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const GroupScale<Form> of = scale_of<Form>((32 * j + 16 * h) / Form::kGroup, load_scale);
#pragma unroll
      for (int w = 0; w < 2; ++w)
        *reinterpret_cast<std::uint32_t*>(own + r * kStride + 2 * (32 * j + 16 * h + 8 * w + 2 * s)) =
            value_pair(words[w], h, of);
    }
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int row = 2 * k + lane / 16, column = lane % 16 * 8;
    const std::int64_t y_row = unit_row * kUnitRows + row, y_column = chunk * kUnitColumns + column;
    if (y_row < rows && y_column < cols)
      *reinterpret_cast<uint4*>(y + y_row * cols + y_column) =
          *reinterpret_cast<const uint4*>(own + row * kStride + 2 * column);
  }
}

// A thread takes 128 columns of a row and rounds their groups' values.
template <typename Form>
__global__ void quantise_kernel(const bf16* plain, std::int64_t rows, std::int64_t cols, std::byte* out) {
  const std::int64_t num_chunks = (cols + kUnitColumns - 1) / kUnitColumns;
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = index / num_chunks, chunk = index % num_chunks;
  if (row >= (rows + kUnitRows - 1) / kUnitRows * kUnitRows) return;
  std::byte* unit = out + (row / kUnitRows * num_chunks + chunk) * Form::kBytes;
  const auto in_unit = static_cast<int>(row % kUnitRows);
  const auto value_at = [&](int column) {
    const std::int64_t at = chunk * kUnitColumns + column;
    return row < rows && at < cols ? to_float(plain[row * cols + at]) : 0.0f;
  };
  std::uint32_t scales[Form::kGroups];
  for (int group = 0; group < Form::kGroups; ++group) {
    float low = 0.0f, high = 0.0f;
    for (int i = 0; i < Form::kGroup; ++i) {
      const float v = value_at(Form::kGroup * group + i);
      low = i == 0 ? v : fminf(low, v);
      high = i == 0 ? v : fmaxf(high, v);
    }
    constexpr bool kHasOffset = Form::kZero == ZeroKind::offset;
    scales[group] = kHasOffset ? pack2<half>((high - low) / 15, low) : pack2<half>(fmaxf(-low, high) / 7.5f, 8.0f);
    store_scale<Form>(unit, in_unit, group, scales[group]);
  }
  for (int s = 0; s < 4; ++s) {
    RowShare<Form> share = {};
    for (int j = 0; j < 4; ++j) {
      const GroupScale<Form> of(scales[32 * j / Form::kGroup]);
      const float inverse = of.scale > 0.0f ? 1.0f / of.scale : 0.0f;
      for (int w = 0; w < 2; ++w) {
        for (int b = 0; b < 4; ++b) {
          const float q = rintf((value_at(32 * j + Form::column(s, w, b)) - of.offset) * inverse);
          put_integer(share, j, w, b, static_cast<std::uint32_t>(fminf(fmaxf(q, 0.0f), 15.0f)));
        }
      }
    }
    store_share(share, unit, 4 * in_unit + s);
  }
}

// A thread takes a share of a unit's row.
template <typename From>
__global__ void widen_to_bytes_kernel(const std::byte* data, std::int64_t units, std::byte* out) {
  using To = FormOf<WeightFormat::q8_offset_16>;
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t unit_index = index / 32;
  if (unit_index >= units) return;
  const int place = static_cast<int>(index % 32), row = place / 4;
  const std::byte* from = data + unit_index * From::kBytes;
  std::byte* to = out + unit_index * To::kBytes;
  RowShare<From> share;
  share.load(place, loads_from(from));
  RowShare<To> wide;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    std::uint32_t words[2];
    share.bytes(j, words);
    wide.low[2 * j] = words[0];
    wide.low[2 * j + 1] = words[1];
  }
  store_share(wide, to, place);
  if (place % 4 != 0) return;
  const auto load_scale = loads_from(from + From::kScalesAt + row * From::kScaleRowBytes);
  for (int group = 0; group < To::kGroups; ++group) {
    const int from_group = group * To::kGroup / From::kGroup;
    std::uint32_t word;
    if constexpr (From::kZero == ZeroKind::offset) {
      word = load_scale.template operator()<std::uint32_t>(4 * from_group);
    } else {
      const GroupScale<From> of = scale_of<From>(from_group, load_scale);
      word = pack2<half>(of.scale, of.offset);
    }
    store_scale<To>(to, row, group, word);
  }
}

template <typename Source, WeightFormat format>
void pack(const std::byte* raw, std::int64_t rows, std::int64_t cols, std::byte* out, cudaStream_t stream) {
  static_assert(FormOf<format>::kBytes == unit_bytes(format));
  pack_kernel<Source, FormOf<format>><<<blocks_for(num_units(rows, cols) * kUnitRows * 4), kThreads, 0, stream>>>(
      reinterpret_cast<const std::uint8_t*>(raw), rows, cols, out);
}

}  // namespace

std::optional<WeightFormat> quantised_format(DType dtype) {
  switch (dtype) {
    case DType::q4_0:
    case DType::q4_1:
    case DType::q4_k: return WeightFormat::q4_offset_32;
    case DType::q5_0:
    case DType::q5_1:
    case DType::q5_k: return WeightFormat::q5_offset_32;
    case DType::q6_k: return WeightFormat::q6_middle_16;
    case DType::q8_0: return WeightFormat::q8_middle_32;
    case DType::int4_64: return WeightFormat::q4_zero_64;
    case DType::int4_128: return WeightFormat::q4_zero_128;
    default: return std::nullopt;
  }
}

void pack_quantised(DType dtype, const std::byte* raw, std::int64_t rows, std::int64_t cols, std::byte* out,
                    cudaStream_t stream) {
  using namespace file_formats;
  using enum WeightFormat;
  switch (dtype) {
    case DType::q4_0: pack<Q4_0, q4_offset_32>(raw, rows, cols, out, stream); break;
    case DType::q4_1: pack<Q4_1, q4_offset_32>(raw, rows, cols, out, stream); break;
    case DType::q4_k: pack<Q4_K, q4_offset_32>(raw, rows, cols, out, stream); break;
    case DType::q5_0: pack<Q5_0, q5_offset_32>(raw, rows, cols, out, stream); break;
    case DType::q5_1: pack<Q5_1, q5_offset_32>(raw, rows, cols, out, stream); break;
    case DType::q5_k: pack<Q5_K, q5_offset_32>(raw, rows, cols, out, stream); break;
    case DType::q6_k: pack<Q6_K, q6_middle_16>(raw, rows, cols, out, stream); break;
    case DType::q8_0: pack<Q8_0, q8_middle_32>(raw, rows, cols, out, stream); break;
    case DType::int4_64: pack<Int4<64>, q4_zero_64>(raw, rows, cols, out, stream); break;
    case DType::int4_128: pack<Int4<128>, q4_zero_128>(raw, rows, cols, out, stream); break;
    default: MINISGL_CHECK(false, dtype_info(dtype).name, " has no form of its own");
  }
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void quantise_to(WeightFormat format, const void* plain, std::int64_t rows, std::int64_t cols, std::byte* out,
                 cudaStream_t stream) {
  const auto launch = [&]<WeightFormat to>() {
    quantise_kernel<FormOf<to>><<<blocks_for(num_units(rows, cols) * kUnitRows), kThreads, 0, stream>>>(
        static_cast<const bf16*>(plain), rows, cols, out);
  };
  if (format == WeightFormat::q4_zero_128) {
    launch.template operator()<WeightFormat::q4_zero_128>();
  } else {
    MINISGL_CHECK(format == WeightFormat::q4_offset_32, "format ", static_cast<int>(format));
    launch.template operator()<WeightFormat::q4_offset_32>();
  }
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void widen_to_bytes(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, std::byte* out,
                    cudaStream_t stream) {
  const std::int64_t units = num_units(rows, cols);
  with_form(weights.format, [&]<typename Form>() {
    if constexpr (Form::kZero == ZeroKind::zero) MINISGL_CHECK(false, "zeros as offsets");
    widen_to_bytes_kernel<Form>
        <<<blocks_for(units * 32), kThreads, 0, stream>>>(static_cast<const std::byte*>(weights.data), units, out);
  });
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void unpack_quantised(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, void* y,
                      cudaStream_t stream) {
  with_form(weights.format, [&]<typename Form>() {
    unpack_kernel<Form><<<blocks_for(num_units(rows, cols) * 32), kThreads, 0, stream>>>(
        static_cast<const std::byte*>(weights.data), rows, cols, static_cast<bf16*>(y));
  });
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

}  // namespace minisgl::cuda
