#include "engine/drafting.h"

namespace minisgl {

bool Drafting::add(SequenceId id, const Request& request) {
  std::unique_ptr<Lookahead> lookahead = make_lookahead_ ? make_lookahead_(request) : nullptr;
  if (!lookahead) return false;
  looking_.emplace(id, Looking{std::move(lookahead), !depends_on_output(request.sampling)});
  return true;
}

void Drafting::note(const StepPlan& plan) {
  if (looking_.empty()) return;
  for (const SequenceStep& part : plan.sequences) {
    if (part.num_draws > 0 && looking_.contains(part.id)) look(part.id);
  }
}

void Drafting::look(SequenceId id) {
  const Looking& looking = looking_.at(id);
  Lookahead::Ahead ahead = looking.lookahead->look(scheduler_.sequence(id).tokens);
  if (!ahead.forced.empty() && !sequences_.give(id, ahead.forced)) return end(id);
  if (looking.may_draft) scheduler_.propose(id, ahead.drafts);
}

}  // namespace minisgl
