// When the next step is planned on a device that runs ahead: so late that who comes meanwhile is in it, and so early
// that the device never waits for it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "sched/step_plan.h"

namespace minisgl {

class StepPace {
 public:
  using Duration = std::chrono::steady_clock::duration;
  // Shorter steps are followed at once. Between the next plan and the end of the step at hand lies this part of it, and
  // so much time at least: several times what planning and launching take.
  static constexpr std::chrono::milliseconds kShortest{8}, kLeastSlack{3};
  static constexpr double kSlack = 0.3;

  // A step took so long. One that was launched too late counts with the wait, so what is expected comes down to what
  // steps take.
  void learn(const StepPlan& plan, Duration time) {
    if (!only_decodes(plan)) return;
    rows_ = plan.num_rows();
    time_ = time;
  }
  // How long after the beginning of this step the next one may be planned; 0 where nothing is known of its like.
  Duration next_after(const StepPlan& plan) const {
    if (!only_decodes(plan) || rows_ == 0) return {};
    const double share = std::min(1.0, static_cast<double>(plan.num_rows()) / static_cast<double>(rows_));
    const Duration expected(static_cast<Duration::rep>(share * static_cast<double>(time_.count())));
    if (expected < kShortest) return {};
    const Duration slack(static_cast<Duration::rep>(kSlack * static_cast<double>(expected.count())));
    return expected - std::max<Duration>(slack, kLeastSlack);
  }

 private:
  static bool only_decodes(const StepPlan& plan) { return plan.num_rows() == std::ssize(plan.sequences); }

  std::int64_t rows_ = 0;  // of the latest step that only decoded
  Duration time_ = {};
};

}  // namespace minisgl
