// Rows are gathered by expert, so that one call of gemm() has a part for each matrix that was chosen, on rows of its
// own. Its floor is the bytes of these matrices over the read bandwidth.
#include "kernels/cpu/experts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/random_weights.h"

namespace minisgl::cpu_ops {
namespace {

constexpr std::size_t kNumMatrices = 3;              // ExpertMatrix
constexpr std::int64_t kElementsPerTask = 16 << 10;  // of rows that are copied or added up
constexpr std::int64_t kScratchAlignment = 64;

struct Expert {
  std::array<PackedMatrix, kNumMatrices> weights;       // by ExpertMatrix
  std::array<std::vector<float>, kNumMatrices> biases;  // [rows] or empty
};

class CpuExperts final : public Experts {
 public:
  CpuExperts(const ExpertsShape& shape, std::vector<Expert> experts, bool in_file)
      : shape_(shape), experts_(std::move(experts)), in_file_(in_file) {
    for (const Expert& expert : experts_) {
      for (const PackedMatrix& weight : expert.weights) {
        MINISGL_CHECK(weight.nbytes() > 0, "an expert without one of its matrices");
        nbytes_ += static_cast<std::int64_t>(weight.nbytes());
      }
      for (const auto& bias : expert.biases) nbytes_ += static_cast<std::int64_t>(bias.size() * sizeof(float));
    }
  }
  const ExpertsShape& shape() const override { return shape_; }
  std::int64_t nbytes() const override { return nbytes_; }
  const Expert& expert(std::int64_t index) const { return experts_[static_cast<std::size_t>(index)]; }
  bool in_file() const { return in_file_; }

 private:
  ExpertsShape shape_;
  std::vector<Expert> experts_;  // [num_experts]
  bool in_file_;
  std::int64_t nbytes_ = 0;
};

class CpuExpertsMaker final : public ExpertsMaker {
 public:
  CpuExpertsMaker(const ExpertsShape& shape, ThreadPool& pool, MemoryFile* file)
      : shape_(shape), pool_(pool), file_(file), experts_(static_cast<std::size_t>(shape.num_experts)) {}

  void put(std::int64_t expert, ExpertMatrix which, DType dtype, std::span<const std::byte> raw,
           std::span<const float> bias) override {
    const bool is_down = which == ExpertMatrix::down;
    const std::int64_t rows = is_down ? shape_.hidden_size : shape_.intermediate_size;
    const std::int64_t cols = is_down ? shape_.intermediate_size : shape_.hidden_size;
    MINISGL_CHECK(bias.empty() || std::ssize(bias) == rows, bias.size(), " biases of ", rows, " outputs");
    Expert& to = experts_.at(static_cast<std::size_t>(expert));
    const auto place = static_cast<std::size_t>(which);
    to.weights[place] = PackedMatrix::pack(dtype, rows, cols, raw, pool_);
    if (file_ != nullptr) to.weights[place].move_to(*file_);
    to.biases[place].assign(bias.begin(), bias.end());
  }
  void put_random() override {
    const auto wide = random_weights(shape_.intermediate_size, shape_.hidden_size, pool_);
    const auto tall = random_weights(shape_.hidden_size, shape_.intermediate_size, pool_);
    for (std::int64_t i = 0; i < shape_.num_experts; ++i) {
      put(i, ExpertMatrix::gate, DType::bf16, std::as_bytes(std::span(wide)), {});
      put(i, ExpertMatrix::up, DType::bf16, std::as_bytes(std::span(wide)), {});
      put(i, ExpertMatrix::down, DType::bf16, std::as_bytes(std::span(tall)), {});
    }
  }
  std::unique_ptr<const Experts> finish() override {
    return std::make_unique<const CpuExperts>(shape_, std::move(experts_), file_ != nullptr);
  }

 private:
  ExpertsShape shape_;
  ThreadPool& pool_;
  MemoryFile* file_;
  std::vector<Expert> experts_;
};

// Where the arrays of a call lie in its scratch. A slot is a row with one of its experts; slots of an expert lie side
// by side.
struct Layout {
  std::int64_t num_slots;
  std::int64_t bytes = 0;
  std::int64_t chosen;     // [num_slots] int32, row by row
  std::int64_t weights;    // [num_slots] f32, row by row
  std::int64_t slots;      // [num_slots] int32, row by row: the slot, or -1 where another device has the expert
  std::int64_t rows;       // [num_slots] int32: a slot's row
  std::int64_t first;      // [num_experts + 1] int32: an expert's first slot
  std::int64_t ends;       // [slots, hidden_size] f32: what the experts read, and later what they give
  std::int64_t gate_up;    // [slots, 2 * intermediate_size] f32
  std::int64_t activated;  // [slots, intermediate_size] f32
  std::int64_t blocks;     // [slots, intermediate_size / 32] ActivationBlock

  Layout(const ExpertsShape& shape, const RouterRule& rule, std::int64_t num_rows)
      : num_slots(num_rows * rule.num_chosen) {
    constexpr std::int64_t word = sizeof(float);
    chosen = take(num_slots * word);
    weights = take(num_slots * word);
    slots = take(num_slots * word);
    rows = take(num_slots * word);
    first = take((shape.num_experts + 1) * word);
    ends = take(num_slots * shape.hidden_size * word);
    gate_up = take(num_slots * 2 * shape.intermediate_size * word);
    activated = take(num_slots * shape.intermediate_size * word);
    blocks = take(num_slots * (shape.intermediate_size / 32) * static_cast<std::int64_t>(sizeof(ActivationBlock)));
  }

 private:
  std::int64_t take(std::int64_t size) {
    return std::exchange(bytes, bytes + (size + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment);
  }
};

// One call.
class Run {
 public:
  Run(const ExpertLayer& layer, const ExpertRows& rows, std::span<std::byte> scratch, GemmWorkspace& workspace,
      ThreadPool& pool)
      : layer_(layer),
        experts_(static_cast<const CpuExperts&>(layer.experts)),
        shape_(experts_.shape()),
        call_(rows),
        layout_(shape_, layer.rule, rows.num_rows),
        scratch_(scratch.data()),
        workspace_(workspace),
        pool_(pool) {
    MINISGL_CHECK(std::ssize(scratch) >= layout_.bytes, scratch.size(), " bytes of scratch, not ", layout_.bytes);
  }

  void run() {
    const std::int64_t hidden = shape_.hidden_size, intermediate = shape_.intermediate_size;
    choose();
    const std::int64_t num_slots = sort();
    if (experts_.in_file()) fetch();
    float *const ends = at<float>(layout_.ends), *const gate_up = at<float>(layout_.gate_up);
    float* const activated = at<float>(layout_.activated);
    const auto* const rows = at<std::int32_t>(layout_.rows);
    for_each(num_slots, hidden,
             [&](std::int64_t slot) { std::copy_n(call_.x + rows[slot] * hidden, hidden, ends + slot * hidden); });
    parts_.clear();
    add_parts(ExpertMatrix::gate, 0);
    add_parts(ExpertMatrix::up, intermediate);
    gemm({.parts = parts_, .x = ends, .num_rows = num_slots, .y = gate_up, .y_stride = 2 * intermediate}, workspace_,
         pool_);
    if (!call_.adapters.empty()) add_adapters(false, ends, hidden, gate_up, 2 * intermediate);
    ActivationBlock* const blocks = intermediate % 32 == 0 ? at<ActivationBlock>(layout_.blocks) : nullptr;
    parts_.clear();
    const bool quantized = add_parts(ExpertMatrix::down, 0);
    gate_rows(pool_, layer_.activation, gate_up, {num_slots, intermediate, activated, quantized ? blocks : nullptr});
    gemm({.parts = parts_,
          .x = activated,
          .num_rows = num_slots,
          .y = ends,
          .y_stride = hidden,
          .quantized = quantized ? blocks : nullptr},
         workspace_, pool_);
    if (!call_.adapters.empty()) add_adapters(true, activated, intermediate, ends, hidden);
    for_each(call_.num_rows, hidden * layer_.rule.num_chosen, [&](std::int64_t row) { add_up(row); });
  }

 private:
  template <typename T>
  T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  std::int64_t num_logits() const {
    return shape_.all_experts + (layer_.rule.shared == RouterRule::Shared::gated ? 1 : 0);
  }

  // body(i) for i in [0, count), each of so many elements.
  template <typename Body>
  void for_each(std::int64_t count, std::int64_t elements, const Body& body) {
    const std::int64_t per_task = std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, elements));
    pool_.parallel_for((count + per_task - 1) / per_task, [&](std::int64_t task, int) {
      for (std::int64_t i = task * per_task; i < std::min(count, (task + 1) * per_task); ++i) body(i);
    });
  }

  void choose() {
    const std::int64_t k = layer_.rule.num_chosen;
    for_each(call_.num_rows, shape_.all_experts * k, [&](std::int64_t row) {
      choose_experts(call_.logits + row * num_logits(), shape_.all_experts, layer_.rule,
                     at<std::int32_t>(layout_.chosen) + row * k, at<float>(layout_.weights) + row * k);
    });
  }

  // Gives each choice its slot, by expert and then by row. Returns how many there are.
  std::int64_t sort() {
    const auto* const chosen = at<std::int32_t>(layout_.chosen);
    auto *const slots = at<std::int32_t>(layout_.slots), *const rows = at<std::int32_t>(layout_.rows);
    auto* const first = at<std::int32_t>(layout_.first);
    const auto held = [&](std::int64_t i) {
      const std::int64_t expert = chosen[i] - shape_.first_expert;
      return expert >= 0 && expert < shape_.num_experts ? expert : -1;
    };
    std::fill_n(first, shape_.num_experts + 1, 0);
    for (std::int64_t i = 0; i < layout_.num_slots; ++i) {
      if (held(i) >= 0) ++first[held(i) + 1];
    }
    for (std::int64_t expert = 0; expert < shape_.num_experts; ++expert) first[expert + 1] += first[expert];
    next_.assign(first, first + shape_.num_experts);
    for (std::int64_t i = 0; i < layout_.num_slots; ++i) {
      slots[i] = held(i) >= 0 ? next_[static_cast<std::size_t>(held(i))]++ : -1;
      if (slots[i] >= 0) rows[slots[i]] = static_cast<std::int32_t>(i / layer_.rule.num_chosen);
    }
    return first[shape_.num_experts];
  }

  // Has what was chosen and isn't in memory read beside the products.
  void fetch() const {
    const auto* const first = at<std::int32_t>(layout_.first);
    for (std::int64_t i = 0; i < shape_.num_experts; ++i) {
      if (first[i] == first[i + 1]) continue;
      for (const PackedMatrix& weight : experts_.expert(i).weights) fetch_absent(weight.data(), weight.nbytes());
    }
  }

  // The parts of one matrix of every expert that was chosen. Returns whether all of them read quantised rows.
  bool add_parts(ExpertMatrix which, std::int64_t column) {
    const auto* const first = at<std::int32_t>(layout_.first);
    const auto place = static_cast<std::size_t>(which);
    bool quantized = true;
    for (std::int64_t i = 0; i < shape_.num_experts; ++i) {
      if (first[i] == first[i + 1]) continue;
      const Expert& expert = experts_.expert(i);
      const std::vector<float>& bias = expert.biases[place];
      parts_.push_back(
          {&expert.weights[place], bias.empty() ? nullptr : bias.data(), column, first[i], first[i + 1] - first[i]});
      quantized = quantized && is_quantized(expert.weights[place].dtype());
    }
    return quantized;
  }

  // What adapters change of the products of slots: of down, or of gate and up.
  void add_adapters(bool is_down, const float* x, std::int64_t x_stride, float* y, std::int64_t y_stride) {
    const auto *const first = at<std::int32_t>(layout_.first), *const rows = at<std::int32_t>(layout_.rows);
    std::vector<std::vector<std::int32_t>> slots;
    std::vector<LowRankUse> uses;
    for (const AdapterRows& entry : call_.adapters) {
      for (std::int64_t expert = 0; expert < shape_.num_experts; ++expert) {
        const LowRankLayer* const layer = entry.adapter().of(experts_, expert, is_down);
        if (layer == nullptr) continue;
        std::vector<std::int32_t> own;
        for (std::int32_t slot = first[expert]; slot < first[expert + 1]; ++slot) {
          if (std::ranges::binary_search(entry.rows, rows[slot])) own.push_back(slot);
        }
        if (own.empty()) continue;
        slots.push_back(std::move(own));
        uses.push_back({layer, entry.adapter().dtype(), slots.back()});
      }
    }
    if (!uses.empty()) add_low_rank(pool_, uses, x, x_stride, y, y_stride, *call_.low_rank);
  }

  void add_up(std::int64_t row) const {
    const std::int64_t hidden = shape_.hidden_size, k = layer_.rule.num_chosen;
    float* const y = call_.y + row * hidden;
    if (layer_.rule.shared == RouterRule::Shared::none) {
      std::fill_n(y, hidden, 0.0f);
    } else if (layer_.rule.shared == RouterRule::Shared::gated) {
      const float gate = 1.0f / (1.0f + std::exp(-call_.logits[row * num_logits() + shape_.all_experts]));
      for (std::int64_t i = 0; i < hidden; ++i) y[i] *= gate;
    }
    for (std::int64_t j = row * k; j < (row + 1) * k; ++j) {
      const std::int32_t slot = at<std::int32_t>(layout_.slots)[j];
      if (slot < 0) continue;
      const float weight = at<float>(layout_.weights)[j];
      const float* const given = at<float>(layout_.ends) + slot * hidden;
      for (std::int64_t i = 0; i < hidden; ++i) y[i] += weight * given[i];
    }
  }

  const ExpertLayer& layer_;
  const CpuExperts& experts_;
  const ExpertsShape& shape_;
  const ExpertRows& call_;
  Layout layout_;
  std::byte* scratch_;
  GemmWorkspace& workspace_;
  ThreadPool& pool_;
  std::vector<GemmPart> parts_;
  std::vector<std::int32_t> next_;  // [num_experts] the next free slot of each
};

}  // namespace

std::unique_ptr<ExpertsMaker> make_experts(const ExpertsShape& shape, ThreadPool& pool, MemoryFile* file) {
  return std::make_unique<CpuExpertsMaker>(shape, pool, file);
}

void choose_experts(const float* logits, std::int64_t all_experts, const RouterRule& rule, std::int32_t* chosen,
                    float* weights) {
  const bool softmax = rule.scores == RouterRule::Scores::softmax;
  const float largest = *std::max_element(logits, logits + all_experts);
  float sum = 0.0f;  // of the softmax
  if (softmax && (!rule.normalized || rule.choice_bias != nullptr)) {
    for (std::int64_t i = 0; i < all_experts; ++i) sum += std::exp(logits[i] - largest);
  }
  const auto score = [&](std::int64_t i) {
    if (!softmax) return 1.0f / (1.0f + std::exp(-logits[i]));
    const float weight = std::exp(logits[i] - largest);
    return sum > 0.0f ? weight / sum : weight;
  };
  std::array<float, kMaxChosenExperts> keys;  // of the chosen, best first
  int count = 0;
  for (std::int64_t i = 0; i < all_experts; ++i) {
    float key = rule.choice_bias != nullptr ? score(i) + rule.choice_bias[i] : logits[i];
    if (std::isnan(key)) key = -std::numeric_limits<float>::infinity();
    if (count == rule.num_chosen && !(key > keys[static_cast<std::size_t>(count - 1)])) continue;
    int place = std::min(count, rule.num_chosen - 1);
    for (; place > 0 && key > keys[static_cast<std::size_t>(place - 1)]; --place) {
      keys[static_cast<std::size_t>(place)] = keys[static_cast<std::size_t>(place - 1)];
      chosen[place] = chosen[place - 1];
    }
    keys[static_cast<std::size_t>(place)] = key;
    chosen[place] = static_cast<std::int32_t>(i);
    count = std::min(count + 1, rule.num_chosen);
  }
  float total = 0.0f;
  for (int j = 0; j < rule.num_chosen; ++j) total += weights[j] = score(chosen[j]);
  const float factor = rule.normalized ? rule.scale / total : rule.scale;
  for (int j = 0; j < rule.num_chosen; ++j) weights[j] *= factor;
}

std::int64_t experts_scratch_bytes(const ExpertsShape& shape, const RouterRule& rule, std::int64_t num_rows) {
  return Layout(shape, rule, num_rows).bytes;
}

void run_experts(const ExpertLayer& layer, const ExpertRows& rows, std::span<std::byte> scratch,
                 GemmWorkspace& workspace, ThreadPool& pool) {
  Run(layer, rows, scratch, workspace, pool).run();
}

}  // namespace minisgl::cpu_ops
