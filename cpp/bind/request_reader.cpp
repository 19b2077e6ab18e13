// One row a field: its name and where its value goes.
#include "bind/request_reader.h"

#include <limits>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "core/error.h"

namespace py = pybind11;

namespace minisgl {
namespace {

[[noreturn]] void wrong_type(const char* field, const char* expected, py::handle value) {
  throw py::type_error(concat(field, " must be ", expected, ", got ", Py_TYPE(value.ptr())->tp_name));
}

// Integers, also those of NumPy; bool is not one of them.
template <typename Integer>
Integer read_integer(const char* field, py::handle value) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) wrong_type(field, "an integer", value);
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  bool fits;
  Integer result;
  if constexpr (std::is_same_v<Integer, std::uint64_t>) {
    result = PyLong_AsUnsignedLongLong(number.ptr());
    fits = !PyErr_Occurred();
    if (!fits) PyErr_Clear();
  } else {
    int overflow = 0;
    const long long wide = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (wide == -1 && PyErr_Occurred()) throw py::error_already_set();
    fits = overflow == 0 && wide >= std::numeric_limits<Integer>::min() && wide <= std::numeric_limits<Integer>::max();
    result = static_cast<Integer>(wide);
  }
  if (!fits) {
    throw py::value_error(concat(field, " must be between ", std::numeric_limits<Integer>::min(), " and ",
                                 std::numeric_limits<Integer>::max()));
  }
  return result;
}

float read_number(const char* field, py::handle value) {
  if (!PyFloat_Check(value.ptr()) && (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr()))) {
    wrong_type(field, "a number", value);
  }
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error(concat(field, " is too large"));
  }
  return static_cast<float>(number);  // the engine refuses infinities and NaN with the field's own range
}

bool read_bool(const char* field, py::handle value) {
  if (!PyBool_Check(value.ptr())) wrong_type(field, "a bool", value);
  return value.ptr() == Py_True;
}

// Calls read(item) for each item of a list or tuple.
template <typename Read>
void read_items(const char* field, py::handle value, const Read& read) {
  if (!PyList_Check(value.ptr()) && !PyTuple_Check(value.ptr())) wrong_type(field, "a list", value);
  // A copy: reading an item may run Python code that changes a list.
  const auto items = py::reinterpret_steal<py::tuple>(PySequence_Tuple(value.ptr()));
  if (!items) throw py::error_already_set();
  for (const py::handle item : items) read(item);
}

std::vector<std::int32_t> read_tokens(const char* field, py::handle value) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(PyObject_LengthHint(value.ptr(), 0));
  read_items(field, value, [&](py::handle item) { tokens.push_back(read_integer<std::int32_t>(field, item)); });
  return tokens;
}

std::vector<std::pair<std::int32_t, float>> read_bias(const char* field, py::handle value) {
  std::vector<std::pair<std::int32_t, float>> bias;
  read_items(field, value, [&](py::handle item) {
    if (!PyTuple_Check(item.ptr()) || PyTuple_GET_SIZE(item.ptr()) != 2) {
      wrong_type(field, "a list of (token, bias)", item);
    }
    bias.emplace_back(read_integer<std::int32_t>(field, PyTuple_GET_ITEM(item.ptr(), 0)),
                      read_number(field, PyTuple_GET_ITEM(item.ptr(), 1)));
  });
  return bias;
}

using Read = void (*)(const char* field, py::handle value, Request& request);

template <auto Member>
void into_request(const char* field, py::handle value, Request& request) {
  auto& target = request.*Member;
  using Target = std::remove_reference_t<decltype(target)>;
  if constexpr (std::is_same_v<Target, bool>) {
    target = read_bool(field, value);
  } else if constexpr (std::is_same_v<Target, std::vector<std::int32_t>>) {
    target = read_tokens(field, value);
  } else {
    target = read_integer<Target>(field, value);
  }
}

template <auto Member>
void into_sampling(const char* field, py::handle value, Request& request) {
  auto& target = request.sampling.*Member;
  using Target = std::remove_reference_t<decltype(target)>;
  if constexpr (std::is_same_v<Target, float>) {
    target = read_number(field, value);
  } else {
    target = read_integer<Target>(field, value);
  }
}

const std::unordered_map<std::string, Read>& readers() {
  static const std::unordered_map<std::string, Read> table{
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
  for (const auto& [key, value] : py::reinterpret_steal<py::dict>(PyDict_Copy(fields.ptr()))) {
    if (!PyUnicode_Check(key.ptr())) wrong_type("a key of the request", "a str", key);
    const auto reader = readers().find(key.cast<std::string>());
    if (reader == readers().end()) {
      throw py::type_error(concat("the request has an unknown field ", std::string(py::repr(key))));
    }
    reader->second(reader->first.c_str(), value, request);
  }
  return request;
}

}  // namespace minisgl
