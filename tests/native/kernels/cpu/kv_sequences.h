// Sequences with random queries, keys and values in a paged cache whose every unused byte is 0xff: NaN in all formats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/paged_attention.h"
#include "kernels/kv_reference.h"
#include "kernels/random_floats.h"

namespace minisgl {

struct AttentionShape {
  int num_heads = 3;
  int num_kv_heads = 1;
  int head_dim = 64;
  int page_size = 16;
  DType dtype = DType::f32;
  std::int32_t window = 0;

  friend void PrintTo(const AttentionShape& shape, std::ostream* out) { *out << shape.name(); }
  std::string name() const {
    return "heads" + std::to_string(num_heads) + "_kv" + std::to_string(num_kv_heads) + "_dim" +
           std::to_string(head_dim) + "_page" + std::to_string(page_size) + "_" + std::string(dtype_info(dtype).name) +
           "_window" + std::to_string(window);
  }
};

// Which rows a step computes: the next `num_rows` of sequence `sequence`.
struct Chunk {
  int sequence;
  std::int32_t num_rows;
};
using Step = std::vector<Chunk>;

class KvSequences {
 public:
  KvSequences(const AttentionShape& shape, std::vector<std::int32_t> lengths) : shape_(shape), lengths_(lengths) {
    const auto pages_of = [&](std::int32_t length) { return (length + shape.page_size - 1) / shape.page_size; };
    std::int32_t num_pages = 2;  // never used
    for (const std::int32_t length : lengths) num_pages += pages_of(length);
    std::vector<std::int32_t> pages(num_pages);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      tables_.emplace_back(pages.end() - pages_of(lengths[i]), pages.end());
      pages.resize(pages.size() - tables_.back().size());
      qkv_.push_back(random_floats(lengths[i] * stride(), 100 + i));
      out_.emplace_back(lengths[i] * out_stride(), -1.0f);
    }
    done_.assign(lengths.size(), 0);
    const std::int64_t bytes =
        num_pages * shape.num_kv_heads * shape.page_size * row_bytes(shape.dtype, shape.head_dim);
    keys_.assign(bytes, std::byte{0xff});
    values_.assign(bytes, std::byte{0xff});
    if (has_kv_scales(shape.dtype)) {
      key_scales_.assign(bytes / shape.head_dim, std::numeric_limits<float>::quiet_NaN());
      value_scales_ = key_scales_;
    }
  }

  std::int64_t stride() const { return std::int64_t{shape_.num_heads + 2 * shape_.num_kv_heads} * shape_.head_dim; }
  std::int64_t out_stride() const { return std::int64_t{shape_.num_heads} * shape_.head_dim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  ops::KvLayer cache() {
    const bool scaled = has_kv_scales(shape_.dtype);
    return {keys_.data(),
            values_.data(),
            shape_.dtype,
            shape_.num_kv_heads,
            shape_.page_size,
            shape_.head_dim,
            scaled ? key_scales_.data() : nullptr,
            scaled ? value_scales_.data() : nullptr};
  }
  std::vector<float>& qkv(int sequence) { return qkv_[sequence]; }              // [length, stride]
  const std::vector<float>& out(int sequence) const { return out_[sequence]; }  // [length, out_stride]

  // Offset in bytes of a position's keys (or values) of one head.
  std::int64_t offset(int sequence, std::int32_t position, int head) const {
    const std::int64_t page = tables_[sequence][position / shape_.page_size];
    return ((page * shape_.num_kv_heads + head) * shape_.page_size + position % shape_.page_size) *
           row_bytes(shape_.dtype, shape_.head_dim);
  }
  void poison(int sequence, std::int32_t position) {
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      const auto size = static_cast<std::size_t>(row_bytes(shape_.dtype, shape_.head_dim));
      std::memset(keys_.data() + offset(sequence, position, head), 0xff, size);
      std::memset(values_.data() + offset(sequence, position, head), 0xff, size);
      if (!has_kv_scales(shape_.dtype)) continue;
      const auto slot = static_cast<std::size_t>(offset(sequence, position, head) / shape_.head_dim);
      key_scales_[slot] = value_scales_[slot] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  // Stores keys and values of the step's rows, then attends.
  void run(const CpuKernels& kernels, ThreadPool& pool, const Step& step) {
    std::vector<float> rows;
    std::vector<ops::SequenceRows> sequences;
    for (const Chunk& chunk : step) {
      const auto& source = qkv_[chunk.sequence];
      const auto first = source.begin() + done_[chunk.sequence] * stride();
      sequences.push_back({static_cast<std::int32_t>(rows.size() / stride()), chunk.num_rows, done_[chunk.sequence],
                           tables_[chunk.sequence].data()});
      rows.insert(rows.end(), first, first + chunk.num_rows * stride());
    }
    const cpu_ops::QkvView view = {rows.data(), std::ssize(rows) / stride(), shape_.num_heads, shape_.num_kv_heads,
                                   shape_.head_dim};
    std::vector<float> out(view.num_rows * out_stride());
    cpu_ops::store_kv(pool, view, sequences, cache());
    paged_attention(kernels, pool, view, sequences, cache(), scale(), shape_.window, out.data());
    for (std::size_t i = 0; i < step.size(); ++i) {
      std::copy_n(out.begin() + sequences[i].first_row * out_stride(), step[i].num_rows * out_stride(),
                  out_[step[i].sequence].begin() + done_[step[i].sequence] * out_stride());
      done_[step[i].sequence] += step[i].num_rows;
    }
  }

  // Feeds one sequence whole, in chunks of at most `chunk` rows.
  void run_all(const CpuKernels& kernels, ThreadPool& pool, int sequence, std::int32_t chunk) {
    while (done_[sequence] < lengths_[sequence])
      run(kernels, pool, {{sequence, std::min(chunk, lengths_[sequence] - done_[sequence])}});
  }

  // What attention is by its definition: [head_dim] of one query head of one row, in double.
  std::vector<double> reference(int sequence, std::int32_t position, int head) const {
    const auto& qkv = qkv_[sequence];
    const int kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
    const float* query = &qkv[position * stride() + head * shape_.head_dim];
    const auto key = [&](std::int32_t p) {
      return as_cached(shape_.dtype, &qkv[p * stride() + (shape_.num_heads + kv_head) * shape_.head_dim],
                       shape_.head_dim);
    };
    const auto value = [&](std::int32_t p) {
      return as_cached(shape_.dtype,
                       &qkv[p * stride() + (shape_.num_heads + shape_.num_kv_heads + kv_head) * shape_.head_dim],
                       shape_.head_dim);
    };
    const std::int32_t first = shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
    std::vector<double> scores;
    for (std::int32_t p = first; p <= position; ++p) {
      double dot = 0;
      const std::vector<float> cached = key(p);
      for (int i = 0; i < shape_.head_dim; ++i) dot += double{query[i]} * cached[i];
      scores.push_back(dot * scale());
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    std::vector<double> out(shape_.head_dim, 0.0);
    for (std::int32_t p = first; p <= position; ++p) {
      const double weight = std::exp(scores[p - first] - top);
      const std::vector<float> cached = value(p);
      total += weight;
      for (int i = 0; i < shape_.head_dim; ++i) out[i] += weight * cached[i];
    }
    for (double& element : out) element /= total;
    return out;
  }

 private:
  AttentionShape shape_;
  std::vector<std::int32_t> lengths_, done_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::vector<float>> qkv_, out_;
  std::vector<std::byte> keys_, values_;
  std::vector<float> key_scales_, value_scales_;
};

}  // namespace minisgl
