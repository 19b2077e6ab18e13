// One row per field of a request; those of its sampling are sampling_fields.
#include "bind/request_reader.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/field_reader.h"
#include "core/error.h"
#include "engine/sampling_fields.h"

namespace py = pybind11;

namespace minisgl {
namespace {

using minisgl::read_field;  // beside those of this file

void read_field(const char* field, py::handle value, std::vector<TokenBias>& biases) {
  if (!PyDict_Check(value.ptr())) wrong_type(field, "a dict from tokens to numbers", value);
  for (const auto& [token, bias] : py::reinterpret_steal<py::dict>(PyDict_Copy(value.ptr()))) {
    biases.emplace_back(read_integer<std::int32_t>(field, token), static_cast<float>(read_number(field, bias)));
  }
}

void read_field(const char* field, py::handle value, std::array<std::uint64_t, 2>& salt) {
  if (!PyBytes_Check(value.ptr())) wrong_type(field, "bytes", value);
  const auto bytes = py::reinterpret_borrow<py::bytes>(value).cast<std::string_view>();
  if (bytes.size() != sizeof(salt)) throw py::value_error(concat(field, " has 16 bytes, got ", bytes.size()));
  std::memcpy(salt.data(), bytes.data(), sizeof(salt));
}

void read_field(const char* field, py::handle value, std::vector<std::vector<std::int32_t>>& lists) {
  read_items(field, value, [&](py::handle item) { lists.push_back(read_tokens(field, item)); });
}

void read_field(const char* field, py::handle value, Pooling::Kind& kind) {
  const std::string name = read_text(field, value);
  if (name != "last" && name != "mean") throw py::value_error(concat(field, " must be last or mean, got ", name));
  kind = name == "last" ? Pooling::Kind::last : Pooling::Kind::mean;
}

void read_field(const char* field, py::handle value, std::vector<ThoughtMove>& moves) {
  if (!PyBytes_Check(value.ptr())) wrong_type(field, "bytes", value);
  const auto bytes = py::reinterpret_borrow<py::bytes>(value).cast<std::string_view>();
  if (bytes.size() % sizeof(ThoughtMove) != 0) {
    throw py::value_error(concat(field, " has ", sizeof(ThoughtMove), " bytes per move, got ", bytes.size()));
  }
  moves.resize(bytes.size() / sizeof(ThoughtMove));
  if (!moves.empty()) std::memcpy(moves.data(), bytes.data(), bytes.size());
}

template <auto Member>
void into_thought(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.thought.*Member);
}

template <auto Member>
void into_request(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.*Member);
}

template <std::size_t Index>
void into_sampling(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.sampling.*std::get<Index>(sampling_fields).member);
}

template <auto Member>
void into_pooling(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.pooling.*Member);
}

template <auto Member>
void into_standing(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.standing.*Member);
}

FieldTable<Request> make_readers() {
  FieldTable<Request> table{
      {"id", into_request<&Request::id>},
      {"prompt", into_request<&Request::prompt>},
      {"grammar", into_request<&Request::grammar>},
      {"thinking_token_budget", into_thought<&ThoughtBudget::max_tokens>},
      {"thought_states", into_thought<&ThoughtBudget::states>},
      {"thought_moves", into_thought<&ThoughtBudget::moves>},
      {"thought_closings", into_thought<&ThoughtBudget::closings>},
      {"max_tokens", into_request<&Request::max_tokens>},
      {"num_resumed", into_request<&Request::num_resumed>},
      {"min_tokens", into_request<&Request::min_tokens>},
      {"ignore_eos", into_request<&Request::ignore_eos>},
      {"stop_token_ids", into_request<&Request::stop_token_ids>},
      {"logprobs", into_request<&Request::logprobs>},
      {"prompt_logprobs", into_request<&Request::prompt_logprobs>},
      {"speculate", into_request<&Request::speculate>},
      {"pooling", into_pooling<&Pooling::kind>},
      {"normalize", into_pooling<&Pooling::normalize>},
      {"dimensions", into_pooling<&Pooling::dimensions>},
      {"priority", into_standing<&Standing::priority>},
      {"share", into_standing<&Standing::share>},
      {"user", into_standing<&Standing::user>},
      {"adapter", into_request<&Request::adapter>},
      {"prefix_salt", into_request<&Request::prefix_salt>},
  };
  [&]<std::size_t... Index>(std::index_sequence<Index...>) {
    (table.emplace(std::get<Index>(sampling_fields).name, into_sampling<Index>), ...);
  }(std::make_index_sequence<std::tuple_size_v<decltype(sampling_fields)>>());
  return table;
}

}  // namespace

Request read_request(const py::dict& fields) {
  Request request;
  for (const char* required : {"id", "prompt"}) {
    if (!fields.contains(required)) throw py::value_error(concat("the request has no ", required));
  }
  static const FieldTable<Request> readers = make_readers();
  read_fields("the request", fields, readers, request);
  return request;
}

}  // namespace minisgl
