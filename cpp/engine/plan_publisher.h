// Tells the other ranks what rank 0 does, one frame per step. Without other ranks it does nothing.
#pragma once

#include <utility>

#include "comm/plan_channel.h"
#include "engine/plan_codec.h"

namespace minisgl {

class PlanPublisher final : public PlanHandler {
 public:
  // One sender for the ranks of this host, one for those of others.
  explicit PlanPublisher(PlanSenders senders) : senders_(std::move(senders)) {}

  // These are sent with the next step.
  void add(SequenceId id, SequenceSampling sampling) override {
    if (senders_.empty()) return;
    encoder_.add(id, std::move(sampling));
    send_if_large();
  }
  void remove(SequenceId id) override {
    if (!senders_.empty()) encoder_.remove(id);
  }
  void append(SequenceId id, std::span<const std::int32_t> tokens) override {
    if (!senders_.empty()) encoder_.append(id, tokens);
  }
  void mask(SequenceId id, std::span<const std::uint32_t> words) override {
    if (senders_.empty()) return;
    encoder_.mask(id, words);
    send_if_large();
  }
  void pause(SequenceId id, std::span<const std::int32_t> output) override {
    if (!senders_.empty()) encoder_.pause(id, output);
  }
  void step(const StepPlan& plan) override {
    if (senders_.empty()) return;
    encoder_.step(plan);
    send();
  }
  void draw(std::span<const SequenceId> withdrawn) override {
    if (senders_.empty()) return;
    encoder_.draw(withdrawn);
    send();
  }
  void copy(const TierCopies& copies, std::uint32_t num_in_flight) override {
    if (senders_.empty()) return;
    encoder_.copy(copies, num_in_flight);
    send();
  }
  void shut_down() override {
    if (senders_.empty()) return;
    encoder_.shut_down();
    send();
  }

 private:
  static constexpr std::size_t max_waiting_bytes = std::size_t{1} << 20;

  void send_if_large() {
    if (encoder_.frame().size() > max_waiting_bytes) send();
  }
  void send() {
    for (const auto& sender : senders_) sender->send(encoder_.frame());
    encoder_.clear();
  }

  PlanSenders senders_;
  PlanEncoder encoder_;
};

}  // namespace minisgl
