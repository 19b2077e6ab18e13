// The scheduler under random submits, finishes and aborts with tiny caches, watched through its plans alone; with each
// step complete before the next is planned, and with a second step planned while the first is in flight.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "sched/scheduler.h"

namespace minisgl {
namespace {

// Plays a rank: follows the plans, keeps the page tables and the pages' contents, and verifies what every plan
// promises. Up to `depth` steps are in flight when one more is planned.
class Rank {
 public:
  Rank(const SchedulerOptions& options, std::mt19937& random, std::size_t depth = 0, bool rivals = false)
      : options_(options), random_(random), depth_(depth), rivals_(rivals) {}

  // A sequence of any kind; some begin like one that is there already, or was.
  void submit(Scheduler& scheduler, SequenceId id) {
    const std::int64_t capacity = options_.num_pages * options_.page_size;
    const std::int64_t prompt_len = 1 + below(std::min<std::int64_t>(capacity, 40));
    const std::int64_t max_tokens = below(std::min<std::int64_t>(capacity - prompt_len + 1, 60));
    Known known{.max_len = prompt_len + max_tokens, .prompt_len = prompt_len};
    known.score_prompt = one_in(4);
    known.needs_token = one_in(3);
    known.awaits_masks = one_in(3);
    known.space.adapter = one_in(5) ? 1 : 0;
    if (max_tokens == 0 && !known.score_prompt && one_in(2)) known.num_hidden = 1 + below(prompt_len);
    if (!one_in(3)) share_prefix(known);
    while (known.len() < prompt_len) known.tokens.push_back(any_token());
    scheduler.add({.id = id,
                   .prompt = known.tokens,
                   .max_tokens = max_tokens,
                   .score_prompt = known.score_prompt,
                   .needs_token = known.needs_token,
                   .awaits_masks = known.awaits_masks,
                   .has_counts = one_in(3),
                   .num_hidden = known.num_hidden,
                   .space = known.space,
                   .standing = rivals_ ? any_standing() : Standing{},
                   .arrived = now_});
    live_.emplace(id, known);
  }

  void forget(SequenceId id) {
    const Known& known = live_.at(id);
    const auto unknown = std::ranges::find(known.tokens, kUnknown);
    past_.push_back({known.space, {known.tokens.begin(), unknown}});
    if (past_.size() > 30) past_.pop_front();
    live_.erase(id);
  }
  std::vector<SequenceId> ids() const {
    std::vector<SequenceId> ids;
    for (const auto& [id, known] : live_) ids.push_back(id);
    return ids;
  }

  // A turn of the engine: plans a step, and once as many are in flight as may be, completes the oldest and ends the
  // sequences that are done.
  void step(Scheduler& scheduler) {
    const std::uint64_t preemptions = scheduler.num_preemptions();
    const auto place = [&](const Sequence& sequence) {
      return std::pair(scheduler.queue().class_of(sequence.turn), sequence.id);
    };
    std::optional<std::pair<std::int32_t, SequenceId>> first;
    if (!scheduler.running().empty()) first = place(scheduler.running().front());
    now_ += std::chrono::seconds(below(10));
    finish_copies(scheduler);
    let_go(scheduler);
    if (!in_flight_.empty()) withdraw_held(scheduler);
    if (testing::Test::HasFatalFailure()) return;
    const StepPlan& plan = scheduler.plan(now_);
    // Whoever comes first of all is never preempted, but for one that is let in and comes before it.
    ASSERT_TRUE(!first || scheduler.sequence(first->second).is_running || place(scheduler.running().front()) < *first);
    ASSERT_EQ(scheduler.preempted().size(), scheduler.num_preemptions() - preemptions);
    for (const SequenceId id : scheduler.preempted()) live_.at(id).table.clear();
    if (!plan.empty()) {
      ASSERT_TRUE(in_flight_.empty() || scheduler.num_preemptions() == preemptions);
      ASSERT_LE(plan.num_rows(), options_.max_batch_tokens);
      verify_rows(plan);
      verify_wanted(plan);
      verify_order(scheduler, plan);
      verify_writers(scheduler, plan);
      if (testing::Test::HasFatalFailure()) return;
      counts.ahead += in_flight_.empty() ? 0 : 1;
      launch(plan);
    } else {
      // Progress: some row is computed.
      const bool is_held = std::ranges::any_of(live_, [](const auto& entry) { return entry.second.is_held; });
      ASSERT_TRUE(live_.empty() || !in_flight_.empty() || !copies_.empty() || !scheduler.tier_copies().empty() ||
                  is_held);
    }
    for (const TierCopies* copies : scheduler.tier_copies()) begin_copies(*copies);
    scheduler.check();
    if (in_flight_.size() > (plan.empty() ? 0 : depth_)) finish_step(scheduler);
  }

  // How often what these tests are about happened.
  struct Counts {
    std::int64_t ahead = 0;  // steps planned while another was in flight
    std::int64_t accepted = 0, rejected = 0, appended = 0, copied = 0, hidden = 0;
    // Sequences that began with pages: of all kinds, of those that the same step computes, and after a preemption.
    // Parts whose pages were exchanged for equal ones, and those that others had computed a part of the prompt for.
    std::int64_t shared = 0, joined = 0, found_again = 0, exchanged = 0, passed = 0;
    std::int64_t copied_out = 0, copied_in = 0;
    std::int64_t awaiting = 0, withdrawn = 0;  // draws
  } counts;

 private:
  struct Known {
    std::vector<std::int32_t> tokens = {}, drafts = {};
    std::vector<PageId> table = {}, table_before = {};  // from the last plan on, and before it
    std::int64_t num_computed = 0, max_len, prompt_len;
    std::int64_t num_delivered = 0;  // prompt rows that were scored, or whose hidden states came
    std::int64_t num_hidden = 0;
    bool score_prompt = false, needs_token = false, awaits_masks = false;
    bool is_held = false;  // its next mask isn't there
    PrefixSpace space = {};
    bool has_begun = false;
    std::int64_t num_named = 0;  // tokens that were in a row, in whatever life
    bool had_drafts = false;     // since the last plan

    std::int64_t len() const { return static_cast<std::int64_t>(tokens.size()); }
  };
  static constexpr std::int32_t kUnknown = -1000000;  // a token that a step in flight draws
  static constexpr std::int32_t kPoison = -2000000;   // what a page holds before it is written

  // A sequence that has ended.
  struct Past {
    PrefixSpace space;
    std::vector<std::int32_t> tokens;
  };

  // Masks come at any time.
  void let_go(Scheduler& scheduler) {
    for (auto& [id, known] : live_) {
      if (!known.is_held || one_in(3)) continue;
      known.is_held = false;
      scheduler.hold(id, false);
    }
  }
  // The latest step draws with the masks that are there.
  void withdraw_held(Scheduler& scheduler) {
    Flight& flight = in_flight_.back();
    const std::span<const SequenceId> withdrawn = scheduler.withdraw_held();
    std::size_t next = 0;
    for (SequenceStep& step : flight.plan.sequences) {
      const auto entry = live_.find(step.id);
      if (step.awaits_mask == 0 || entry == live_.end() || !entry->second.is_held) continue;
      ASSERT_LT(next, withdrawn.size());
      ASSERT_EQ(withdrawn[next++], step.id);
      step.is_withdrawn = true;
      Known& known = entry->second;
      ASSERT_EQ(known.tokens.back(), kUnknown);
      known.tokens.pop_back();
      --known.num_computed;
      ++counts.withdrawn;
    }
    ASSERT_EQ(next, withdrawn.size());
    scheduler.check();
  }

  // A step as a device keeps it.
  struct Flight {
    StepPlan plan;
    std::vector<std::int64_t> new_tokens;     // [plan.sequences] where the first drawn token goes
    std::vector<std::vector<PageId>> tables;  // [plan.sequences]
  };

  // Copies to the host's memory or from there, and when they are done.
  struct Copying {
    TierCopies copies;
    bool is_made = false;
  };

  void make(Copying& copying) {
    if (std::exchange(copying.is_made, true)) return;
    const TierCopies& copies = copying.copies;
    for (const PagePair& pair : copies.pages) {
      for (int i = 0; i < options_.page_size; ++i) {
        copies.to_host ? host_memory_[{pair.destination, i}] = memory_[{pair.source, i}]
                       : memory_[{pair.destination, i}] = host_memory_[{pair.source, i}];
      }
    }
  }
  // They may be made at once, or only before a step that says so, which is when a rank that lags behind makes them.
  void begin_copies(const TierCopies& copies) {
    ASSERT_EQ(copies.number, ++num_copies_);
    for (const PagePair& pair : copies.pages) {
      if (!lagging_.empty()) break;  // those before may still read it
      for (int i = 0; i < options_.page_size; ++i) {
        (copies.to_host ? host_memory_ : memory_)[{pair.destination, i}] = kPoison;
      }
    }
    copies_.push_back({copies});
    lagging_.push_back({copies});
    (copies.to_host ? counts.copied_out : counts.copied_in) += std::ssize(copies.pages);
    if (one_in(2)) make_until(copies.number);
  }
  void make_until(std::uint64_t number) {
    for (; !lagging_.empty() && lagging_.front().copies.number <= number; lagging_.pop_front()) make(lagging_.front());
  }
  // Rank 0 hears of them at any time; at once where it has nothing else to do.
  void finish_copies(Scheduler& scheduler) {
    if (!scheduler.host()) return;
    if (one_in(20)) {
      const std::int64_t ready = scheduler.host()->num_ready();
      scheduler.host_pages_ready(ready + below(options_.host_pages - ready + 1));
    }
    std::size_t count = one_in(3) ? 1 : 0;
    if (in_flight_.empty() && !scheduler.may_plan()) count = 1;
    if (copies_.empty() || count == 0) return;
    const std::uint64_t number = copies_.front().copies.number;
    copies_.pop_front();
    scheduler.copies_done(number);
    scheduler.check();
  }

  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n)); }
  bool one_in(unsigned n) { return random_() % n == 0; }
  Standing any_standing() {
    return {.priority = static_cast<std::int32_t>(below(5)) - 2,
            .share = below(3),
            .user = static_cast<std::uint64_t>(below(3))};
  }
  std::int32_t any_token() { return static_cast<std::int32_t>(random_() % 1000); }

  void share_prefix(Known& known) {
    std::deque<Past> others = past_;
    for (const auto& [id, other] : live_) {
      others.push_back({other.space, {other.tokens.begin(), std::ranges::find(other.tokens, kUnknown)}});
    }
    if (others.empty()) return;
    const auto& [space, tokens] =
        one_in(2) ? others.back() : others[static_cast<std::size_t>(below(std::ssize(others)))];
    const std::int64_t length = std::min<std::int64_t>(known.prompt_len, std::ssize(tokens));
    known.tokens.assign(tokens.begin(), tokens.begin() + (one_in(2) ? length : 1 + below(length)));
    if (!one_in(4)) known.space = space;
  }

  void verify_rows(const StepPlan& plan) {
    std::int32_t next_row = 0;
    std::int64_t num_drafts = 0;
    std::set<SequenceId> seen;
    for (const SequenceStep& step : plan.sequences) {
      ASSERT_TRUE(live_.contains(step.id));
      ASSERT_TRUE(seen.insert(step.id).second);
      Known& known = live_.at(step.id);
      ASSERT_EQ(step.first_row, next_row);
      ASSERT_GE(step.num_rows - step.num_drafts(), 1);
      ASSERT_EQ(step.adapter, known.space.adapter);
      next_row += step.num_rows;
      num_drafts += step.num_drafts();
      ASSERT_FALSE(known.is_held);
      const bool awaits_mask = known.awaits_masks && step.num_draws > 0 && known.tokens.back() == kUnknown;
      ASSERT_EQ(step.awaits_mask, static_cast<std::int32_t>(awaits_mask));
      counts.awaiting += step.awaits_mask;
      verify_table(plan, step, known);
      for (int i = 0; i < step.num_rows; ++i) {
        const std::int64_t position = std::int64_t{step.start_position} + i;
        const std::int32_t token =
            position < known.len() ? known.tokens[position] : known.drafts.at(position - known.len());
        if (token != kUnknown) {
          ASSERT_EQ(plan.tokens[step.first_row + i], token);
          continue;
        }
        // What the step before this one draws for the same sequence.
        ASSERT_FALSE(known.needs_token);
        ASSERT_EQ(in_flight_.size(), 1u);
        const StepPlan& before = in_flight_.front().plan;
        const LogitTarget& target = before.targets.at(-1 - plan.tokens[step.first_row + i]);
        ASSERT_EQ(target.token, LogitTarget::kSample);
        ASSERT_EQ(before.sequences[target.sequence].id, step.id);
      }
      known.num_computed += step.num_rows - step.num_drafts();
      known.num_named = std::max(known.num_named, known.num_computed);
      ASSERT_GE(std::ssize(known.table) * options_.page_size, known.num_computed + step.num_drafts());
      ASSERT_EQ(step.num_draws > 0, known.num_computed == known.len() && known.len() < known.max_len);
      ASSERT_LE(known.len() + step.num_draws, known.max_len);
      // Nobody is planned past its end.
      ASSERT_LT(step.start_position, std::max(known.prompt_len, known.max_len - 1));
    }
    ASSERT_EQ(next_row, plan.num_rows());
    ASSERT_LE(num_drafts, options_.max_drafts);
  }

  // Each token is computed exactly once between preemptions, but for those that another sequence has computed.
  void verify_table(const StepPlan& plan, const SequenceStep& step, Known& known) {
    known.table_before = known.table;
    if (known.table.empty()) {  // new, or preempted since
      ASSERT_EQ(step.num_kept_pages, 0);
      known.num_computed = step.start_position;
      ASSERT_LT(step.start_position, known.len());
      ASSERT_LE(step.start_position, std::max(known.prompt_len, known.num_named));  // ranks have seen every token
      counts.shared += step.start_position > 0;
      counts.found_again += step.start_position > 0 && known.has_begun;
      known.has_begun = true;
    }
    if (step.start_position > known.num_computed) {  // others have computed the pages between
      ++counts.passed;
      ASSERT_EQ(step.start_position % options_.page_size, 0);
      ASSERT_LE(step.start_position, std::max(known.prompt_len - 1, known.num_named));
      ASSERT_LE(step.num_kept_pages * options_.page_size, known.num_computed);
      known.num_computed = step.start_position;
    }
    ASSERT_EQ(step.start_position, known.num_computed);
    const std::int32_t num_pages = static_cast<std::int32_t>(known.table.size());
    ASSERT_LE(step.num_kept_pages, num_pages);
    if (!std::exchange(known.had_drafts, false) && step.num_kept_pages < num_pages) {
      // All that was taken out is there again, and what was computed lies in full pages.
      ++counts.exchanged;
      ASSERT_GE(step.num_kept_pages + step.num_new_pages, num_pages);
      for (int i = step.num_kept_pages; i < num_pages; ++i) {
        const PageId page = plan.new_pages[step.first_new_page + i - step.num_kept_pages];
        ASSERT_TRUE(page == known.table[i] || (i + 1) * options_.page_size <= step.start_position);
      }
    }
    known.table.resize(step.num_kept_pages);
    for (int i = 0; i < step.num_new_pages; ++i) known.table.push_back(plan.new_pages[step.first_new_page + i]);
  }

  void verify_wanted(const StepPlan& plan) {
    ASSERT_EQ(plan.logit_rows.size(), plan.targets.size());
    ASSERT_TRUE(std::is_sorted(plan.logit_rows.begin(), plan.logit_rows.end()));
    std::int64_t prompt_rows = 0, hidden_rows = 0;
    std::map<std::int32_t, std::int32_t> draws;  // by sequence
    for (std::size_t i = 0; i < plan.targets.size(); ++i) {
      const SequenceStep& step = plan.sequences[plan.targets[i].sequence];
      Known& known = live_.at(step.id);
      const std::int32_t offset = plan.logit_rows[i] - step.first_row;
      if (plan.targets[i].token == LogitTarget::kSample) {
        // One row per draw, the part's last.
        ASSERT_EQ(offset, step.num_rows - step.num_draws + draws[plan.targets[i].sequence]++);
        continue;
      }
      ASSERT_TRUE(offset >= 0 && offset < step.num_rows);
      ASSERT_TRUE(known.score_prompt);
      ASSERT_EQ(step.start_position + offset, known.num_delivered);  // each prompt row once, preempted or not
      ASSERT_EQ(plan.targets[i].token, known.tokens[++known.num_delivered]);
      ++prompt_rows;
    }
    std::size_t next_hidden = 0;
    for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
      const SequenceStep& step = plan.sequences[i];
      ASSERT_EQ(draws[static_cast<std::int32_t>(i)], step.num_draws);
      Known& known = live_.at(step.id);
      for (std::int32_t row = step.num_rows - step.num_hidden; row < step.num_rows; ++row) {
        ASSERT_EQ(plan.hidden_rows.at(next_hidden++), step.first_row + row);
        ASSERT_EQ(step.start_position + row, known.prompt_len - known.num_hidden + known.num_delivered++);
        ++hidden_rows, ++counts.hidden;
      }
    }
    ASSERT_EQ(next_hidden, plan.hidden_rows.size());
    ASSERT_LE(prompt_rows, options_.max_prompt_logits);
    ASSERT_LE(hidden_rows, options_.max_prompt_hidden);
  }

  // Whether all counts are taken, or were when one began that had none: it is there.
  static bool has_overtaken(const Scheduler& scheduler) {
    return std::ranges::any_of(scheduler.running(), [](const Sequence& sequence) { return !sequence.turn.has_counts; });
  }

  void verify_order(const Scheduler& scheduler, const StepPlan& plan) {
    const FairQueue& queue = scheduler.queue();
    std::int32_t last_class = std::numeric_limits<std::int32_t>::min();
    SequenceId last = 0;  // ids grow with arrival here
    for (const Sequence& sequence : scheduler.running()) {
      const std::int32_t own_class = queue.class_of(sequence.turn);
      ASSERT_TRUE(own_class > last_class || (own_class == last_class && sequence.id > last));
      last_class = own_class, last = sequence.id;
    }
    // Where all are alike, who is running arrived before everybody who waits, but for those that wait for counts.
    if (!rivals_) {
      for (const Sequence& sequence : scheduler.waiting()) {
        ASSERT_TRUE(sequence.id > last || (sequence.turn.has_counts && has_overtaken(scheduler)));
      }
    }
    // First those that lack only their latest token, then the rest; earlier arrivals first in both, where all are
    // alike.
    bool first_group = true, chunk_before = false;
    std::int64_t num_drafts = 0;
    std::set<SequenceId> planned;
    last = 0;
    for (const SequenceStep& step : plan.sequences) {
      const Known& known = live_.at(step.id);
      const std::int32_t num_rows = step.num_rows - step.num_drafts();
      const bool latest_only = num_rows == 1 && known.num_computed == known.len() && !known.table_before.empty();
      ASSERT_FALSE(chunk_before && latest_only && step.start_position >= known.prompt_len);  // decode after prefill
      chunk_before = chunk_before || num_rows > 1;
      if (step.id < last) {
        ASSERT_TRUE(first_group || rivals_);
        first_group = false;
      }
      last = step.id;
      num_drafts += step.num_drafts();
      planned.insert(step.id);
    }
    // Drafts take nobody's row.
    for (const Sequence& sequence : scheduler.running()) {
      ASSERT_TRUE(num_drafts == 0 || planned.contains(sequence.id) || !sequence.decoding() || !sequence.is_ready());
    }
  }

  // Devices read what a single row attends to before the step writes.
  static bool has_many_rows(const StepPlan& plan, SequenceId id) {
    const auto part = std::ranges::find(plan.sequences, id, &SequenceStep::id);
    return part == plan.sequences.end() || part->num_rows > 1;
  }

  // What a step writes to is one sequence's; others that have it, at the same place, go on behind it.
  void verify_writers(const Scheduler& scheduler, const StepPlan& plan) {
    std::map<SequenceId, std::int64_t> starts;  // of running sequences: where they go on
    for (const Sequence& sequence : scheduler.running()) starts[sequence.id] = live_.at(sequence.id).num_computed;
    for (const SequenceStep& step : plan.sequences) starts[step.id] = step.start_position;
    std::map<PageId, std::vector<std::pair<SequenceId, std::size_t>>> holders;  // who has the page, at which place
    for (const Sequence& sequence : scheduler.running()) {
      // Ranks hear of exchanged pages with the sequence's next part.
      const bool is_planned = std::ranges::find(plan.sequences, sequence.id, &SequenceStep::id) != plan.sequences.end();
      const std::vector<PageId>& table = is_planned ? live_.at(sequence.id).table : sequence.pages;
      for (std::size_t i = 0; i < table.size(); ++i) holders[table[i]].emplace_back(sequence.id, i);
    }
    for (const SequenceStep& step : plan.sequences) {
      const std::vector<PageId>& table = live_.at(step.id).table;
      const auto first = static_cast<std::size_t>(step.start_position / options_.page_size);
      bool is_joined = false;
      for (std::size_t i = first; i < table.size(); ++i) {
        for (const auto& [id, place] : holders[table[i]]) {
          if (id == step.id) continue;
          ASSERT_EQ(place, i) << "page " << table[i];
          ASSERT_GE(starts.at(id), static_cast<std::int64_t>(i + 1) * options_.page_size) << "page " << table[i];
          ASSERT_LE(static_cast<std::int64_t>(i + 1) * options_.page_size, step.start_position + step.num_rows);
          ASSERT_TRUE(has_many_rows(plan, id)) << "page " << table[i];
          is_joined = true;
        }
      }
      counts.joined += is_joined;
      const std::vector<PageId>& before = live_.at(step.id).table_before;
      for (std::size_t i = first; i < table.size(); ++i) {
        if (i < before.size() && before[i] == table[i]) continue;
        // No page is given away while a step in flight may read or write it.
        for (const Flight& flight : in_flight_) {
          for (const auto& other : flight.tables) ASSERT_EQ(std::ranges::count(other, table[i]), 0);
          for (const PagePair& copy : flight.plan.copies) ASSERT_NE(copy.source, table[i]);
        }
      }
    }
  }

  void launch(const StepPlan& plan) {
    Flight& flight = in_flight_.emplace_back();
    flight.plan = plan;
    for (const SequenceStep& step : plan.sequences) {
      Known& known = live_.at(step.id);
      flight.new_tokens.push_back(known.len());
      if (step.num_draws > 0) {
        known.tokens.push_back(kUnknown);
        known.drafts.clear();
      }
      known.had_drafts = step.num_drafts() > 0;
      flight.tables.push_back(known.table);
    }
  }

  // Copies pages and writes rows as the device does, and reads back what every row attends to.
  void compute(const Flight& flight) {
    make_until(flight.plan.copies_before);
    for (std::size_t i = 0; i < flight.plan.sequences.size(); ++i) {
      const SequenceStep& step = flight.plan.sequences[i];
      const std::int64_t first = (step.start_position + options_.page_size - 1) / options_.page_size;
      const std::int64_t end = std::int64_t{step.num_kept_pages} + step.num_new_pages;
      for (std::int64_t page = std::max<std::int64_t>(first, step.num_kept_pages); page < end; ++page) {
        for (int k = 0; k < options_.page_size; ++k) memory_[{flight.tables[i][page], k}] = kPoison;
      }
    }
    for (const PagePair& copy : flight.plan.copies) {
      for (int i = 0; i < options_.page_size; ++i) {
        memory_[{copy.destination, i}] = memory_[{copy.source, i}];
      }
      ++counts.copied;
    }
    const auto place = [&](std::size_t sequence, std::int64_t position) -> std::int32_t& {
      return memory_[{flight.tables[sequence][position / options_.page_size], position % options_.page_size}];
    };
    for (std::size_t i = 0; i < flight.plan.sequences.size(); ++i) {
      const SequenceStep& step = flight.plan.sequences[i];
      for (int row = 0; row < step.num_rows; ++row) {
        const std::int32_t token = flight.plan.tokens[step.first_row + row];
        place(i, step.start_position + row) = token >= 0 ? token : drawn_before_.at(-1 - token);
      }
    }
    for (std::size_t i = 0; i < flight.plan.sequences.size(); ++i) {
      const SequenceStep& step = flight.plan.sequences[i];
      if (!live_.contains(step.id)) continue;  // it ended since
      for (std::int64_t p = 0; p < step.start_position + step.num_rows - step.num_drafts(); ++p) {
        ASSERT_EQ(place(i, p), live_.at(step.id).tokens[p]) << "sequence " << step.id << " at " << p;
      }
    }
  }

  // The tokens of a part's draws: drafts mostly hold. As many of them as do are accepted.
  std::vector<std::int32_t> draw(const StepPlan& plan, const SequenceStep& step) {
    std::vector<std::int32_t> accepted;
    bool holds = step.num_draws > 0 && !step.is_withdrawn;
    for (std::int32_t i = 0; i < step.num_draws; ++i) {
      const bool last = i + 1 == step.num_draws;
      const std::int32_t draft = last ? -1 : plan.tokens[step.first_draw() + 1 + i];
      const std::int32_t token = !last && !one_in(4) ? draft : any_token();
      drawn_now_.push_back(token);
      if (holds) accepted.push_back(token);
      holds = holds && token == draft;
    }
    return accepted;
  }

  void finish_step(Scheduler& scheduler) {
    const Flight flight = std::move(in_flight_.front());
    in_flight_.pop_front();
    ASSERT_EQ(scheduler.oldest().tokens, flight.plan.tokens);
    compute(flight);
    if (testing::Test::HasFatalFailure()) return;
    StepTokens drawn;
    std::vector<SequenceId> ended, asked, held;
    std::size_t target = 0;
    drawn_now_.clear();
    for (std::size_t i = 0; i < flight.plan.sequences.size(); ++i) {
      const SequenceStep& step = flight.plan.sequences[i];
      for (; target < flight.plan.targets.size() && flight.plan.targets[target].sequence == static_cast<int>(i) &&
             flight.plan.targets[target].token != LogitTarget::kSample;
           ++target) {
        drawn_now_.push_back(-1);  // scored
      }
      const std::vector<std::int32_t> tokens = draw(flight.plan, step);
      target += static_cast<std::size_t>(step.num_draws);
      drawn.tokens.insert(drawn.tokens.end(), tokens.begin(), tokens.end());
      drawn.ends.push_back(static_cast<std::int32_t>(drawn.tokens.size()));
      ASSERT_EQ(drawn.num_accepted(i), std::max<std::ptrdiff_t>(0, std::ssize(tokens) - 1));
      const auto iterator = live_.find(step.id);
      if (iterator == live_.end()) continue;  // it ended since
      Known& known = iterator->second;
      const std::int64_t length = flight.new_tokens[i] + std::ssize(tokens);
      if (!tokens.empty()) {
        known.tokens[flight.new_tokens[i]] = tokens.front();
        known.tokens.insert(known.tokens.end(), tokens.begin() + 1, tokens.end());
        known.num_computed += std::ssize(tokens) - 1;
        known.num_named = std::max(known.num_named, known.num_computed);  // drafts that hold were in rows
        counts.accepted += drawn.num_accepted(i);
        counts.rejected += step.num_drafts() - drawn.num_accepted(i);
      }
      const bool stopped = !tokens.empty() && one_in(50);
      if (stopped || (step.start_position + step.num_rows >= known.prompt_len && length == known.max_len)) {
        const std::int64_t wanted = known.score_prompt ? known.prompt_len - 1 : known.num_hidden;
        ASSERT_EQ(known.num_delivered, wanted);
        ended.push_back(step.id);
        continue;
      }
      if (tokens.empty()) continue;
      if (known.awaits_masks) {
        held.push_back(step.id);
      } else if (known.needs_token) {
        asked.push_back(step.id);
      }
    }
    drawn_before_ = drawn_now_;
    scheduler.complete(drawn, scheduler.host() ? 0.001 * static_cast<double>(below(40)) : 0);
    scheduler.check();
    for (const SequenceId id : ended) {
      scheduler.remove(id);
      forget(id);
    }
    for (const SequenceId id : held) {
      live_.at(id).is_held = true;
      scheduler.hold(id, true);
    }
    for (const SequenceId id : asked) look_ahead(scheduler, id);
    scheduler.check();
  }

  // A sequence whose tokens are all known: what was reserved for drafts is given back; some go on with tokens of the
  // host's, or with drafts.
  void look_ahead(Scheduler& scheduler, SequenceId id) {
    Known& known = live_.at(id);
    ASSERT_EQ(scheduler.sequence(id).tokens, known.tokens);
    ASSERT_EQ(scheduler.sequence(id).num_computed, known.num_computed);
    ASSERT_LE((std::ssize(scheduler.sequence(id).pages) - 1) * options_.page_size, known.len() - 1);
    const std::int64_t room = known.max_len - known.len() - 1;
    if (room > 0 && one_in(4)) {
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(1 + below(std::min<std::int64_t>(room, 6))));
      for (std::int32_t& token : tokens) token = any_token();
      scheduler.append(id, tokens);
      known.tokens.insert(known.tokens.end(), tokens.begin(), tokens.end());
      counts.appended += std::ssize(tokens);
    }
    if (one_in(2)) {
      known.drafts.resize(static_cast<std::size_t>(below(8)));
      for (std::int32_t& draft : known.drafts) draft = any_token();
      scheduler.propose(id, known.drafts);
    }
  }

  SchedulerOptions options_;
  std::mt19937& random_;
  std::size_t depth_;
  bool rivals_;  // sequences differ in priority, share and user
  FairQueue::Time now_ = {};
  std::map<SequenceId, Known> live_;
  std::deque<Past> past_;  // the latest
  std::deque<Flight> in_flight_;
  std::map<std::pair<PageId, std::int64_t>, std::int32_t> memory_, host_memory_;  // the token at a place of a page
  std::deque<Copying> copies_, lagging_;  // that rank 0 didn't hear the end of; that weren't made
  std::uint64_t num_copies_ = 0;
  std::vector<std::int32_t> drawn_before_, drawn_now_;  // by target, of the last two steps
};

class SchedulerProperties : public testing::TestWithParam<unsigned> {};

TEST_P(SchedulerProperties, HoldUnderRandomUse) {
  std::mt19937 random(GetParam());
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % (high - low + 1));
  };
  const SchedulerOptions options{.num_pages = between(1, 24),
                                 .page_size = static_cast<int>(between(1, 8)),
                                 .max_running = between(1, 10),
                                 .max_counting = between(1, 4),
                                 .max_batch_tokens = between(1, 32),
                                 .max_prompt_logits = between(1, 8),
                                 .max_prompt_hidden = between(1, 8),
                                 .max_drafts = between(0, 12),
                                 .host_pages = GetParam() % 3 == 0 ? 0 : between(1, 60)};
  Scheduler scheduler(options);
  scheduler.set_host_page_seconds(0.001 * static_cast<double>(GetParam() % 2));
  Rank rank(options, random, GetParam() % 2, GetParam() % 4 >= 2);
  SequenceId next_id = 1;
  for (int round = 0; round < 1500; ++round) {
    if (random() % 4 == 0 && scheduler.num_waiting() < 20) rank.submit(scheduler, next_id++);
    if (random() % 25 == 0) {
      const std::vector<SequenceId> ids = rank.ids();
      if (!ids.empty()) {
        const SequenceId id = ids[random() % ids.size()];
        scheduler.remove(id);
        rank.forget(id);
        scheduler.check();
      }
    }
    rank.step(scheduler);
    if (HasFatalFailure()) return;
  }
  // Everything left finishes: no livelock.
  const auto is_busy = [&] { return scheduler.host() && scheduler.host()->is_busy(); };
  for (int round = 0; scheduler.has_work() || scheduler.num_in_flight() > 0 || is_busy(); ++round) {
    ASSERT_LT(round, 100000);
    rank.step(scheduler);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(scheduler.num_available_pages(), options.num_pages);
  EXPECT_TRUE(rank.ids().empty());
  if (GetParam() % 2 == 1) {
    EXPECT_GT(rank.counts.ahead, 10);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerProperties, testing::Range(0u, 120u));

TEST(SchedulerProperties, EverythingHappensInThem) {
  // The property would be idle if these caches never ran out, or nothing were shared, drafted or appended.
  for (const std::size_t depth : {0, 1, 2, 3}) {
    std::mt19937 random(5);
    const SchedulerOptions options{
        .num_pages = 24, .page_size = 4, .max_running = 8, .max_batch_tokens = 32, .max_drafts = 8};
    Scheduler scheduler(options);
    Rank rank(options, random, depth % 2, depth >= 2);
    SequenceId next_id = 1;
    while (next_id <= 1500 || scheduler.has_work()) {
      if (next_id <= 1500 && scheduler.num_waiting() < 4) rank.submit(scheduler, next_id++);
      rank.step(scheduler);
      ASSERT_FALSE(HasFatalFailure());
    }
    EXPECT_GT(scheduler.num_preemptions(), 10u);
    for (const std::int64_t count :
         {rank.counts.accepted, rank.counts.rejected, rank.counts.appended, rank.counts.copied, rank.counts.hidden,
          rank.counts.shared, rank.counts.joined, rank.counts.found_again, rank.counts.exchanged,
          static_cast<std::int64_t>(scheduler.tree().num_evicted())}) {
      EXPECT_GT(count, 5) << "depth " << depth;
    }
    if (depth % 2 == 0) continue;
    EXPECT_GT(rank.counts.withdrawn, 100);
    EXPECT_GT(rank.counts.awaiting, 2 * rank.counts.withdrawn);
  }
}

// Prompts of more conversations than the device has room for.
TEST(SchedulerProperties, PagesGoToTheHostAndComeBack) {
  for (const std::size_t depth : {0, 1}) {
    std::mt19937 random(8);
    const SchedulerOptions options{
        .num_pages = 24, .page_size = 4, .max_running = 3, .max_batch_tokens = 32, .host_pages = 200};
    Scheduler scheduler(options);
    scheduler.host_pages_ready(200);
    Rank rank(options, random, depth);
    SequenceId next_id = 1;
    while (next_id <= 600 || scheduler.has_work()) {
      if (next_id <= 600 && scheduler.num_waiting() < 2) rank.submit(scheduler, next_id++);
      rank.step(scheduler);
      ASSERT_FALSE(HasFatalFailure());
    }
    EXPECT_GT(rank.counts.copied_out, 200) << "depth " << depth;
    EXPECT_GT(rank.counts.copied_in, 100) << "depth " << depth;
    const PrefixCounts& counts = scheduler.prefix_counts();
    EXPECT_GT(counts.host_hits, 50u);
    EXPECT_GT(counts.host_queries, counts.host_hits);
  }
}

// In small chunks, prefills of the same prompt take turns.
TEST(SchedulerProperties, PrefillsPassOverWhatOthersHaveComputed) {
  std::int64_t passed = 0;
  for (const std::size_t depth : {0, 1}) {
    std::mt19937 random(6);
    const SchedulerOptions options{.num_pages = 40, .page_size = 2, .max_running = 8, .max_batch_tokens = 6};
    Scheduler scheduler(options);
    Rank rank(options, random, depth, true);
    SequenceId next_id = 1;
    while (next_id <= 2000 || scheduler.has_work()) {
      if (next_id <= 2000 && scheduler.num_waiting() < 8) rank.submit(scheduler, next_id++);
      rank.step(scheduler);
      ASSERT_FALSE(HasFatalFailure());
    }
    passed += rank.counts.passed;
  }
  EXPECT_GT(passed, 10);
}

}  // namespace
}  // namespace minisgl
