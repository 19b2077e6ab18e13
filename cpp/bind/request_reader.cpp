// One row a field: its name and where its value goes.
#include "bind/request_reader.h"

#include <utility>
#include <vector>

#include "bind/field_reader.h"
#include "core/error.h"

namespace py = pybind11;

namespace minisgl {
namespace {

std::vector<std::pair<std::int32_t, float>> read_bias(const char* field, py::handle value) {
  std::vector<std::pair<std::int32_t, float>> bias;
  read_items(field, value, [&](py::handle item) {
    if (!PyTuple_Check(item.ptr()) || PyTuple_GET_SIZE(item.ptr()) != 2) {
      wrong_type(field, "a list of (token, bias)", item);
    }
    bias.emplace_back(read_integer<std::int32_t>(field, PyTuple_GET_ITEM(item.ptr(), 0)),
                      static_cast<float>(read_number(field, PyTuple_GET_ITEM(item.ptr(), 1))));
  });
  return bias;
}

template <auto Member>
void into_request(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.*Member);
}

template <auto Member>
void into_sampling(const char* field, py::handle value, Request& request) {
  read_field(field, value, request.sampling.*Member);
}

const FieldTable<Request>& readers() {
  static const FieldTable<Request> table{
      {"id", into_request<&Request::id>},
      {"prompt", into_request<&Request::prompt>},
      {"max_tokens", into_request<&Request::max_tokens>},
      {"num_resumed", into_request<&Request::num_resumed>},
      {"min_tokens", into_request<&Request::min_tokens>},
      {"ignore_eos", into_request<&Request::ignore_eos>},
      {"stop_token_ids", into_request<&Request::stop_token_ids>},
      {"logprobs", into_request<&Request::logprobs>},
      {"prompt_logprobs", into_request<&Request::prompt_logprobs>},
      {"temperature", into_sampling<&SamplingParams::temperature>},
      {"top_k", into_sampling<&SamplingParams::top_k>},
      {"top_p", into_sampling<&SamplingParams::top_p>},
      {"min_p", into_sampling<&SamplingParams::min_p>},
      {"repetition_penalty", into_sampling<&SamplingParams::repetition_penalty>},
      {"presence_penalty", into_sampling<&SamplingParams::presence_penalty>},
      {"frequency_penalty", into_sampling<&SamplingParams::frequency_penalty>},
      {"seed", into_sampling<&SamplingParams::seed>},
      {"logit_bias", [](const char* field, py::handle value,
                        Request& request) { request.sampling.logit_bias = read_bias(field, value); }},
  };
  return table;
}

}  // namespace

Request read_request(const py::dict& fields) {
  Request request;
  for (const char* required : {"id", "prompt"}) {
    if (!fields.contains(required)) throw py::value_error(concat("the request has no ", required));
  }
  read_fields("the request", fields, readers(), request);
  return request;
}

}  // namespace minisgl
