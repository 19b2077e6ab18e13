// Steps take turns in two slots; decode steps are captured once and replayed.
#include "kernels/cuda/step_slots.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/half.h"
#include "core/log.h"
#include "kernels/cuda/seen_tokens.h"
#include "kernels/cuda/wait.h"

namespace minisgl::cuda {
namespace {

constexpr std::int64_t kGraphBytes = std::int64_t{256}
                                     << 20;  // room for all recorded steps; whole ones of 32 layers took 40 MiB

CudaGraphExec instantiate(cudaGraph_t captured) {
  const CudaGraph graph(captured);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph.get(), 0);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is dealt with
    throw InputError("the GPU has no room for recorded steps; lower --memory-fraction or give --disable-cuda-graph");
  }
  MINISGL_CUDA_CHECK(error);
  return CudaGraphExec(executable);
}

std::vector<TokenOutput> read_outputs(const OutputEntry* entries, std::span<const std::int32_t> places) {
  std::vector<TokenOutput> outputs(places.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const OutputEntry& entry = entries[places[i]];
    outputs[i].token = entry.token;
    outputs[i].logprob = entry.logprob;
    for (std::int32_t k = 0; k < entry.num_top; ++k)
      outputs[i].top.push_back({entry.top_token[k], entry.top_logprob[k]});
  }
  return outputs;
}

// Whether the step may be computed row by row, as recorded steps are. Each row of a sequence then reads all before it,
// which prefills don't wait for.
bool goes_by_rows(const StepBatch& batch, std::span<const LogitQuery> queries, bool all_prefills) {
  const std::int64_t most_rows = all_prefills ? 1 : 16;       // of a sequence
  constexpr std::int64_t kMostAgain = std::int64_t{1} << 16;  // positions that are read again
  if (queries.empty() || !batch.hidden_rows.empty()) return false;
  std::int64_t num_again = 0;
  for (const ops::SequenceRows& sequence : batch.sequences) {
    const std::int64_t rows = sequence.num_rows;
    if (rows > most_rows) return false;
    num_again += (rows - 1) * (sequence.start_position + rows);
  }
  return num_again <= kMostAgain;
}

}  // namespace

void StepSlots::Slot::reserve_outputs(std::int64_t count) {
  if (count <= num_outputs) return;
  num_outputs = count;
  drawn = allocate_on_device(static_cast<std::size_t>(count) * sizeof(std::int32_t));
  outputs = allocate_pinned(static_cast<std::size_t>(count) * sizeof(OutputEntry));
}

StepSlots::StepSlots(int device_index, cudaStream_t stream, Communicator* comm, bool all_prefills)
    : device_index_(device_index),
      stream_(stream),
      comm_(comm),
      all_prefills_(all_prefills),
      upload_stream_(make_stream()) {
  for (Slot& slot : slots_) {
    for (CudaEvent* event : {&slot.begun, &slot.paused, &slot.resumed, &slot.done}) *event = make_timed_event();
    if (!all_prefills) continue;
    slot.block.let_prefills_be_all();
    slot.large_block.let_prefills_be_all();
  }
}

std::int64_t StepSlots::bytes_for(const StepLimits& limits) {
  return 2 * static_cast<std::int64_t>(StepBlock::bytes_for(limits)) + kGraphBytes;
}

void StepSlots::reserve(const StepLimits& limits) {
  vocab_size_ = limits.vocab_size;
  for (Slot& slot : slots_) {
    slot.block.reserve(StepBlock::bytes_for(limits));
    slot.reserve_outputs(limits.logits);
  }
}

// The slots take turns. What the device still does in the next one comes before what it is filled with.
void StepSlots::open() {
  MINISGL_CUDA_CHECK(cudaSetDevice(device_index_));  // whichever thread calls
  MINISGL_CHECK(num_untaken_ < 2, "two steps are in flight");
  MINISGL_CHECK(!awaits_masks_, "the step before awaits masks");
  if (is_open_) close();
  current_ ^= 1;
  is_open_ = true;
  MINISGL_CUDA_CHECK(cudaStreamWaitEvent(upload_stream_.get(), current().done.get()));
}

void StepSlots::close() {
  MINISGL_CUDA_CHECK(cudaEventRecord(current().done.get(), stream_));
  is_open_ = false;
}

void StepSlots::begin(const StepBatch& batch, std::span<const LogitQuery> queries) {
  open();
  auto& recordings = current().recordings;
  const auto recording =
      goes_by_rows(batch, queries, all_prefills_) ? recordings.lower_bound(std::ssize(batch.tokens)) : recordings.end();
  replayed_ = recording != recordings.end() ? &recording->second : nullptr;
  const StepBlock::Shape shape = StepBlock::shape_of(batch, queries, replayed_ != nullptr ? recording->first : 0);
  if (recordings.empty() || current().block.fits(shape)) {
    upload(batch, queries, shape, current().block);
    return;
  }
  // Graphs read the block where it lay when they were captured, so it stays there, and this step runs beside them.
  replayed_ = nullptr;
  if (!std::exchange(said_too_large_, true)) {
    log_line(LogLevel::warning,
             concat("a step of ", batch.sequences.size(), " sequences brings so many biases, bans or masks (",
                    shape.bytes(), " bytes) that it is not replayed from a recording; such steps are slower"));
  }
  upload(batch, queries, StepBlock::shape_of(batch, queries, 0), current().large_block);
}

void StepSlots::upload(const StepBatch& batch, std::span<const LogitQuery> queries, const StepBlock::Shape& shape,
                       StepBlock& block) {
  const std::vector<std::int32_t>& places_before = previous().places;
  tokens_.assign(batch.tokens.begin(), batch.tokens.end());
  for (std::int32_t& token : tokens_) {
    MINISGL_CHECK(token >= -std::ssize(places_before), "token ", token);
    if (token < 0) token = -1 - places_before[static_cast<std::size_t>(-1 - token)];
  }
  for (const LogitQuery& query : queries) {
    const std::int64_t words = std::ssize(query.processors.mask);
    MINISGL_CHECK(words == 0 || vocab_size_ == 0 || words == mask_words(vocab_size_), "a mask of ", words,
                  " words for a vocabulary of ", vocab_size_);
  }
  Slot& slot = current();
  slot.places.resize(queries.size());
  if (shape.by_rows) {
    std::ranges::copy(batch.logit_rows, slot.places.begin());
  } else {
    std::iota(slot.places.begin(), slot.places.end(), 0);
  }
  slot.num_hidden = 0;
  slot.has_halves = false;
  block_ = &block;
  slot.reserve_outputs(shape.logits);
  StepBatch placed = batch;
  placed.tokens = tokens_;
  step_ = block.upload(
      placed, queries, shape, slot.places,
      [](const SeenTokens* seen) { return static_cast<const DeviceSeenTokens*>(seen)->slot(); }, upload_stream_.get());
  step_.drawn = slot.drawn.as<std::int32_t>();
  step_.drawn_before = previous().drawn.as<std::int32_t>();
  MINISGL_CUDA_CHECK(cudaStreamWaitEvent(stream_, block.sent()));
  MINISGL_CUDA_CHECK(cudaEventRecord(slot.begun.get(), stream_));
}

void StepSlots::launch(CudaGraphExec Recording::* recorded, const std::function<void()>& body) {
  if (replayed_ != nullptr) {
    MINISGL_CUDA_CHECK(cudaGraphLaunch((replayed_->*recorded).get(), stream_));
  } else {
    body();
  }
}

void StepSlots::run(const std::function<void()>& body) {
  launch(&Recording::whole, body);
  close();
  ++num_untaken_;
}

void StepSlots::run_forward(const std::function<void()>& forward) {
  launch(&Recording::forward, forward);
  MINISGL_CUDA_CHECK(cudaEventRecord(current().paused.get(), stream_));
  current().has_halves = awaits_masks_ = true;
  is_open_ = false;
  ++num_untaken_;
}

void StepSlots::run_sampling(std::span<const LateMask> masks, const std::function<void()>& sampling) {
  MINISGL_CHECK(awaits_masks_, "no step awaits masks");
  awaits_masks_ = false;
  block_->upload_masks(masks, current().places, upload_stream_.get());
  MINISGL_CUDA_CHECK(cudaStreamWaitEvent(stream_, block_->sent()));
  MINISGL_CUDA_CHECK(cudaEventRecord(current().resumed.get(), stream_));
  launch(&Recording::sampling, sampling);
  close();
}

CudaGraphExec StepSlots::capture(const std::function<void()>& body) {
  MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  body();
  cudaGraph_t captured = nullptr;
  MINISGL_CUDA_CHECK(cudaStreamEndCapture(stream_, &captured));
  return instantiate(captured);
}

void StepSlots::record(const StepBatch& batch, std::span<const LogitQuery> queries,
                       const std::function<void()>& forward, const std::function<void()>& sampling) {
  const auto both = [&] {
    forward();
    sampling();
  };
  for (int i = 0; i < 2; ++i) {
    open();
    upload(batch, queries, StepBlock::shape_of(batch, queries, 0), current().block);
    MINISGL_CHECK(step_.num_rows == step_.num_sequences && step_.num_logits == step_.num_sequences,
                  "not a decode step");
    if (i == 0) both();  // what is chosen or allocated at a first use must not happen while recording
    wait_for_device(comm_, [&] { return cudaStreamSynchronize(stream_); });
    Recording& recording = current().recordings[step_.num_sequences];
    recording.whole = capture(both);
    recording.forward = capture(forward);
    recording.sampling = capture(sampling);
    close();
  }
}

void StepSlots::keep_hidden(Tensor hidden) {
  MINISGL_CHECK(hidden.dtype == DType::bf16, "hidden states of ", dtype_info(hidden.dtype).name);
  Slot& slot = current();
  slot.num_hidden = hidden.rows * hidden.cols;
  if (slot.num_hidden > slot.most_hidden) {  // a few times: it at least doubles
    const std::size_t most = std::bit_ceil(static_cast<std::size_t>(slot.num_hidden));
    slot.hidden = allocate_pinned(most * static_cast<std::size_t>(dtype_info(hidden.dtype).block_bytes));
    slot.most_hidden = static_cast<std::int64_t>(most);
  }
  MINISGL_CUDA_CHECK(cudaMemcpyAsync(slot.hidden.get(), hidden.data, static_cast<std::size_t>(hidden.nbytes()),
                                     cudaMemcpyDeviceToHost, stream_));
}

StepOutputs StepSlots::take() {
  if (is_open_) {  // its calls were made without run()
    close();
    ++num_untaken_;
  }
  MINISGL_CHECK(num_untaken_ > 0, "no step is in flight");
  Slot& taken = num_untaken_ == 1 ? current() : previous();
  --num_untaken_;
  wait_for_device(comm_, [&] { return cudaEventSynchronize(taken.done.get()); });
  float milliseconds = 0;
  MINISGL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, taken.begun.get(), taken.done.get()));
  busy_seconds_ += milliseconds * 1e-3;
  if (taken.has_halves) {
    MINISGL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, taken.paused.get(), taken.resumed.get()));
    busy_seconds_ -= milliseconds * 1e-3;
  }
  StepOutputs outputs{read_outputs(static_cast<const OutputEntry*>(taken.outputs.get()), taken.places)};
  const auto* hidden = static_cast<const std::uint16_t*>(taken.hidden.get());
  outputs.hidden.resize(static_cast<std::size_t>(taken.num_hidden));
  for (std::size_t i = 0; i < outputs.hidden.size(); ++i) outputs.hidden[i] = bf16_to_f32(hidden[i]);
  return outputs;
}

}  // namespace minisgl::cuda
