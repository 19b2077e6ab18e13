#include "kernels/cpu/low_rank.h"

#include <algorithm>

#include "core/error.h"
#include "core/half.h"

namespace minisgl::cpu_ops {
namespace {

constexpr std::int64_t kRanksPerTask = 16, kRowsPerTask = 32, kPanelsPerTask = 8;
constexpr std::int64_t kRowTile = 4;  // rows that a kernel takes at once

std::int64_t num_panels(std::int64_t outputs) {
  return (outputs + kLowRankPanel - 1) / kLowRankPanel;
}

std::size_t bytes_of(DType dtype) {
  return dtype == DType::f32 ? sizeof(float) : sizeof(std::uint16_t);
}

void put(AlignedBuffer& buffer, DType dtype, std::int64_t index, float value) {
  if (dtype == DType::f32) {
    buffer.as<float>()[index] = value;
  } else {
    buffer.as<std::uint16_t>()[index] = f32_to_bf16(value);
  }
}

AlignedBuffer panels_of(const AdapterPair& pair, DType dtype) {
  AlignedBuffer panels(static_cast<std::size_t>(num_panels(pair.outputs) * kLowRankPanel * pair.rank) *
                       bytes_of(dtype));
  for (std::int64_t output = 0; output < pair.outputs; ++output) {
    const std::int64_t panel = output / kLowRankPanel, lane = output % kLowRankPanel;
    for (std::int64_t i = 0; i < pair.rank; ++i) {
      put(panels, dtype, (panel * pair.rank + i) * kLowRankPanel + lane,
          pair.up[static_cast<std::size_t>(output * pair.rank + i)]);
    }
  }
  return panels;
}

}  // namespace

CpuAdapter::CpuAdapter(std::vector<AdapterPair> pairs, DType dtype) : dtype_(dtype) {
  std::map<Key, std::vector<const AdapterPair*>> by_layer;
  for (const AdapterPair& pair : pairs) {
    const bool is_down = pair.matrix == ExpertMatrix::down;
    const Key key =
        pair.linear != nullptr ? Key{pair.linear, 0} : Key{pair.experts, 2 * pair.expert + (is_down ? 1 : 0)};
    by_layer[key].push_back(&pair);
  }
  for (const auto& [key, members] : by_layer) {
    LowRankLayer& layer = layers_[key];
    layer.inputs = members.front()->inputs;
    for (const AdapterPair* pair : members) layer.rank += pair->rank;
    layer.down = AlignedBuffer(static_cast<std::size_t>(layer.rank * layer.inputs) * bytes_of(dtype));
    std::int64_t first = 0;
    for (const AdapterPair* pair : members) {
      MINISGL_CHECK(pair->inputs == layer.inputs && std::ssize(pair->down) == pair->rank * pair->inputs &&
                    std::ssize(pair->up) == pair->outputs * pair->rank);
      for (std::int64_t i = 0; i < pair->rank * pair->inputs; ++i) {
        put(layer.down, dtype, first * layer.inputs + i, pair->down[static_cast<std::size_t>(i)]);
      }
      layer.outputs.push_back({pair->first_output, pair->outputs, first, pair->rank, panels_of(*pair, dtype)});
      nbytes_ += static_cast<std::int64_t>(layer.outputs.back().up.size());
      first += pair->rank;
    }
    nbytes_ += static_cast<std::int64_t>(layer.down.size());
  }
}

std::vector<AdapterRows> adapter_rows(std::span<const ops::SequenceRows> sequences) {
  std::vector<AdapterRows> all;
  for (const ops::SequenceRows& sequence : sequences) {
    if (sequence.adapter == nullptr) continue;
    auto entry = std::ranges::find(all, sequence.adapter, &AdapterRows::made);
    if (entry == all.end()) entry = all.insert(all.end(), {sequence.adapter, {}});
    for (std::int32_t i = 0; i < sequence.num_rows; ++i) entry->rows.push_back(sequence.first_row + i);
  }
  return all;
}

std::vector<AdapterRows> kept_adapter_rows(std::span<const AdapterRows> all, std::span<const std::int32_t> kept) {
  std::vector<AdapterRows> result;
  for (const AdapterRows& entry : all) {
    AdapterRows rows{entry.made, {}};
    for (std::int32_t i = 0; i < std::ssize(kept); ++i) {
      if (std::ranges::binary_search(entry.rows, kept[static_cast<std::size_t>(i)])) rows.rows.push_back(i);
    }
    if (!rows.rows.empty()) result.push_back(std::move(rows));
  }
  return result;
}

namespace {

// A piece of a use's work: some of its rows, and some of the ranks or of an output's panels.
struct Piece {
  const LowRankUse* use;
  const LowRankOutput* output;  // of the second product
  float* hidden;                // [rows of the use, rank]
  std::int64_t first_row, num_rows;
  std::int64_t first, count;
};

void down(const Piece& piece, const float* x, std::int64_t x_stride) {
  const LowRankLayer& layer = *piece.use->layer;
  cpu_kernels().low_rank_down(
      {.x = x,
       .x_stride = x_stride,
       .rows = piece.use->rows.data() + piece.first_row,
       .num_rows = piece.num_rows,
       .weights = layer.down.data() + static_cast<std::size_t>(piece.first * layer.inputs) * bytes_of(piece.use->dtype),
       .dtype = piece.use->dtype,
       .inputs = layer.inputs,
       .rank = piece.count,
       .hidden = piece.hidden + piece.first_row * layer.rank + piece.first,
       .hidden_stride = layer.rank});
}

void up(const Piece& piece, float* y, std::int64_t y_stride) {
  const LowRankLayer& layer = *piece.use->layer;
  const LowRankOutput& output = *piece.output;
  const std::int64_t first = piece.first * kLowRankPanel;
  cpu_kernels().low_rank_up(
      {.hidden = piece.hidden + piece.first_row * layer.rank + output.first_rank,
       .hidden_stride = layer.rank,
       .rows = piece.use->rows.data() + piece.first_row,
       .num_rows = piece.num_rows,
       .weights = output.up.data() + static_cast<std::size_t>(first * output.rank) * bytes_of(piece.use->dtype),
       .dtype = piece.use->dtype,
       .rank = output.rank,
       .outputs = std::min(piece.count * kLowRankPanel, output.outputs - first),
       .y = y + output.first_output + first,
       .y_stride = y_stride});
}

}  // namespace

void add_low_rank(ThreadPool& pool, std::span<const LowRankUse> uses, const float* x, std::int64_t x_stride, float* y,
                  std::int64_t y_stride, AlignedBuffer& scratch) {
  std::int64_t size = 0, all_rows = 0;
  for (const LowRankUse& use : uses) {
    size += std::ssize(use.rows) * use.layer->rank;
    all_rows += std::ssize(use.rows);
  }
  scratch.reserve(static_cast<std::size_t>(size) * sizeof(float));
  // Where there are rows enough for all threads, each task takes both products of some of them: there is one wait, not
  // two.
  const std::int64_t threads = pool.num_threads();
  const std::int64_t fair = (all_rows + 2 * threads - 1) / (2 * threads);
  const std::int64_t rows_per_task = std::clamp((fair + kRowTile - 1) / kRowTile * kRowTile, kRowTile, kRowsPerTask);
  std::vector<Piece> wholes, downs, ups;
  float* hidden = scratch.as<float>();
  for (const LowRankUse& use : uses) {
    const std::int64_t num_rows = std::ssize(use.rows), rank = use.layer->rank;
    for (std::int64_t row = 0; row < num_rows; row += rows_per_task) {
      const std::int64_t rows = std::min(rows_per_task, num_rows - row);
      wholes.push_back({&use, nullptr, hidden, row, rows, 0, rank});
      for (std::int64_t i = 0; i < rank; i += kRanksPerTask) {
        downs.push_back({&use, nullptr, hidden, row, rows, i, std::min(kRanksPerTask, rank - i)});
      }
      for (const LowRankOutput& output : use.layer->outputs) {
        const std::int64_t panels = num_panels(output.outputs);
        for (std::int64_t i = 0; i < panels; i += kPanelsPerTask) {
          ups.push_back({&use, &output, hidden, row, rows, i, std::min(kPanelsPerTask, panels - i)});
        }
      }
    }
    hidden += num_rows * rank;
  }
  if (std::ssize(wholes) >= threads) {
    pool.parallel_for(std::ssize(wholes), [&](std::int64_t task, int) {
      Piece piece = wholes[static_cast<std::size_t>(task)];
      down(piece, x, x_stride);
      for (const LowRankOutput& output : piece.use->layer->outputs) {
        piece.output = &output;
        piece.count = num_panels(output.outputs);
        up(piece, y, y_stride);
      }
    });
    return;
  }
  pool.parallel_for(std::ssize(downs),
                    [&](std::int64_t task, int) { down(downs[static_cast<std::size_t>(task)], x, x_stride); });
  pool.parallel_for(std::ssize(ups),
                    [&](std::int64_t task, int) { up(ups[static_cast<std::size_t>(task)], y, y_stride); });
}

}  // namespace minisgl::cpu_ops
