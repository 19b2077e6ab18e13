// The layout of a step: arrays of fixed length first, in one order, then those whose length no kernel knows.
#include "kernels/cuda/step_block.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/philox.h"

namespace minisgl::cuda {
namespace {

constexpr std::size_t kAlignment = 16;

// Hands out places in the two copies of the block.
class Layout {
 public:
  Layout(std::byte* host, std::byte* device) : host_(host), device_(device) {}

  // The array's place on the host; `target` is where the device will find it.
  template <typename T>
  T* add(std::int64_t count, const T*& target) {
    T* place = reinterpret_cast<T*>(host_ + used_);
    target = reinterpret_cast<const T*>(device_ + used_);
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }
  std::size_t used() const { return used_; }

 private:
  std::byte *host_, *device_;
  std::size_t used_ = 0;
};

std::int64_t pages_of(const ops::SequenceRows& sequence, int page_size) {
  return (std::int64_t{sequence.start_position} + sequence.num_rows + page_size - 1) / page_size;
}

// Upper bound, whatever the arrays' lengths.
std::size_t block_bytes(std::int64_t rows, std::int64_t sequences, std::int64_t logits, std::int64_t pages,
                        std::int64_t biases, std::int64_t banned, std::int64_t mask_words) {
  const auto bytes = rows * 3 * 4 + sequences * static_cast<std::int64_t>(sizeof(SequenceEntry) + 2 * 4) +
                     logits * static_cast<std::int64_t>(4 + sizeof(QueryEntry)) + pages * 4 +
                     biases * static_cast<std::int64_t>(sizeof(BiasEntry)) + banned * 4 + mask_words * 4;
  return static_cast<std::size_t>(bytes) + 16 * kAlignment;
}

}  // namespace

std::size_t StepBlock::bytes_for(const StepLimits& limits) {
  // Requests bring up to 300 biases and some stop tokens; a step that goes beyond this on average is not replayed: see
  // StepSlots::begin().
  constexpr std::int64_t entries_a_sequence = 512;
  const std::size_t bytes =
      block_bytes(limits.rows, limits.sequences, limits.logits + limits.hidden, limits.pages + limits.sequences,
                  entries_a_sequence * limits.logits, entries_a_sequence * limits.logits,
                  limits.sequences * mask_words(limits.vocab_size));
  return std::bit_ceil(bytes);  // as reserve() rounds it
}

std::size_t StepBlock::Shape::bytes() const {
  return block_bytes(rows, sequences, logits + hidden, pages, biases, banned, mask_words);
}

void StepBlock::reserve(std::size_t bytes) {
  if (bytes <= device_.size()) return;
  bytes = std::bit_ceil(bytes);
  if (sent_) {
    MINISGL_CUDA_CHECK(cudaEventSynchronize(sent_.get()));
  } else {
    sent_ = make_event();
  }
  staging_ = allocate_pinned(bytes);
  device_ = allocate_on_device(bytes);
}

// The chains of all queries, one after the other.
class StepBlock::ProcessorWriter {
 public:
  explicit ProcessorWriter(const Arrays& host) : host_(host) {}

  void write(const LogitQuery& query, const SlotOf& slot_of, QueryEntry& entry) {
    const LogitProcessors& processors = query.processors;
    const auto at = [](std::int64_t index) { return static_cast<std::int32_t>(index); };
    entry.first_bias = at(host_.first_bias + next_bias_);
    entry.num_bias = at(std::ssize(processors.bias));
    for (const auto& [token, bias] : processors.bias) host_.biases[next_bias_++] = {token, bias};
    entry.repetition_penalty = processors.penalties.repetition;
    entry.presence_penalty = processors.penalties.presence;
    entry.frequency_penalty = processors.penalties.frequency;
    if (processors.penalties.seen != nullptr) entry.seen_slot = slot_of(processors.penalties.seen);
    entry.first_banned = at(host_.first_banned + next_banned_);
    entry.num_banned = at(std::ssize(processors.banned));
    std::ranges::copy(processors.banned, host_.banned + next_banned_);
    next_banned_ += entry.num_banned;
    entry.first_mask = at(host_.first_mask + next_mask_);
    entry.num_mask_words = at(std::ssize(processors.mask));
    if (!query.awaits_mask) std::ranges::copy(processors.mask, host_.masks + next_mask_);
    next_mask_ += entry.num_mask_words;
  }

 private:
  const Arrays& host_;
  std::int64_t next_bias_ = 0, next_banned_ = 0, next_mask_ = 0;
};

StepBlock::Shape StepBlock::shape_of(const StepBatch& batch, std::span<const LogitQuery> queries,
                                     std::int64_t recorded_rows) {
  Shape shape{.by_rows = recorded_rows > 0,
              .rows = std::ssize(batch.tokens),
              .sequences = std::ssize(batch.sequences),
              .logits = std::ssize(batch.logit_rows),
              .hidden = std::ssize(batch.hidden_rows)};
  if (shape.by_rows) shape.rows = shape.sequences = shape.logits = recorded_rows;
  for (const ops::SequenceRows& sequence : batch.sequences) shape.pages += pages_of(sequence, batch.page_size);
  for (const LogitQuery& query : queries) {
    if (query.target != LogitQuery::kSample) continue;
    shape.biases += std::ssize(query.processors.bias);
    shape.banned += std::ssize(query.processors.banned);
    shape.mask_words += std::ssize(query.processors.mask);
  }
  return shape;
}

StepBlock::Arrays StepBlock::lay_out(const Shape& shape) {
  Layout layout(static_cast<std::byte*>(staging_.get()), device_.data());
  data_ = {};
  data_.num_rows = static_cast<std::int32_t>(shape.rows);
  data_.num_sequences = static_cast<std::int32_t>(shape.sequences);
  data_.num_logits = static_cast<std::int32_t>(shape.logits);
  data_.num_hidden = static_cast<std::int32_t>(shape.hidden);
  Arrays host{};
  host.tokens = layout.add(shape.rows, data_.tokens);
  host.positions = layout.add(shape.rows, data_.positions);
  host.cache_rows = layout.add(shape.rows, data_.cache_rows);
  host.sequences = layout.add(shape.sequences, data_.sequences);
  host.decodes = layout.add(shape.sequences, data_.decodes);
  host.prefills = layout.add(shape.sequences, data_.prefills);
  host.logit_rows = layout.add(shape.logits + shape.hidden, data_.logit_rows);
  host.queries = layout.add(shape.logits, data_.queries);
  host.pages = layout.add(shape.pages, data_.pages);
  host.biases = layout.add(shape.biases, data_.biases);
  host.banned = layout.add(shape.banned, data_.banned);
  host.masks = layout.add(shape.mask_words, data_.masks);
  host.end = static_cast<std::byte*>(staging_.get()) + layout.used();
  // Where the last three lie depends on the pages, so graphs know their beginning as that of the page tables.
  const auto* pages_begin = reinterpret_cast<const BiasEntry*>(data_.pages);
  host.first_bias = data_.biases - pages_begin;
  host.first_banned = data_.banned - data_.pages;
  host.first_mask = data_.masks - reinterpret_cast<const std::uint32_t*>(data_.pages);
  data_.biases = pages_begin;
  data_.banned = data_.pages;
  data_.masks = reinterpret_cast<const std::uint32_t*>(data_.pages);
  return host;
}

void StepBlock::write_rows(const StepBatch& batch, const Shape& shape, const Arrays& host) {
  std::ranges::copy(batch.tokens, host.tokens);
  std::ranges::copy(batch.positions, host.positions);
  if (shape.by_rows) {
    std::iota(host.logit_rows, host.logit_rows + data_.num_logits, 0);
  } else {
    std::ranges::copy(batch.logit_rows, host.logit_rows);
    std::ranges::copy(batch.hidden_rows, host.logit_rows + data_.num_logits);
  }
  write_sequences(batch, shape.by_rows, host);
  // The longest first, so that no long one runs alone at a kernel's end.
  std::ranges::stable_sort(std::span(host.prefills, static_cast<std::size_t>(data_.num_prefills)), std::greater<>(),
                           [&](std::int32_t i) {
                             const ops::SequenceRows& sequence = batch.sequences[static_cast<std::size_t>(i)];
                             return sequence.start_position + sequence.num_rows;
                           });
  for (auto row = static_cast<std::int32_t>(batch.tokens.size()); row < shape.rows; ++row) {
    host.tokens[row] = host.positions[row] = 0;
    host.cache_rows[row] = -1;
    host.sequences[row] = {row, 0, 0, 0};
    if (all_prefills_) {
      host.prefills[data_.num_prefills++] = row;
      data_.most_prefill_rows = std::max(data_.most_prefill_rows, 1);
    } else {
      host.decodes[data_.num_decodes++] = row;
    }
  }
}

void StepBlock::write_sequences(const StepBatch& batch, bool by_rows, const Arrays& host) {
  std::int32_t first_page = 0, index = 0;
  for (const ops::SequenceRows& sequence : batch.sequences) {
    for (std::int32_t row = 0; row < sequence.num_rows; ++row) {
      const std::int32_t position = sequence.start_position + row;
      host.cache_rows[sequence.first_row + row] =
          sequence.page_table[position / batch.page_size] * batch.page_size + position % batch.page_size;
    }
    if (all_prefills_ || (sequence.num_rows > 1 && !by_rows)) {
      data_.most_prefill_rows = std::max(data_.most_prefill_rows, sequence.num_rows);
      host.prefills[data_.num_prefills++] = index;
      host.sequences[index++] = {sequence.first_row, sequence.num_rows, sequence.start_position, first_page};
    } else {
      for (std::int32_t row = 0; row < sequence.num_rows; ++row) {
        host.decodes[data_.num_decodes++] = index;
        host.sequences[index++] = {sequence.first_row + row, sequence.num_rows, sequence.start_position + row,
                                   first_page};
      }
    }
    const auto num_pages = static_cast<std::int32_t>(pages_of(sequence, batch.page_size));
    std::copy_n(sequence.page_table, num_pages, host.pages + first_page);
    first_page += num_pages;
  }
}

void StepBlock::write_queries(std::span<const LogitQuery> queries, std::span<const std::int32_t> places,
                              const SlotOf& slot_of, const Arrays& host) {
  ProcessorWriter processors(host);
  std::fill_n(host.queries, data_.num_logits, QueryEntry{});  // not active
  for (std::size_t i = 0; i < queries.size(); ++i) {
    const LogitQuery& query = queries[i];
    QueryEntry& entry = host.queries[places[i]];
    entry.active = 1;
    entry.target = query.target;
    entry.num_top = query.num_top;
    entry.seen_slot = -1;
    if (query.target != LogitQuery::kSample) continue;
    const SamplingParams& params = *query.params;
    entry.uniform = philox_uniform(params.seed, query.position);
    entry.temperature = params.temperature;
    entry.top_k = params.top_k;
    entry.top_p = params.top_p;
    entry.min_p = params.min_p;
    processors.write(query, slot_of, entry);
  }
}

const StepData& StepBlock::upload(const StepBatch& batch, std::span<const LogitQuery> queries, const Shape& shape,
                                  std::span<const std::int32_t> places, const SlotOf& slot_of, cudaStream_t stream) {
  reserve(shape.bytes());
  MINISGL_CUDA_CHECK(cudaEventSynchronize(sent_.get()));
  host_ = lay_out(shape);
  write_rows(batch, shape, host_);
  write_queries(queries, places, slot_of, host_);
  const bool is_whole = std::ranges::none_of(queries, &LogitQuery::awaits_mask);
  send(staging_.get(), is_whole ? static_cast<const void*>(host_.end) : host_.masks, stream);
  MINISGL_CUDA_CHECK(cudaEventRecord(sent_.get(), stream));
  return data_;
}

void StepBlock::upload_masks(std::span<const LateMask> masks, std::span<const std::int32_t> places,
                             cudaStream_t stream) {
  MINISGL_CUDA_CHECK(cudaEventSynchronize(sent_.get()));
  for (const auto& [query, words] : masks) {
    QueryEntry& entry = host_.queries[places[static_cast<std::size_t>(query)]];
    if (words.empty()) {
      entry.target = 0;
      entry.num_top = -1;
      continue;
    }
    MINISGL_CHECK(std::ssize(words) == entry.num_mask_words, "a mask of ", words.size(), " words, not ",
                  entry.num_mask_words);
    std::ranges::copy(words, host_.masks + (entry.first_mask - host_.first_mask));
  }
  send(host_.queries, host_.queries + data_.num_logits, stream);
  send(host_.masks, host_.end, stream);
  MINISGL_CUDA_CHECK(cudaEventRecord(sent_.get(), stream));
}

// Queues the copy of a part of the block.
void StepBlock::send(const void* begin, const void* end, cudaStream_t stream) {
  const auto *first = static_cast<const std::byte*>(begin), *last = static_cast<const std::byte*>(end);
  std::byte* target = device_.data() + (first - static_cast<const std::byte*>(staging_.get()));
  MINISGL_CUDA_CHECK(
      cudaMemcpyAsync(target, first, static_cast<std::size_t>(last - first), cudaMemcpyHostToDevice, stream));
}

}  // namespace minisgl::cuda
