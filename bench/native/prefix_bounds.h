// What a prefix cache could find at most, in whole pages, by policies that know what no server does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "prefix_workloads.h"

namespace minisgl {

// The requests as pages, equal prefixes as equal ones.
struct PageTrace {
  struct Request {
    std::vector<int> pages;
    int num_asked;  // of the prompt
    int conversation;
    bool is_last;
  };
  std::vector<Request> requests;
  std::vector<int> parents, depths;  // [pages]

  PageTrace(Requests from, int num_requests, int page_size) {
    std::map<std::pair<int, std::uint64_t>, int> known;  // by the page before it and the hash of its tokens
    const auto size = static_cast<std::size_t>(page_size);
    for (int i = 0; i < num_requests; ++i) {
      const Turn turn = from.next();
      Request request{.pages = {},
                      .num_asked = static_cast<int>((turn.prompt_len - 1) / size),
                      .conversation = turn.conversation,
                      .is_last = turn.is_last};
      int parent = -1;
      for (std::size_t begin = 0; begin + size <= turn.tokens.size(); begin += size) {
        std::uint64_t hash = 0;
        for (const std::int32_t token : std::span(turn.tokens).subspan(begin, size)) {
          hash = (hash ^ static_cast<std::uint64_t>(token)) * 0x9e3779b97f4a7c15u;
          hash ^= hash >> 29;
        }
        const auto [page, is_new] = known.try_emplace({parent, hash}, static_cast<int>(parents.size()));
        if (is_new) {
          parents.push_back(parent);
          depths.push_back(parent < 0 ? 0 : depths[static_cast<std::size_t>(parent)] + 1);
        }
        request.pages.push_back(parent = page->second);
      }
      requests.push_back(std::move(request));
    }
  }
};

// Next use: Belady's optimum ("A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal
// 1966): the page is given up that is asked for last. A page is asked for whenever one behind it is, so this never
// takes one that others need, and nothing finds more.
// Rate: knows which conversations are over and how often new ones begin with a page, but not whose turn comes next: the
// page is given up that is asked for least. A server learns neither from the requests. No bound where fashions change.
enum class Knows : std::uint8_t { next_use, rate };

class BestCache {
 public:
  BestCache(const PageTrace& trace, Knows knows) : trace_(trace), knows_(knows), pages_(trace.parents.size()) {
    for (std::size_t i = trace.requests.size(); i-- > 0;) {
      const auto& request = trace.requests[i];
      uses_.emplace_back();
      for (const int page : asked(request)) {
        uses_.back().push_back(pages_[index(page)].next_use);
        pages_[index(page)].next_use = static_cast<double>(i);
      }
    }
    std::ranges::reverse(uses_);
    std::set<int> begun;
    for (const auto& request : trace.requests) {
      if (!begun.insert(request.conversation).second) continue;
      for (const int page : request.pages) ++pages_[index(page)].num_starts;
    }
  }

  // Pages found with room for so many. Once.
  std::int64_t run(std::int64_t num_pages) {
    std::int64_t found = 0, used = 0;
    for (std::size_t i = 0; i < trace_.requests.size(); ++i) {
      const auto& request = trace_.requests[i];
      note_alive(request);
      const std::size_t count = request.pages.size();
      std::size_t known = 0;
      for (; known < count && at(request, known).is_cached; ++known) leave_queue(request.pages[known]);
      found += std::min<std::int64_t>(static_cast<std::int64_t>(known), request.num_asked);
      for (std::size_t k = 0; k < uses_[i].size(); ++k) at(request, k).next_use = uses_[i][k];
      if (known > 0) ++at(request, known - 1).num_children;  // nobody takes it now
      std::size_t end = known;
      for (; end < count; ++end, ++used) {
        if (used == num_pages && !give_up()) break;
        used -= used == num_pages;
        at(request, end).is_cached = true;
        if (end > 0) ++at(request, end - 1).num_children;
      }
      if (known > 0) --at(request, known - 1).num_children;
      if (end > 0) enter_queue(request.pages[end - 1]);
    }
    return found;
  }

 private:
  struct Page {
    bool is_cached = false, is_queued = false;
    int num_children = 0;  // cached
    int num_alive = 0;     // conversations that go on behind it
    int num_starts = 0;    // conversations that begin with it
    double next_use = std::numeric_limits<double>::infinity(), key = 0;
  };

  static std::size_t index(int page) { return static_cast<std::size_t>(page); }
  static std::span<const int> asked(const PageTrace::Request& request) {
    return std::span(request.pages).first(static_cast<std::size_t>(request.num_asked));
  }
  Page& at(const PageTrace::Request& request, std::size_t i) { return pages_[index(request.pages[i])]; }

  // The lowest is given up first.
  double key(const Page& page) const {
    if (knows_ == Knows::next_use) return -page.next_use;
    const auto num_alive = static_cast<double>(std::max<std::size_t>(1, alive_.size()));
    return page.num_alive + num_alive * page.num_starts / static_cast<double>(trace_.requests.size());
  }
  void enter_queue(int number) {
    Page& page = pages_[index(number)];
    if (page.num_children > 0) return;
    page.is_queued = true;
    page.key = key(page);
    queue_.emplace(page.key, -trace_.depths[index(number)], number);
  }
  void leave_queue(int number) {
    Page& page = pages_[index(number)];
    if (std::exchange(page.is_queued, false)) queue_.erase({page.key, -trace_.depths[index(number)], number});
  }
  bool give_up() {
    if (queue_.empty()) return false;
    const int number = std::get<2>(*queue_.begin());
    leave_queue(number);
    pages_[index(number)].is_cached = false;
    const int parent = trace_.parents[index(number)];
    if (parent >= 0 && --pages_[index(parent)].num_children == 0) enter_queue(parent);
    return true;
  }
  void note_alive(const PageTrace::Request& request) {
    if (knows_ != Knows::rate) return;
    std::vector<int>& pages = alive_[request.conversation];
    for (const int page : pages) change_alive(page, -1);
    pages = request.pages;
    if (request.is_last) {
      alive_.erase(request.conversation);
    } else {
      for (const int page : pages) change_alive(page, 1);
    }
  }
  void change_alive(int number, int change) {
    const bool was_queued = pages_[index(number)].is_queued;
    leave_queue(number);
    pages_[index(number)].num_alive += change;
    if (was_queued) enter_queue(number);
  }

  const PageTrace& trace_;
  const Knows knows_;
  std::vector<Page> pages_;
  std::vector<std::vector<double>> uses_;         // [requests, asked] when the page is asked for next
  std::map<int, std::vector<int>> alive_;         // the pages of those that go on
  std::set<std::tuple<double, int, int>> queue_;  // what may be given up: key, minus depth, page
};

}  // namespace minisgl
