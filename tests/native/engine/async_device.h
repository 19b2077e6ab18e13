// A device that works as a GPU does: calls queue work on a stream, which a thread of its own goes through in order, and
// what came of a step is seen when its outputs are taken, not before. The CPU's device does the work.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/host_pages_on_thread.h"
#include "kernels/cpu/backend.h"

namespace minisgl::testing_support {

class AsyncDevice : public Device {
 public:
  // When a step's work is done: as soon as the thread comes to it, after a while, or only when somebody waits for it.
  enum class Pace { at_once, dawdling, when_waited_for };

  explicit AsyncDevice(Pace pace = Pace::at_once) : pace_(pace), worker_([this] { work(); }) {}
  ~AsyncDevice() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  // For the step at hand: compute(batch) runs when the device comes to it, with every token known.
  void enqueue(std::function<void(const StepBatch&)> compute) {
    push([step = step_, compute = std::move(compute)] { compute(step->batch); });
  }
  // From now on a step takes so long for each of its rows.
  void set_row_time(std::chrono::microseconds time) { row_time_ = time; }
  // Steps that were in flight at once.
  int most_in_flight() const { return most_in_flight_; }
  // Draws whose masks came after their forward pass began, and those of them that were withdrawn instead.
  std::int64_t num_awaiting() const { return num_awaiting_; }
  std::int64_t num_withdrawn() const { return num_withdrawn_; }

  bool runs_ahead() const override { return true; }
  void begin_step(const StepBatch& batch, std::span<const LogitQuery> queries) override {
    auto previous = std::exchange(step_, std::make_shared<Step>(batch, queries));
    push([step = step_, previous = std::move(previous)] {
      for (std::int32_t& token : step->tokens) {
        if (token < 0) token = previous->outputs.tokens.at(static_cast<std::size_t>(-1 - token)).token;
      }
    });
  }
  void run_step(const std::function<void()>& body) override {
    run_forward(body);
    end_step();
  }
  void run_forward(const std::function<void()>& forward) override {
    forward();
    const std::lock_guard lock(mutex_);
    untaken_.push_back(step_);
    most_in_flight_ = std::max(most_in_flight_, static_cast<int>(untaken_.size()));
  }
  void run_sampling(std::span<const LateMask> masks, const std::function<void()>& sampling) override {
    for (const auto& [query, words] : masks) {
      push([step = step_, query = query, copy = std::vector(words.begin(), words.end())] { step->mask(query, copy); });
    }
    num_awaiting_ += std::ssize(masks);
    num_withdrawn_ += std::ranges::count_if(masks, [](const LateMask& mask) { return mask.words.empty(); });
    sampling();
    end_step();
  }
  void sample(OutputTensor logits) override {
    push([this, step = step_, logits] {
      MINISGL_CHECK(std::ranges::none_of(step->queries, &LogitQuery::awaits_mask));
      inner_->begin_step(step->batch, step->queries);
      inner_->run_step([&] { inner_->sample(logits); });
      step->outputs.tokens = inner_->take_outputs().tokens;
    });
  }
  void keep_hidden(Tensor hidden) override {
    push([step = step_, hidden] {
      step->outputs.hidden.assign(hidden.f32(), hidden.f32() + hidden.rows * hidden.cols);
    });
  }
  StepOutputs take_outputs() override {
    std::unique_lock lock(mutex_);
    MINISGL_CHECK(!untaken_.empty());
    const std::shared_ptr<Step> step = untaken_.front();
    untaken_.pop_front();
    waited_for_ = step.get();
    changed_.notify_all();
    changed_.wait(lock, [&] { return step->is_done || error_; });
    waited_for_ = nullptr;
    if (error_) std::rethrow_exception(error_);
    return step->outputs;  // a copy: the next step reads them, too
  }
  std::unique_ptr<SeenTokens> make_seen_tokens(std::int64_t vocab_size, bool in_prompt) override {
    return std::make_unique<Seen>(*this, inner_->make_seen_tokens(vocab_size, in_prompt));
  }

  // The most sequences whose tokens were counted at once.
  std::int64_t most_seen() const { return most_seen_; }

  std::string device_name() const override { return "a thread"; }
  ThreadPool& pool() override { return inner_->pool(); }
  int rank() const override { return inner_->rank(); }
  int num_ranks() const override { return inner_->num_ranks(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  DType kv_dtype_for(DType weight_dtype) const override { return inner_->kv_dtype_for(weight_dtype); }
  bool supports_kv_dtype(DType dtype) const override { return inner_->supports_kv_dtype(dtype); }
  bool has_own_memory() const override { return false; }
  std::int64_t usual_batch_tokens() const override { return inner_->usual_batch_tokens(); }
  std::int64_t available_memory() const override { return inner_->available_memory(); }
  double measure_read_bandwidth() override { return inner_->measure_read_bandwidth(); }
  void synchronize() override {
    std::unique_lock lock(mutex_);
    is_drained_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return tasks_.empty() && !is_busy_; });
    is_drained_ = false;
  }
  DeviceBuffer allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  void copy(const std::byte* from, std::size_t bytes, std::byte* to) override {
    push([this, from, bytes, to] { inner_->copy(from, bytes, to); });
  }

  bool has_host_pages() const override { return true; }
  std::unique_ptr<HostPages> make_host_pages(const HostPagesOptions& options) override {
    return std::make_unique<HostPagesOnThread>(options, pace_ != Pace::at_once, host_page_seconds,
                                               [this](std::function<void()> wait) { push(std::move(wait)); });
  }
  // How long a page takes from the host tier that is made from now on. As it is, less than any step: how long steps
  // take, which is measured, decides nothing.
  double host_page_seconds = -1e9;

  // The fake model makes none of these calls.
  void upload(std::span<const std::byte>, std::byte*) override { unwanted(); }
  void download(const std::byte*, std::span<std::byte>) override { unwanted(); }
  std::shared_ptr<const Matrix> make_matrix(DType, std::int64_t, std::int64_t, std::span<const std::byte>) override {
    unwanted();
  }
  std::shared_ptr<const Matrix> make_random_matrix(std::int64_t, std::int64_t) override { unwanted(); }
  std::unique_ptr<const Linear> make_linear(std::vector<Projection>) override { unwanted(); }
  void embed(const Matrix&, std::int64_t, OutputTensor, float) override { unwanted(); }
  LinearInput rms_norm(Tensor, const Norm&, OutputTensor) override { unwanted(); }
  LinearInput reduce_add_rms_norm(OutputTensor, OutputTensor, const Norm&, OutputTensor) override { unwanted(); }
  LinearInput reduce_norm_add_rms_norm(OutputTensor, OutputTensor, const Norm&, const Norm&, OutputTensor) override {
    unwanted();
  }
  void linear(const Linear&, const LinearInput&, OutputTensor) override { unwanted(); }
  LinearInput gated_linear(const Linear&, const LinearInput&, OutputTensor, OutputTensor, Activation) override {
    unwanted();
  }
  Tensor plain_rows(LinearInput&) override { unwanted(); }
  void store_heads(OutputTensor, const HeadShape&, const HeadTransform&, const ops::KvLayer&) override { unwanted(); }
  void scale_logits(OutputTensor, float, float) override { unwanted(); }
  void paged_attention(Tensor, const HeadShape&, const ops::KvLayer&, ScoreRule, std::int32_t, OutputTensor) override {
    unwanted();
  }
  void gather_wanted_rows(Tensor, OutputTensor) override { unwanted(); }
  void sum_over_ranks(OutputTensor) override { unwanted(); }
  void gather_columns(Tensor, OutputTensor, OutputTensor) override { unwanted(); }

 private:
  // Copies of all that the caller may change or destroy once it was handed over.
  struct Step {
    Step(const StepBatch& from, std::span<const LogitQuery> asked)
        : tokens(from.tokens.begin(), from.tokens.end()),
          positions(from.positions.begin(), from.positions.end()),
          logit_rows(from.logit_rows.begin(), from.logit_rows.end()),
          hidden_rows(from.hidden_rows.begin(), from.hidden_rows.end()),
          sequences(from.sequences.begin(), from.sequences.end()),
          queries(asked.begin(), asked.end()) {
      for (ops::SequenceRows& sequence : sequences) {
        const std::int32_t end = sequence.start_position + sequence.num_rows;
        const std::int32_t num_pages = (end + from.page_size - 1) / from.page_size;
        tables.emplace_back(sequence.page_table, sequence.page_table + num_pages);
        sequence.page_table = tables.back().data();
      }
      for (LogitQuery& query : queries) {
        query.params = &params.emplace_back(*query.params);
        LogitProcessors& processors = query.processors;
        processors.bias = biases.emplace_back(processors.bias.begin(), processors.bias.end());
        processors.banned = banned.emplace_back(processors.banned.begin(), processors.banned.end());
        processors.mask = masks.emplace_back(processors.mask.begin(), processors.mask.end());
        SeenTokens*& seen = processors.penalties.seen;
        if (seen != nullptr) seen = counts.emplace_back(static_cast<Seen*>(seen)->inner).get();
      }
      batch = {tokens, positions, sequences, logit_rows, from.page_size, hidden_rows};
    }
    Step(const Step&) = delete;
    void mask(std::int32_t query, std::span<const std::uint32_t> words) {
      LogitQuery& asked = queries.at(static_cast<std::size_t>(query));
      MINISGL_CHECK(asked.awaits_mask && (words.empty() || words.size() == asked.processors.mask.size()));
      if (words.empty()) asked = {.target = 0, .params = asked.params};
      asked.processors.mask = masks.emplace_back(words.begin(), words.end());
      asked.awaits_mask = false;
    }

    std::vector<std::int32_t> tokens, positions, logit_rows, hidden_rows;
    std::vector<ops::SequenceRows> sequences;
    std::deque<std::vector<std::int32_t>> tables, banned;
    std::deque<std::vector<TokenBias>> biases;
    std::deque<std::vector<std::uint32_t>> masks;
    std::deque<SamplingParams> params;
    std::vector<std::shared_ptr<SeenTokens>> counts;
    std::vector<LogitQuery> queries;
    StepBatch batch{};
    StepOutputs outputs;
    bool is_done = false;  // guarded by mutex_
  };

  // Counts that live on the stream, in the order of the calls.
  struct Seen final : SeenTokens {
    Seen(AsyncDevice& device_, std::unique_ptr<SeenTokens> inner_) : device(device_), inner(std::move(inner_)) {
      const std::int64_t count = ++device.num_seen_;
      device.most_seen_ = std::max(device.most_seen_.load(), count);
    }
    ~Seen() override {
      --device.num_seen_;
      device.push([inner = inner] {});
    }
    void add_output(std::span<const std::int32_t> tokens) override {
      device.push([inner = inner, copy = std::vector(tokens.begin(), tokens.end())] { inner->add_output(copy); });
    }
    void add_prompt(std::span<const std::int32_t> tokens) override {
      device.push([inner = inner, copy = std::vector(tokens.begin(), tokens.end())] { inner->add_prompt(copy); });
    }
    AsyncDevice& device;
    std::shared_ptr<SeenTokens> inner;
  };

  void end_step() {
    push([this, step = step_] {
      std::this_thread::sleep_for(row_time_.load() * step->tokens.size());
      const std::lock_guard lock(mutex_);
      step->is_done = true;
      changed_.notify_all();
    });
  }

  [[noreturn]] static void unwanted() { throw CheckError("the fake model makes no such call"); }

  void push(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }

  void work() {
    std::mt19937 random(7);
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return may_go_on() || stopping_; });
      if (tasks_.empty()) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      is_busy_ = true;
      const bool failed = error_ != nullptr;
      lock.unlock();
      if (pace_ == Pace::dawdling && random() % 8 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
      }
      std::exception_ptr error;
      try {
        if (!failed) task();
      } catch (...) {
        error = std::current_exception();
      }
      task = nullptr;
      lock.lock();
      is_busy_ = false;
      if (error) error_ = error;
      changed_.notify_all();
    }
  }
  // At the slowest pace, what was queued up to the end of the step that is waited for.
  bool may_go_on() const {
    if (tasks_.empty()) return false;
    if (pace_ != Pace::when_waited_for || is_drained_) return true;
    return waited_for_ != nullptr && !waited_for_->is_done;
  }

  const Pace pace_;
  const std::unique_ptr<Device> inner_ = make_cpu_device(1);  // of the worker, but for what allocates
  std::shared_ptr<Step> step_;                                // the step at hand
  int most_in_flight_ = 0;
  std::atomic<std::int64_t> num_awaiting_ = 0, num_withdrawn_ = 0;
  std::atomic<std::chrono::microseconds> row_time_ = std::chrono::microseconds(0);
  std::atomic<std::int64_t> num_seen_ = 0, most_seen_ = 0;

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::deque<std::shared_ptr<Step>> untaken_;
  const Step* waited_for_ = nullptr;
  std::exception_ptr error_;
  bool is_busy_ = false, is_drained_ = false, stopping_ = false;
  std::thread worker_;
};

}  // namespace minisgl::testing_support
