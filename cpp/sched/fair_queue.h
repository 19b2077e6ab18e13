// Whose turn it is among the sequences that wait: classes first, then equal shares of the tokens, then arrival.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

namespace minisgl {

// What a request says of its turn.
struct Standing {
  std::int32_t priority = 0;  // lower goes first
  std::int64_t share = 0;     // shares have equal parts of the tokens
  std::uint64_t user = 0;     // users of a share have equal parts of what it has
};

// One that tokens are counted for: a share, or a user of a share.
struct Party {
  std::uint64_t served = 0;                                     // tokens, weighted
  std::int64_t num_live = 0, num_waiting = 0, num_running = 0;  // sequences
  std::int64_t num_counting = 0;                                // those that run and have counts
  std::int64_t num_pages = 0;  // in use by its running sequences, when the scheduler last counted
};

struct Turn;

class FairQueue {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // Waiting that long raises a sequence by a class.
  static constexpr std::chrono::seconds kAging{60};
  // What a token costs its share and its user. A generated one takes a step of its own; the weights are those of
  // "Fairness in Serving Large Language Models" (OSDI 2024).
  static constexpr std::int64_t kPromptWeight = 1, kGeneratedWeight = 2;
  // Where so many shares are known, or users of a share, those without a live sequence are forgotten for a new one:
  // first those that have had no more than others.
  static constexpr std::size_t kMostIdle = 1024;

  FairQueue() = default;
  FairQueue(const FairQueue&) = delete;  // turns point into it

  void set_time(Time now) { now_ = now; }
  Time time() const { return now_; }

  // The turn's sequence came; it waits. The turn stays where it is until leave().
  void arrive(Turn& turn, const Standing& standing, Time arrived);
  // Its sequence runs from now on. Its class stays what it has come to.
  void begin(Turn& turn);
  // It was preempted, and waits again at its place in the order of arrival.
  void give_way(Turn& turn);
  // Its sequence ended, waiting or running.
  void leave(Turn& turn);

  // So much was computed for it. Nothing happens after leave().
  static void charge(Turn& turn, std::int64_t weighted_tokens);

  // Whose turn it is: the lowest class, of those the share that was served least, of those its user that was served
  // least, of those the earliest. Those that have counts are passed over unless `may_count`. Null when nobody waits.
  // O(users that wait).
  Turn* first(bool may_count = true) const;
  bool empty() const { return flows_.empty(); }
  // Whether live sequences differ in user, share or priority.
  bool has_rivals() const { return num_live_users_ > 1 || live_.size() > 1; }
  // Whether one with this standing differs from a live one.
  bool is_rival(const Standing& standing) const;
  // Whether `a` comes before `b` in this order; each may wait or run.
  bool before(const Turn& a, const Turn& b) const;
  // Its priority, less one for each kAging that it has waited, down to the lowest priority of a live sequence; while it
  // runs, what that was when it began.
  std::int32_t class_of(const Turn& turn) const;
  // Users of a share that are known, idle ones among them.
  std::size_t num_known_users(std::int64_t share) const { return shares_.at(share).users.size(); }
  // Those that run and have counts.
  std::int64_t num_counting() const { return num_counting_; }
  // Number of waiting sequences by priority.
  std::vector<std::pair<std::int32_t, std::int64_t>> waiting_by_priority() const;

 private:
  friend struct Turn;
  struct Share;
  struct User;
  // The waiting sequences of a user with one priority, those with counts or the others: only the first of them can be
  // the next.
  struct Flow {
    std::deque<Turn*> waiting;  // by arrival
    std::size_t index;          // in flows_
  };
  struct User : Party {
    std::map<std::pair<std::int32_t, bool>, Flow> flows;  // by priority and counts; none is empty
  };
  struct Share : Party {
    std::unordered_map<std::uint64_t, User> users;
    std::uint64_t last_user = 0;  // the one that waited last
  };

  void enter(Turn& turn);
  void exit(Turn& turn);
  void count_running(const Turn& turn, int change);

  std::unordered_map<std::int64_t, Share> shares_;
  std::int64_t last_share_ = 0;  // the one that waited last
  std::vector<Flow*> flows_;
  std::map<std::int32_t, std::int64_t> live_;  // sequences by priority
  std::int64_t num_live_users_ = 0;
  std::int64_t num_counting_ = 0;
  std::uint64_t num_arrivals_ = 0;
  Time now_ = {};
};

// A sequence's place in the order. The queue fills it in.
struct Turn {
  explicit Turn(std::uint64_t id_, bool has_counts_ = false) : id(id_), has_counts(has_counts_) {}
  Turn(const Turn&) = delete;

  std::uint64_t id;  // the sequence's
  bool has_counts;   // devices count its tokens while it runs, and have room for so many only
  Standing standing = {};
  std::uint64_t arrival = 0;  // grows with each
  bool is_running = false;

  const Party& share() const { return *share_; }
  const Party& user() const { return *user_; }
  Party& share() { return *share_; }
  Party& user() { return *user_; }

 private:
  friend class FairQueue;
  FairQueue::Share* share_ = nullptr;
  FairQueue::User* user_ = nullptr;
  FairQueue::Time since_ = {};                       // when it began to wait
  std::chrono::steady_clock::duration waited_ = {};  // before that
  std::int32_t class_ = 0;                           // while it runs
};

}  // namespace minisgl
