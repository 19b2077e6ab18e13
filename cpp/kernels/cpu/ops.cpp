// The CPU's operations on rows: cuts them over the threads where that is worth it.
#include "kernels/cpu/ops.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "gemm/gemm.h"
#include "kernels/cpu/kernel_table.h"

namespace minisgl::cpu_ops {
namespace {

constexpr std::int64_t kElementsPerTask = 8192;  // takes some microseconds, several times what handing it over costs

// body(row) for every row, of `elements` elements each.
template <typename Body>
void for_each_row(ThreadPool& pool, std::int64_t num_rows, std::int64_t elements, const Body& body) {
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, elements));
  const std::int64_t num_tasks = (num_rows + rows_per_task - 1) / rows_per_task;
  pool.parallel_for(num_tasks, [&](std::int64_t task, int) {
    const std::int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
    for (std::int64_t row = task * rows_per_task; row < end; ++row) body(row);
  });
}

void quantize(const NormRows& out, std::int64_t row) {
  if (out.blocks != nullptr) quantize_row(out.y + row * out.dim, out.dim, out.blocks + row * (out.dim / 32));
}

// x may be y.
void norm_row(const CpuKernels& kernels, const float* x, const Norm& norm, std::int64_t dim, float* y) {
  if (norm.weight == nullptr) {
    if (x != y) std::copy_n(x, dim, y);
  } else {
    (norm.centered ? kernels.layer_norm : kernels.rms_norm)(x, norm.weight, norm.eps, dim, y);
  }
}

}  // namespace

void check_cache(const KvLayer& cache) {
  MINISGL_CHECK(is_cache_dtype(cache.dtype), "cache of ", dtype_info(cache.dtype).name);
  const bool scaled = has_kv_scales(cache.dtype);
  MINISGL_CHECK((cache.key_scales != nullptr) == scaled && (cache.value_scales != nullptr) == scaled,
                "scales beside a cache of ", dtype_info(cache.dtype).name);
  MINISGL_CHECK(!scaled || cache.head_dim % 8 == 0, "head_dim ", cache.head_dim, " is not a multiple of 8");
}

void norm_rows(ThreadPool& pool, const float* x, const Norm& norm, const NormRows& out) {
  const CpuKernels& kernels = cpu_kernels();
  for_each_row(pool, out.num_rows, out.dim, [&](std::int64_t row) {
    norm_row(kernels, x + row * out.dim, norm, out.dim, out.y + row * out.dim);
    quantize(out, row);
  });
}

void add_norm_rows(ThreadPool& pool, float* residual, float* delta, const Norm& added, const Norm& norm,
                   const NormRows& out) {
  const CpuKernels& kernels = cpu_kernels();
  for_each_row(pool, out.num_rows, out.dim, [&](std::int64_t row) {
    float *sum = residual + row * out.dim, *term = delta + row * out.dim, *y = out.y + row * out.dim;
    norm_row(kernels, term, added, out.dim, term);
    if (norm.is_plain_rms()) {
      kernels.add_rms_norm(sum, term, norm.weight, norm.eps, out.dim, y);
    } else {
      for (std::int64_t i = 0; i < out.dim; ++i) sum[i] += term[i];
      norm_row(kernels, sum, norm, out.dim, y);
    }
    quantize(out, row);
  });
}

void gate_rows(ThreadPool& pool, Activation activation, const float* gate_up, const NormRows& out) {
  const CpuKernels& kernels = cpu_kernels();
  const auto kernel = activation == Activation::silu        ? kernels.silu_mul
                      : activation == Activation::gelu_tanh ? kernels.gelu_mul
                                                            : kernels.clamped_silu_mul;
  for_each_row(pool, out.num_rows, 2 * out.dim, [&](std::int64_t row) {
    const float* gate = gate_up + row * 2 * out.dim;
    kernel(gate, gate + out.dim, out.dim, out.y + row * out.dim);
    quantize(out, row);
  });
}

void scale_and_cap(ThreadPool& pool, float* x, std::int64_t num_rows, std::int64_t dim, float scale, float cap) {
  const auto kernel = cpu_kernels().scale_and_cap;
  for_each_row(pool, num_rows, dim, [&](std::int64_t row) { kernel(x + row * dim, dim, scale, cap); });
}

void head_square_sums(ThreadPool& pool, QkvView qkv, float* sums) {
  const auto kernel = cpu_kernels().square_sum;
  const std::int64_t query_size = std::int64_t{qkv.num_heads} * qkv.head_dim;
  for_each_row(pool, qkv.num_rows, qkv.row_stride(), [&](std::int64_t row) {
    const float* query = qkv.data + row * qkv.row_stride();
    sums[2 * row] = kernel(query, query_size);
    sums[2 * row + 1] = kernel(query + query_size, std::int64_t{qkv.num_kv_heads} * qkv.head_dim);
  });
}

// The sum over ranks counts a key head that several of them have several times, and so does the number of elements.
void norm_all_heads(ThreadPool& pool, QkvView qkv, const HeadTransform& transform, const float* sums,
                    std::int64_t num_ranks) {
  for_each_row(pool, qkv.num_rows, qkv.row_stride(), [&](std::int64_t row) {
    float* x = qkv.data + row * qkv.row_stride();
    for (const bool is_key : {false, true}) {
      const float* weight = is_key ? transform.key_norm : transform.query_norm;
      const std::int64_t size = std::int64_t{is_key ? qkv.num_kv_heads : qkv.num_heads} * qkv.head_dim;
      const float mean = sums[2 * row + (is_key ? 1 : 0)] / static_cast<float>(num_ranks * size);
      const float inverse = 1.0f / std::sqrt(mean + transform.eps);
      for (std::int64_t i = 0; i < size; ++i) x[i] *= inverse * weight[i];
      x += size;
    }
  });
}

void qk_norm(ThreadPool& pool, QkvView qkv, const float* q_weight, const float* k_weight, float eps) {
  const auto kernel = cpu_kernels().rms_norm;
  for_each_row(pool, qkv.num_rows, qkv.row_stride(), [&](std::int64_t row) {
    float* head = qkv.data + row * qkv.row_stride();
    for (int i = 0; i < qkv.num_heads + qkv.num_kv_heads; ++i, head += qkv.head_dim)
      kernel(head, i < qkv.num_heads ? q_weight : k_weight, eps, qkv.head_dim, head);
  });
}

void rope(ThreadPool& pool, QkvView qkv, const std::int32_t* positions, const RopeTables& tables, int rotary_dim) {
  MINISGL_CHECK(rotary_dim % 2 == 0 && rotary_dim <= qkv.head_dim, "rotary_dim ", rotary_dim, ", head_dim ",
                qkv.head_dim);
  const auto kernel = cpu_kernels().rope;
  for_each_row(pool, qkv.num_rows, qkv.row_stride(), [&](std::int64_t row) {
    float* head = qkv.data + row * qkv.row_stride();
    const std::int64_t place = std::int64_t{positions[row]} * rotary_dim;
    for (int i = 0; i < qkv.num_heads + qkv.num_kv_heads; ++i, head += qkv.head_dim)
      kernel(head, (i < qkv.num_heads ? tables.queries : tables.keys) + place, rotary_dim);
  });
}

void store_kv(ThreadPool& pool, QkvView qkv, std::span<const SequenceRows> sequences, KvLayer cache) {
  MINISGL_CHECK(qkv.num_kv_heads == cache.num_kv_heads && qkv.head_dim == cache.head_dim, "heads of the cache differ");
  check_cache(cache);
  const CpuKernels& kernels = cpu_kernels();
  const std::int64_t head_bytes = row_bytes(cache.dtype, cache.head_dim);
  // Writes a head to `slot` of a plane and of its scales.
  const auto store = [&](const float* head, std::int64_t slot, std::byte* plane, float* scales) {
    if (scales != nullptr) {
      scales[slot] = kernels.quantize_head(head, cache.head_dim, plane + slot * head_bytes);
    } else {
      kernels.convert(head, cache.head_dim, cache.dtype, plane + slot * head_bytes);
    }
  };
  for (const SequenceRows& sequence : sequences) {
    for_each_row(pool, sequence.num_rows, 2 * cache.num_kv_heads * cache.head_dim, [&](std::int64_t i) {
      const std::int64_t position = sequence.start_position + i;
      const std::int64_t page = sequence.page_table[position / cache.page_size];
      const std::int64_t place = position % cache.page_size;
      const float* keys = qkv.data + (sequence.first_row + i) * qkv.row_stride() + qkv.num_heads * qkv.head_dim;
      const float* values = keys + qkv.num_kv_heads * qkv.head_dim;
      for (std::int64_t head = 0; head < cache.num_kv_heads; ++head) {
        const std::int64_t slot = (page * cache.num_kv_heads + head) * cache.page_size + place;
        store(keys + head * cache.head_dim, slot, cache.keys, cache.key_scales);
        store(values + head * cache.head_dim, slot, cache.values, cache.value_scales);
      }
    });
  }
}

}  // namespace minisgl::cpu_ops
